"""Jobs: what any process can compute."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from leakmap.models.network import user_code
from leakmap.registry.spec import Spec
from leakmap.runs.run import failed, run
from leakmap.runs.testbed import Stage
from leakmap.runs.trial import Outcome, Trial

Report = Callable[[str, float], None]
"""``(key of a job, finished fraction)``."""


Told = Callable[[float], None]
"""``(finished fraction)``; may raise KeyboardInterrupt to stop."""


Made = TypeVar("Made", covariant=True)


STAGES_HELD = 4
"""Stages that a process keeps at hand."""


class Job(Protocol[Made]):
    """What any process can compute; it is sent there, so all that it holds can be pickled."""

    @property
    def key(self) -> str:
        """Its identity."""
        ...

    def __call__(self, device: str, told: Told) -> Made:
        """Computes on a device."""
        ...


Source = Callable[[], Stage]
"""Makes a stage, wherever it is called."""


@dataclass(frozen=True)
class Held:
    """A stage at hand, for jobs of this process."""

    stage: Stage

    def __call__(self) -> Stage:
        """The stage."""
        return self.stage


@dataclass(frozen=True)
class StageFile:
    """A stage as another process finds it.

    Args:
        path: Its file.
        model: The architecture, if it is a user's own file that the worker shall run.
        loss: The loss, likewise.
    """

    path: Path
    model: Spec
    loss: Spec

    def __call__(self) -> Stage:
        """Reads it."""
        return Stage.load(self.path, user_code(self.model, self.loss))


@dataclass(frozen=True)
class Play:
    """The job of running a trial. A stage that cannot be made is the trial's failure.

    Args:
        trial: What to run.
        source: Makes its stage.
    """

    trial: Trial
    source: Source

    @property
    def key(self) -> str:
        """The trial's."""
        return self.trial.key

    def __call__(self, device: str, told: Told) -> Outcome:
        """Runs it."""
        try:
            stage = held(self.trial.stage, self.source, device)
        except Exception as error:
            return failed(self.trial, error)
        return run(self.trial, stage, told)


_stages: OrderedDict[tuple[str, str], Stage] = OrderedDict()


def held(digest: str, source: Source, device: str) -> Stage:
    """A stage of this digest on a device, made only if it is not among the last ones."""
    if (digest, device) not in _stages:
        _stages[digest, device] = source().to(device)
        while len(_stages) > STAGES_HELD:
            _stages.popitem(last=False)
    _stages.move_to_end((digest, device))
    return _stages[digest, device]
