"""Where jobs are computed, and the one way to compute them: a process that dies takes one job with it, not the rest."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch

from leakmap.attacker.reconstruction import Tick
from leakmap.errors import WorkerDied
from leakmap.runs.fitting import FOLDER, forget_fitted
from leakmap.runs.jobs import InMemory, Job, Report, SetupFile, Source, TrialJob, fit_jobs, forget_setups
from leakmap.runs.pool import run_in_pool
from leakmap.runs.run import failed
from leakmap.runs.setup import Setup
from leakmap.runs.store import Store
from leakmap.runs.trial import Outcome, Trial

FITTING = "fitting the attack"
"""What is said to be done before the first trial, where an attack is fitted."""

T = TypeVar("T")
J = TypeVar("J", bound=Job)


class Runner(Protocol):
    """Runs jobs somewhere and hands every result to ``done``, in this process."""

    @property
    def device(self) -> str:
        """Where the jobs are computed."""
        ...

    @property
    def here(self) -> "Local":
        """This process, for what cannot be sent elsewhere or is not worth it."""
        ...

    def __call__(self, jobs: Sequence[Job[T]], done: Callable[[str, T], None], report: Report) -> None:
        """Runs them.

        Args:
            jobs: What to run.
            done: Called with the key of each job and what it made, as it comes.
            report: Called with the progress of running jobs.

        Raises:
            WorkerDied: a process ended in the middle of a job.
        """
        ...


@dataclass(frozen=True)
class Local:
    """Runs jobs on this machine.

    Args:
        workers: Processes of one thread each; 0 computes in this one.
        device: Where to compute.
        threads: In which this process computes: by default one, so that results do not depend on the number of
            processes; None leaves torch's own number.
    """

    workers: int
    device: str = "cpu"
    threads: int | None = 1

    @property
    def here(self) -> "Local":
        """This process, on the same device."""
        return replace(self, workers=0)

    def __call__(self, jobs: Sequence[Job[T]], done: Callable[[str, T], None], report: Report) -> None:
        """Runs them."""
        if self.workers:
            run_in_pool(jobs, done, report, workers=self.workers, device=self.device)
            return
        try:
            with nullcontext() if self.threads is None else in_threads(self.threads):
                for job in jobs:
                    done(job.key, job(self.device, lambda fraction, key=job.key: report(key, fraction)))
        finally:
            forget_setups()
            forget_fitted()


HERE = Local(0)
"""This process, in one thread."""


@contextmanager
def in_threads(count: int) -> Iterator[None]:
    """Has torch compute in so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_jobs(
    runner: Runner,
    jobs: Sequence[J],
    done: Callable[[str, T], None],
    told: Report,
    dead: Callable[[J, WorkerDied], T],
) -> None:
    """Runs jobs; one that ends its process even when it runs alone is given up, and the rest goes on.

    Args:
        runner: Where.
        jobs: Each with a key of its own.
        done: Called with the key of each job and what became of it.
        told: Called with the progress of running jobs.
        dead: What becomes of a job that was given up.
    """
    left = {job.key: job for job in jobs}

    def finished(key: str, made: T) -> None:
        del left[key]
        done(key, made)

    while left:
        try:
            runner(list(left.values()), finished, told)
        except WorkerDied as error:
            for key in [key for key in left if key in error.keys] or list(left):
                try:
                    runner([left[key]], finished, told)
                except WorkerDied as alone:
                    finished(key, dead(left[key], alone))


def run_trials(
    runner: Runner, jobs: Sequence[TrialJob], done: Callable[[Outcome], None], told: Report, fitting: Tick
) -> None:
    """Runs trials, after what their attacks are fitted to.

    A trial that ends its process even when it runs alone is a failure on record, and the rest goes on.

    Args:
        runner: Where.
        jobs: Of the trials; see :func:`jobs_of` where their setups are at hand.
        done: Called with each outcome, as it comes.
        told: Called with the progress of running trials.
        fitting: Called with the finished fraction of all that is fitted first, where something is.
    """
    fits = fit_jobs(jobs)
    fractions = {fit.key: 0.0 for fit in fits}

    def heard(key: str, fraction: float) -> None:
        fractions[key] = max(fractions[key], fraction)
        fitting(sum(fractions.values()) / len(fractions))

    # Why a fit failed, the trials that wait for it will say.
    run_jobs(runner, fits, lambda key, why: heard(key, 1.0), heard, lambda fit, error: str(error))
    run_jobs(runner, jobs, lambda key, outcome: done(outcome), told, lambda job, error: failed(job.trial, error))


def jobs_of(
    trials: Sequence[Trial], setups: Mapping[str, Setup], store: Store | None, runner: Runner
) -> tuple[Runner, list[TrialJob]]:
    """The jobs of trials whose setups are at hand, and the runner that can compute them.

    A process finds a setup as a file in the store's folder. Without a folder, or with a module or a loss that only
    lives in this process, the jobs are for this process.

    Args:
        trials: What to run.
        setups: By the name that their files get in the folder.
        store: Whose folder holds the files.
        runner: Where to run, if that can be.
    """
    if store is None or any(setup.only_here for setup in setups.values()):
        runner = runner.here
    sources: dict[str, Source] = {}
    for name, setup in setups.items() if trials else ():
        if store is None or runner == runner.here:
            sources[setup.digest] = InMemory(setup)
        else:
            path = store.folder.resolve() / f"{name}.safetensors"
            setup.save(path)
            sources[setup.digest] = SetupFile(path, setup.network.model, setup.network.task.loss)
    fitted = None if store is None else store.folder.resolve() / FOLDER
    return runner, [TrialJob(trial, sources[trial.setup], fitted) for trial in trials]
