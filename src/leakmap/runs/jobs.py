"""Jobs: what any process can compute, and how a setup gets there."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from leakmap.attacker.attacks import attacks
from leakmap.attacker.protocol import Attack
from leakmap.attacker.reconstruction import Tick
from leakmap.errors import in_words
from leakmap.models.network import user_code
from leakmap.registry.spec import Spec
from leakmap.runs.fitting import path_of, recipe
from leakmap.runs.run import failed, fitted_for, run
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Outcome, Trial

Report = Callable[[str, float], None]
"""``(key of a job, finished fraction)``."""


Made = TypeVar("Made", covariant=True)


SETUPS_HELD = 4
"""Setups that a process keeps at hand."""


class Job(Protocol[Made]):
    """What any process can compute; it is sent there, so all that it holds can be pickled."""

    @property
    def key(self) -> str:
        """Its identity."""
        ...

    def __call__(self, device: str, told: Tick) -> Made:
        """Computes on a device."""
        ...


Source = Callable[[], Setup]
"""Makes a setup, wherever it is called."""


@dataclass(frozen=True)
class InMemory:
    """A setup at hand, for jobs of this process."""

    setup: Setup

    def __call__(self) -> Setup:
        """The setup."""
        return self.setup


@dataclass(frozen=True)
class SetupFile:
    """A setup as another process finds it.

    Args:
        path: Its file.
        model: The architecture, if it is a user's own file that the worker shall run.
        loss: The loss, likewise.
    """

    path: Path
    model: Spec
    loss: Spec

    def __call__(self) -> Setup:
        """Reads it."""
        return Setup.load(self.path, user_code(self.model, self.loss))


@dataclass(frozen=True)
class TrialJob:
    """The job of running a trial. A setup that cannot be made is the trial's failure.

    Args:
        trial: What to run.
        source: Makes its setup.
        fitted: Folder of what attacks are fitted to; None keeps that in the process.
    """

    trial: Trial
    source: Source
    fitted: Path | None = None

    @property
    def key(self) -> str:
        """The trial's."""
        return self.trial.key

    def __call__(self, device: str, told: Tick) -> Outcome:
        """Runs it."""
        try:
            setup = _setup_of(self.trial.setup, self.source, device)
        except (Exception, SystemExit) as error:
            return failed(self.trial, error)
        return run(self.trial, setup, told, self.fitted)


@dataclass(frozen=True)
class FitJob:
    """The job of fitting an attack before the trials that wait for it, into a folder.

    Args:
        key: Of the recipe.
        trials: All that wait; each finds the one fit, unless captured clients got networks of their own.
        source: Makes their setup.
        fitted: The folder.
    """

    key: str
    trials: tuple[Trial, ...]
    source: Source
    fitted: Path

    def __call__(self, device: str, told: Tick) -> str | None:
        """Fits what is missing; returns why that failed, if it did: the trials will say so too."""
        count = len(self.trials)
        try:
            setup = _setup_of(self.trials[0].setup, self.source, device)
            for place, trial in enumerate(self.trials):
                fitted_for(trial, setup, self.fitted, lambda f, p=place: told((p + f) / count))
        except (Exception, SystemExit) as error:
            return in_words(error)
        return None


def fit_jobs(jobs: Iterable[TrialJob]) -> list[FitJob]:
    """What trials that are to run in several processes wait for and the folder lacks, each once.

    Trials fit for themselves what nobody has fitted; these jobs, run first, keep two processes from the same work.
    """
    known: dict[str, Attack] = {}
    waiting: dict[str, list[TrialJob]] = {}
    for job in jobs:
        named = str(job.trial.attack)
        if named not in known:
            known[named] = attacks.build(job.trial.attack)
        how = known[named]
        if how.fits and job.fitted is not None and not path_of(job.fitted, key := recipe(job.trial, how)).is_file():
            waiting.setdefault(key, []).append(job)
    return [
        FitJob(key, tuple(job.trial for job in those), those[0].source, those[0].fitted)
        for key, those in waiting.items()
        if those[0].fitted is not None
    ]


_setups: OrderedDict[tuple[str, str], Setup] = OrderedDict()


def _setup_of(digest: str, source: Source, device: str) -> Setup:
    """A setup of this digest on a device, made only if it is not among the last ones."""
    if (digest, device) not in _setups:
        _setups[digest, device] = source().to(device)
        while len(_setups) > SETUPS_HELD:
            _setups.popitem(last=False)
    _setups.move_to_end((digest, device))
    return _setups[digest, device]


def forget_setups() -> None:
    """Lets go of the setups that this process keeps at hand."""
    _setups.clear()
