"""Jobs: what any process can compute, and how a setup gets there."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from leakmap.models.network import user_code
from leakmap.registry.spec import Spec
from leakmap.runs.run import failed, run
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Outcome, Trial

Report = Callable[[str, float], None]
"""``(key of a job, finished fraction)``."""


Tick = Callable[[float], None]
"""``(finished fraction)``; may raise KeyboardInterrupt to stop."""


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
    """

    trial: Trial
    source: Source

    @property
    def key(self) -> str:
        """The trial's."""
        return self.trial.key

    def __call__(self, device: str, told: Tick) -> Outcome:
        """Runs it."""
        try:
            setup = _setup_of(self.trial.setup, self.source, device)
        except Exception as error:
            return failed(self.trial, error)
        return run(self.trial, setup, told)


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
