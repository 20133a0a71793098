"""How long runs will take, before they start: one client step is timed, the rest is what the attack says it costs."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.strongest import MEMBERS, SUITE, applying
from leakmap.attacker.protocol import Cost
from leakmap.client.simulate import simulate
from leakmap.observation.observation import Observation
from leakmap.registry.spec import Spec
from leakmap.runs.run import held_by, network_of, seen_by_server
from leakmap.runs.runner import Local, Runner, in_threads
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Trial

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
        fits: Whether an attack is fitted first, which the seconds leave out.
        at_most: Whether runs may be left out on the way, as in a tuning.
    """

    clients: int
    runs: int
    seconds: float | None
    processes: int | None
    fits: bool = False
    at_most: bool = False


Foretold = Callable[[Expected], None]
"""Called with what is about to be run."""


@dataclass(frozen=True)
class Pace:
    """How fast a client is simulated here.

    Args:
        step: Seconds of one client's local training in one thread.
        observation: What the server sees of it; None leaves open which members of a suite apply, so all are counted.
    """

    step: float
    observation: Observation | None = None

    def seconds(self, attack: Spec) -> float:
        """Of one run of an attack that is fitted. What it stops early is not foreseen."""
        if attack.name not in MEMBERS or self.observation is None:
            return RUN + sum(map(self._attacking, attacks.build(attack).cost.parts))
        each = [self._attacking(attacks.build(one).cost) for one in applying(attack, self.observation)]
        # A suite that rehearsed runs the closed forms and one search at most, the costliest one at worst.
        return RUN + (max(each) if attack.name == SUITE and self.observation.public is not None else sum(each))

    def _attacking(self, cost: Cost) -> float:
        if not cost.iterations:
            return CLOSED_FORM * self.step
        return EVALUATION * self.step * cost.total + ITERATION * cost.iterations * cost.restarts


def step_seconds(trial: Trial, setup: Setup) -> float:
    """Seconds of one local training of a trial's client in one thread: the median of a few, after the first.

    Raises:
        ModelError: the step fails.
    """
    network, batch = network_of(trial, setup), held_by(trial, setup)
    spent: list[float] = []
    with in_threads(1), torch.random.fork_rng(devices=[]):
        while len(spent) < 5 and sum(spent) < TIMING:
            began = time.perf_counter()
            simulate(network, trial.rule, batch)
            if network.device.type == "cuda":
                torch.cuda.synchronize(network.device)
            spent.append(time.perf_counter() - began)
    return statistics.median(spent[1:] or spent)


def expected(
    trials: Sequence[Trial], setups: Mapping[str, Setup], runner: Runner, *, times: int = 1, worth: float = 0.0
) -> Expected:
    """Foresees runs. Whatever goes wrong meanwhile, the runs themselves will say.

    Args:
        trials: What is missing.
        setups: By digest.
        runner: Where they will be computed.
        times: How often as many are run one after the other, as a tuning does; some may then be left out.
        worth: Seconds of computing below which no processes are started.
    """
    try:
        total = _computing(trials, setups, runner.here.device)
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
        any(attacks.build(attack).fits for attack in {str(trial.attack) for trial in trials}),
        times > 1,
    )


def _computing(trials: Sequence[Trial], setups: Mapping[str, Setup], device: str) -> float:
    """Seconds of runs one after the other."""
    paces: dict[tuple[str, str], Pace] = {}
    each: dict[tuple[str, str, str], float] = {}
    total = 0.0
    for trial in trials:
        of = trial.setup, str(trial.rule)
        if (*of, str(trial.attack)) not in each:
            if of not in paces:
                setup = setups[trial.setup].to(device)
                paces[of] = Pace(step_seconds(trial, setup), seen_by_server(trial, setup))
            each[*of, str(trial.attack)] = paces[of].seconds(trial.attack)
        total += each[*of, str(trial.attack)]
    return total
