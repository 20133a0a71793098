"""How long runs will take, before they start: one client step is timed, the rest is what the attack says it costs."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.strongest import MEMBERS, SUITE, applying
from leakmap.attacker.protocol import Attack, Cost, FitCost
from leakmap.attacker.setting import Setting
from leakmap.attacker.suite import Strongest
from leakmap.client.simulate import Batch, simulate
from leakmap.errors import LeakmapError
from leakmap.local_rule import LocalRule
from leakmap.models.network import Network
from leakmap.observation.observation import Observation
from leakmap.runs.fitting import path_of
from leakmap.runs.run import held_by, network_of, recipe_for, seen_by_server, setting_for
from leakmap.runs.runner import Local, Runner, in_threads
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Trial
from leakmap.seeds import generator

EVALUATION = 2.5
"""Client steps in one evaluation of a matching term and its gradient."""
CLOSED_FORM = 20
"""Client steps in an attack that does not iterate."""
ITERATION = 0.001
"""Seconds of an iteration besides the evaluations: prior and optimiser."""
RUN = 0.05
"""Seconds of a run besides the attack: the Observation, the line-up, the scores."""
STARTUP = 4.0
"""Seconds until a process that was started computes."""
SIMULATED = 0.0015
"""Seconds of a simulated client besides its step: drawing and varying pictures, reading what it sends."""
SIDE = 1024
"""Of the matrices whose product says how fast maps are fitted."""
TIMING = 0.3
"""Seconds after which a client step is not timed again."""


@dataclass(frozen=True)
class Expected:
    """What is about to be run.

    Args:
        clients: Whose pictures are attacked.
        runs: How many are missing.
        seconds: Until all are finished; None where that cannot be told. Of a cluster, the computing in all.
        processes: That share them; 0 is this one, None is a cluster's.
        fitting: What is fitted first, which the seconds leave out; None where nothing is.
        at_most: Whether runs may be left out on the way, as in a tuning.
        without: Why the searches of a suite will not run; empty where they will.
    """

    clients: int
    runs: int
    seconds: float | None
    processes: int | None
    fitting: "Fitting | None" = None
    at_most: bool = False
    without: str = ""


@dataclass(frozen=True)
class Fitting:
    """What is about to be fitted before any client answers.

    Args:
        fits: How many: one for each setting that clients are attacked in.
        clients: That are simulated, for all of them together.
        memory: Bytes held at most at once, of what is read of simulated clients.
        seconds: Until all are finished.
        at_most: Whether less may do: a suite leaves out what its rehearsals show to be needless.
    """

    fits: int
    clients: int
    memory: int
    seconds: float
    at_most: bool = False

    def __add__(self, then: "Fitting") -> "Fitting":
        """One after the other."""
        return Fitting(
            self.fits + then.fits,
            self.clients + then.clients,
            max(self.memory, then.memory),
            self.seconds + then.seconds,
            self.at_most or then.at_most,
        )


Foretold = Callable[[Expected], None]
"""Called with what is about to be run."""


@dataclass(frozen=True)
class Pace:
    """How fast a client is simulated here.

    Args:
        step: Seconds of one client's local training in one thread.
        observation: What the server sees of it; None leaves open which members of a suite apply, so all are counted.
        left: Members that the suite leaves out, as they take too long.
    """

    step: float
    observation: Observation | None = None
    left: frozenset[str] = frozenset()

    def seconds(self, trial: Trial) -> float:
        """Of one run, whose attack is fitted. What it stops early is not foreseen."""
        attack = trial.attack
        if trial.scoring == "informed":
            # A simulated client for each candidate, and one for each of both updates.
            return RUN + (trial.gallery + 2) * self.step
        if attack.name not in MEMBERS or self.observation is None:
            return RUN + self._once_fitted(attacks.build(attack))
        if attack.params.get("budget") is not None:
            return RUN + float(attack.params["budget"])
        members = [one for one in applying(attack, self.observation) if one.name not in self.left]
        each = [self._once_fitted(attacks.build(one)) for one in members]
        # A suite that rehearsed runs the closed forms and one search at most, the costliest one at worst.
        return RUN + (
            max(each, default=0.0) if attack.name == SUITE and self.observation.public is not None else sum(each)
        )

    def fitting(self, cost: FitCost) -> float:
        """Seconds of a fit. What rehearsals show to be needless is not foreseen."""
        simulated = cost.clients * (self.step + SIMULATED)
        return simulated + cost.operations / operations_a_second() + sum(map(self._attacking, cost.rehearsed))

    def _once_fitted(self, how: Attack) -> float:
        # What was fitted and does not iterate decodes an answer, in no time beside a client step.
        decodes = how.fits and not how.cost.members and not how.cost.iterations
        return 0.0 if decodes else sum(map(self._attacking, how.cost.parts))

    def _attacking(self, cost: Cost) -> float:
        if cost.seconds is not None:
            return cost.seconds
        if not cost.iterations:
            return CLOSED_FORM * self.step
        return EVALUATION * self.step * cost.total + ITERATION * cost.iterations * cost.restarts


def step_seconds(trial: Trial, setup: Setup) -> float:
    """Seconds of one local training of a trial's client in one thread: the median of a few, after the first.

    Raises:
        ModelError: the step fails.
    """
    return _timed(network_of(trial, setup), trial.rule, held_by(trial, setup))


def _timed(network: Network, rule: LocalRule, batch: Batch) -> float:
    spent: list[float] = []
    with in_threads(1), torch.random.fork_rng(devices=[]):
        while len(spent) < 5 and sum(spent) < TIMING:
            began = time.perf_counter()
            simulate(network, rule, batch)
            if network.device.type == "cuda":
                torch.cuda.synchronize(network.device)
            spent.append(time.perf_counter() - began)
    return statistics.median(spent[1:] or spent)


def expected(
    trials: Sequence[Trial],
    setups: Mapping[str, Setup],
    runner: Runner,
    fitted: Path | None = None,
    *,
    times: int = 1,
    worth: float = 0.0,
) -> Expected:
    """Foresees runs. Whatever goes wrong meanwhile, the runs themselves will say.

    Args:
        trials: What is missing.
        setups: By digest.
        runner: Where they will be computed.
        fitted: Folder of what attacks are fitted to.
        times: How often as many are run one after the other, as a tuning does; some may then be left out.
        worth: Seconds of computing below which no processes are started.
    """
    paces = _Paces(setups, runner.here.device)
    try:
        total = sum(map(paces.seconds, trials))
    except (Exception, SystemExit):
        total = None
    processes = min(runner.workers, len(trials)) if isinstance(runner, Local) else None
    if total is not None and total < worth:
        processes = 0
    each = total if total is None or not processes else STARTUP + total / processes
    return Expected(
        len({(trial.group, trial.client) for trial in trials if trial.group != "controls"}),
        times * len(trials),
        None if each is None else times * each,
        processes,
        _fitting(trials, paces, fitted, processes),
        times > 1,
    )


class _Paces:
    """How fast clients are simulated, measured once for each network and rule."""

    def __init__(self, setups: Mapping[str, Setup], device: str) -> None:
        self.setups = {digest: setup.to(device) for digest, setup in setups.items()}
        self._of: dict[tuple[str, str], Pace] = {}
        self._each: dict[tuple[str, str, str, bool], float] = {}

    def of(self, trial: Trial) -> Pace:
        """That of a trial's client."""
        key = trial.setup, str(trial.rule)
        if key not in self._of:
            setup = self.setups[trial.setup]
            self._of[key] = Pace(step_seconds(trial, setup), seen_by_server(trial, setup))
        return self._of[key]

    def seconds(self, trial: Trial) -> float:
        """Of the run of a trial, whose attack is fitted."""
        key = trial.setup, str(trial.rule), str(trial.attack), trial.scoring == "informed"
        if key not in self._each:
            pace, how = self.of(trial), attacks.build(trial.attack)
            if isinstance(how, Strongest):
                pace = replace(pace, left=how.left_out(setting_for(trial, self.setups[trial.setup])))
            self._each[key] = pace.seconds(trial)
        return self._each[key]


def fits_missing(
    trials: Sequence[Trial], setups: Mapping[str, Setup], folder: Path | None
) -> list[tuple[Trial, FitCost]]:
    """What attacks have to be fitted to before trials run, each with the first trial that waits for it.

    Args:
        trials: What is to be run.
        setups: By digest.
        folder: Of what is fitted already.
    """
    seen: set[str] = set()
    found: list[tuple[Trial, FitCost]] = []
    built = {str(trial.attack): attacks.build(trial.attack) for trial in trials}
    for trial in trials:
        how, setup = built[str(trial.attack)], setups[trial.setup]
        if not how.fits or (key := recipe_for(trial, setup, how)) in seen:
            continue
        seen.add(key)
        if folder is None or not path_of(folder, key).is_file():
            # Where nothing can be fitted, every trial that waits for it will say why.
            with suppress(LeakmapError):
                found.append((trial, how.fit_cost(setting_for(trial, setup))))
    return found


def _fitting(trials: Sequence[Trial], paces: _Paces, folder: Path | None, processes: int | None) -> Fitting | None:
    """What is fitted before trials; None where nothing is, or where that cannot be told."""
    try:
        missing = fits_missing(trials, paces.setups, folder)
        each = [paces.of(trial).fitting(cost) for trial, cost in missing]
    except (Exception, SystemExit):
        return None
    if not missing:
        return None
    at_once = processes or 1
    return Fitting(
        len(missing),
        sum(cost.clients for _, cost in missing),
        sum(sorted((cost.memory for _, cost in missing), reverse=True)[:at_once]),
        max(max(each), sum(each) / at_once),
        any(cost.rehearsed for _, cost in missing),
    )


def fitting_to(how: Attack, setting: Setting) -> Fitting | None:
    """What fitting an attack to one setting takes; None where there is nothing to fit, or where that cannot be told.

    Args:
        how: The attack.
        setting: What the server knows.
    """
    count, rule, network = setting.count, setting.rule, setting.network
    if not how.fits or count is None or rule is None or network.task.objects or not network.task.counted:
        return None
    # Noise, as constant pictures leave BatchNorm nothing to normalize by.
    pictures = torch.rand((count, *network.task.shape), generator=generator(0, "timed")).to(network.device)
    batch = Batch(pictures, torch.zeros(count, dtype=torch.int64, device=network.device))
    try:
        cost = how.fit_cost(setting)
        seconds = Pace(_timed(network, rule, batch)).fitting(cost)
    except LeakmapError:
        return None
    return Fitting(1, cost.clients, cost.memory, seconds, bool(cost.rehearsed))


@cache
def operations_a_second() -> float:
    """Floating-point operations that one thread does in a second, in a large matrix product."""
    one = torch.rand(SIDE, SIDE, generator=generator(0, "speed"))
    with in_threads(1):
        torch.mm(one, one)
        began = time.perf_counter()
        torch.mm(one, one)
    return 2 * SIDE**3 / (time.perf_counter() - began)
