"""Honest tuning: settings are chosen on public pictures with a simulated client of the same kind, then frozen.

Whoever tunes on the victim looks at the truth. An attacker can rehearse instead: the network and the client's rule are
known, so a client with public pictures can be simulated, attacked and scored. Every rehearsal is a :class:`Trial`,
stored under its key, and every choice of settings derives from the seed and from the rehearsals before it. So a tuning
resumes by going through it again: what is finished is read, what is missing is run, and the choices are the same.
"""

import statistics
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, Literal

import torch

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.strongest import MEMBERS, applying
from leakmap.auditing.estimate import Expected, Foretold, expected
from leakmap.auditing.prepare import Prepared, facts, granting
from leakmap.auditing.recipe import rehearsals
from leakmap.errors import BadSetting
from leakmap.files import read_json, write_json
from leakmap.plan.plan import BUDGET, Column, Plan, Progress, Scalar, check_needs
from leakmap.plan.tuned import Objective, Try, Tuned, TunedAttack
from leakmap.registry.spec import Spec, Tunable
from leakmap.runs.fitting import FOLDER
from leakmap.runs.run import held_by, seen_by_server, versions_of
from leakmap.runs.runner import FITTING, HERE, Runner, jobs_of, run_trials
from leakmap.runs.setup import Setup
from leakmap.runs.store import Store
from leakmap.runs.trial import Outcome, Trial
from leakmap.scoring.lineup import ncc
from leakmap.seeds import derive

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

WORST = {"ncc": -1.0, "ssim": -1.0, "psnr": 0.0}
"""Objective -> what a failed rehearsal scores."""
RESULT = "tuned.json"
"""What a tuning writes into its folder."""
RANDOM = 5
"""Settings drawn at random before the sampler learns, and finished ones before any is stopped early."""
WORTH_PROCESSES = 20.0
"""Seconds of one choice's rehearsals below which starting processes costs more than it saves."""


def search(
    plan: Plan,
    prepared: Prepared,
    store: Store | None = None,
    *,
    specs: Sequence[Spec] = (),
    budget: int = BUDGET,
    objective: Objective = "ncc",
    oracle: bool = False,
    runner: Runner = HERE,
    progress: Progress = lambda what, fraction: None,
    foretold: Foretold | None = None,
) -> Tuned:
    """Chooses settings of attacks on rehearsals that are at hand; see :func:`leakmap.auditing.tune.tune`.

    They are written to ``tuned.json`` in the store's folder.

    Args:
        plan: The audit to come.
        prepared: Its setups, with rehearsals.
        store: Where finished rehearsals are kept; None keeps nothing.
        specs: Attacks to tune in turn, each with the settings that stay fixed; by default the plan's, or the members of
            the suite that apply.
        budget: Settings to try of each attack. Raised later, the same tuning goes on.
        objective: ``ncc`` (normalized cross-correlation), ``ssim`` or ``psnr``; its mean is maximised.
        oracle: Tune on the victims themselves: an upper bound, and called ``oracle-tuned`` for good.
        runner: Where to run; what only lives in this process runs here.
        progress: Called with what is being done and the finished fraction.
        foretold: Called with what is about to be run, where something is; None estimates nothing.

    Raises:
        BadSetting: there is nothing to tune or to rehearse on, or every rehearsal failed.
        StoreError: the folder holds another tuning.
        KeyboardInterrupt: after storing what is finished.
    """
    import optuna

    groups = prepared.main.groups
    plan = granting(plan, groups)
    pictures = groups.victims if oracle else groups.rehearsals
    column: Column = "oracle-tuned" if oracle else "rehearsal-tuned"
    clients = _Clients(plan, prepared.main, store, "victims" if oracle else "rehearsals", objective, runner)
    if not len(pictures):
        raise BadSetting("At least 1 rehearsal is needed: rehearsals=4, or --rehearsals 4.")
    specs = list(specs) or _to_tune(clients)
    _check(plan, specs, budget, objective)
    if store is not None:
        decided = {"column": column, "objective": objective, "attacks": list(map(str, specs))}
        store.claim({**asdict(plan), **decided, "contents": prepared.main.digest}, "tuning")
    if foretold is not None and not _finished(store, budget):
        foretold(_expected(clients, specs, budget))
    found: dict[str, TunedAttack] = {}
    with _studies(store) as study:
        for place, spec in enumerate(specs):

            def heard(what: str, fraction: float, place: int = place) -> None:
                progress(what, (place + fraction) / len(specs))

            found[spec.name] = _search(clients, spec, study(spec.name), budget, heard)
    tries = [one for attack in found.values() for one in attack.tried]
    if all(len(one.failures) == len(one.scores) for one in tries):
        raise BadSetting(f"Every rehearsal failed, the first with {tries[0].failures[0]}")
    on = facts(plan, prepared.main), tuple(groups.digests(pictures))
    versions = {**versions_of(torch.device(runner.here.device)), "optuna": optuna.__version__}
    tuned = Tuned(column, objective, budget, len(pictures), found, *on, versions)
    if store is not None:
        write_json(store.folder / RESULT, asdict(tuned))
    return tuned


def _to_tune(clients: "_Clients") -> list[Spec]:
    """The plan's attack; of a suite, the members that would run against such a client and can be tuned."""
    attack = clients.plan.attack
    if attack.name not in MEMBERS:
        return [attack]
    observation = seen_by_server(clients.trials(attack)[0], clients.setup)
    return [member for member in applying(attack, observation) if attacks.tunables(member.name)]


def _finished(store: Store | None, budget: int) -> bool:
    """Whether the folder holds the result of so many choices already."""
    found = None if store is None else read_json(store.folder / RESULT)
    return isinstance(found, dict) and found.get("budget", 0) >= budget


def _expected(clients: "_Clients", specs: Sequence[Spec], budget: int) -> Expected:
    """What is run at most: all rehearsals of all choices, those too that are finished."""
    setups, runner = {clients.setup.digest: clients.setup}, clients.runner
    parts = [
        expected(
            clients.trials(spec),
            setups,
            runner,
            None if clients.store is None else clients.store.folder / FOLDER,
            times=budget if _space(spec) else 1,
            worth=WORTH_PROCESSES,
        )
        for spec in specs
    ]
    seconds = [part.seconds for part in parts if part.seconds is not None]
    return replace(
        parts[0],
        runs=sum(part.runs for part in parts),
        seconds=sum(seconds) if len(seconds) == len(parts) else None,
        processes=None if parts[0].processes is None else max(part.processes or 0 for part in parts),
        fitting=reduce(add, fits) if (fits := [part.fitting for part in parts if part.fitting]) else None,
        at_most=True,
    )


def _check(plan: Plan, specs: Sequence[Spec], budget: int, objective: str) -> None:
    for spec in specs:
        check_needs(attacks.build(spec), plan.threat)
    if budget < 1:
        raise BadSetting(f"A budget of at least 1 setting is needed; got {budget}.")
    if objective not in WORST:
        raise BadSetting(f"An objective is one of {', '.join(WORST)}; got {objective!r}.")
    if not any(map(_space, specs)):
        names = ", ".join(sorted({name for spec in specs for name in attacks.tunables(spec.name)})) or "none"
        raise BadSetting(f"Nothing of {' and '.join(map(str, specs))} is left to tune (tunable: {names}).")


@dataclass(frozen=True)
class _Clients:
    """Whom to rehearse on, and how."""

    plan: Plan
    setup: Setup
    store: Store | None
    group: Literal["victims", "rehearsals"]
    objective: Objective
    runner: Runner

    def trials(self, attack: Spec) -> list[Trial]:
        """One for each client."""
        clients = len(getattr(self.setup.groups, self.group))
        return rehearsals(self.plan, self.setup.digest, attack, self.group, clients)

    def value(self, outcome: Outcome) -> float:
        if outcome.score is None:
            return WORST[self.objective]
        if self.objective != "ncc":
            return statistics.fmean(outcome.score.values[self.objective])
        truth = held_by(outcome.trial, self.setup, outcome.score.places).pictures
        return ncc(outcome.score.pictures, truth)


class _StoppedEarly(Exception):
    """The rest of a choice's rehearsals is not worth running."""


def _rehearse(
    clients: _Clients,
    attack: Spec,
    hopeless: Callable[[list[float]], bool],
    told: Callable[[float], None],
    fitting: Callable[[float], None],
) -> tuple[Try, list[Outcome]]:
    """Rehearses one choice of settings on client after client, until it is hopeless.

    Clients may finish in any order but count in their own, so that the number of processes changes nothing.
    """
    planned = clients.trials(attack)
    outcomes: dict[int, Outcome] = {}
    scores: list[float] = []
    fractions = dict.fromkeys((trial.key for trial in planned), 0.0)

    def count(outcome: Outcome) -> None:
        outcomes[outcome.trial.client] = outcome
        report(outcome.trial.key, 1.0)
        while len(scores) in outcomes:
            scores.append(clients.value(outcomes[len(scores)]))
            if hopeless(scores) and len(scores) < len(planned):
                raise _StoppedEarly

    def done(outcome: Outcome) -> None:
        if clients.store is not None:
            clients.store.put(outcome)
        count(outcome)

    def report(key: str, fraction: float) -> None:
        fractions[key] = max(fractions[key], fraction)
        told(statistics.fmean(fractions.values()))

    try:
        for trial in planned:
            if clients.store is not None and (stored := clients.store.get(trial)) is not None:
                count(stored)
        missing = [trial for trial in planned if trial.client not in outcomes]
        chosen, jobs = jobs_of(missing, {clients.group: clients.setup}, clients.store, clients.runner)
        run_trials(chosen, jobs, done, report, fitting)
    except _StoppedEarly:
        pass
    counted = [outcomes[client] for client in range(len(scores))]
    failures = tuple(textwrap.shorten(": ".join(o.failure), 400) for o in counted if o.failure)
    return Try(attack.params, tuple(scores), len(scores) < len(planned), failures), counted


def _search(clients: _Clients, spec: Spec, study: "Study", budget: int, told: Progress) -> TunedAttack:
    """Tries the default settings, then what the sampler proposes.

    Optuna is told the gain over the default on the same clients: easy and hard clients then weigh alike, whichever
    come first. It is not told of a default outside the range, such as a weight of 0 on a logarithmic one. The sampler
    is seeded anew for every choice, so that it depends on what was found before and on nothing else.
    """
    import optuna

    defaults = _defaults(spec)
    marks = _space(spec)
    space = {key: _distribution(mark, defaults[key]) for key, mark in marks.items()}
    budget = budget if space else 1

    def heard(number: int) -> Callable[[float], None]:
        what = f"{spec.name}: setting {number + 1} of {budget}"
        return lambda fraction: told(what, (number + fraction) / budget)

    def fitting(fraction: float) -> None:
        told(f"{spec.name}: {FITTING}", fraction)

    default, outcomes = _rehearse(clients, Spec(spec.name, defaults), lambda scores: False, heard(0), fitting)
    if _quick(outcomes) and clients.runner.here.device == clients.runner.device:
        clients = replace(clients, runner=clients.runner.here)
    known = {key: defaults[key] for key in marks}
    if all(known[k] in m.choices if m.choices else m.low <= known[k] <= m.high for k, m in marks.items()):
        steps = dict.fromkeys(range(len(default.scores)), 0.0)
        study.add_trial(optuna.create_trial(params=known, distributions=space, value=0.0, intermediate_values=steps))
    tried = [default]
    for number in range(1, budget):
        seed = derive(clients.plan.seed, "tune", spec.name, number) % 2**32
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM, multivariate=True)
        asked = study.ask(space)

        def hopeless(scores: list[float], asked: Any = asked) -> bool:
            gain = statistics.fmean(scores) - statistics.fmean(default.scores[: len(scores)])
            asked.report(gain, len(scores) - 1)
            return asked.should_prune()

        chosen = {key: float(f"{v:.3g}") if isinstance(v, float) else v for key, v in asked.params.items()}
        one, _ = _rehearse(clients, Spec(spec.name, defaults | chosen), hopeless, heard(number), fitting)
        tried.append(one)
        state = optuna.trial.TrialState.PRUNED if one.stopped else optuna.trial.TrialState.COMPLETE
        study.tell(asked, None if one.stopped else one.score - default.score, state)
    best = max((one for one in tried if not one.stopped), key=lambda one: one.score)
    return TunedAttack(best.settings, best.score, default.score, tuple(tried))


def _quick(outcomes: Sequence[Outcome]) -> bool:
    """Whether starting processes costs more than it saves; never where a rehearsal failed, as its process may have."""
    if any(outcome.failure for outcome in outcomes):
        return False
    return len(outcomes) * min(outcome.seconds for outcome in outcomes) < WORTH_PROCESSES


def _space(spec: Spec) -> dict[str, Tunable]:
    return {key: mark for key, mark in attacks.tunables(spec.name).items() if key not in spec.params}


def _defaults(spec: Spec) -> dict[str, Any]:
    """Every setting, at its default or as it was fixed."""
    known = {key: parameter.default for key, parameter in attacks.settings(spec.name).items()}
    return {key: value for key, value in known.items() if isinstance(value, Scalar)} | spec.params


def _distribution(mark: Tunable, default: Scalar) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if mark.choices:
        return CategoricalDistribution(mark.choices)
    if isinstance(default, int):
        return IntDistribution(int(mark.low), int(mark.high), log=mark.log)
    return FloatDistribution(mark.low, mark.high, log=mark.log)


@contextmanager
def _studies(store: Store | None) -> Iterator[Callable[[str], "Study"]]:
    """Makes studies by name, and holds back Optuna's log and its notes about features that may change.

    The journal is for Optuna's dashboard: every call writes it anew, from the stored rehearsals.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage, pruner = None, optuna.pruners.MedianPruner(n_startup_trials=RANDOM)
    if store is not None:
        path = store.folder / "journal.jsonl"
        for left in (path, path.with_name(f"{path.name}.lock")):
            left.unlink(missing_ok=True)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield lambda name: optuna.create_study(
                storage=storage, study_name=name, direction="maximize", pruner=pruner
            )
    finally:
        optuna.logging.set_verbosity(before)
