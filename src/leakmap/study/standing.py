"""Where a study stands: every run by name, and what became of those that are stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leakmap.auditing.recipe import ROLES
from leakmap.plan.plan import Progress
from leakmap.runs.store import Store
from leakmap.study.file import Study
from leakmap.study.index import Status
from leakmap.study.planning import Planned, planned


@dataclass(frozen=True)
class Standing:
    """Where a study stands.

    Args:
        planned: Its cells with their runs.
        failed: Key -> ``(kind, message)`` of runs that failed.
        seconds: Key of each run that ended with a score -> wall time.
    """

    planned: tuple[Planned, ...]
    failed: dict[str, tuple[str, str]]
    seconds: dict[str, float]

    @property
    def keys(self) -> list[str]:
        """Every run of the study, each once, in order."""
        return list(dict.fromkeys(trial.key for one in self.planned for trial in one.all()))

    @property
    def missing(self) -> list[str]:
        """Runs that are neither finished nor failed, in order."""
        return [key for key in self.keys if key not in self.seconds and key not in self.failed]


def standing(study: Study, folder: Path, progress: Progress = lambda what, fraction: None) -> Standing:
    """Reads where a study stands.

    Args:
        study: The study.
        folder: Where its results lie.
        progress: Called with what is being done and the finished fraction.

    Raises:
        UsageError: a cell cannot be run as it is written, or the folder holds results of another schema.
    """
    store = Store(folder)
    store.check()
    return read_standing(planned(study, progress), store)


def read_standing(cells: Sequence[Planned], store: Store) -> Standing:
    """Where a study stands whose runs have names already: reads every outcome of theirs."""
    failures: dict[str, tuple[str, str]] = {}
    seconds: dict[str, float] = {}
    there = store.keys()
    for one in cells:
        for trial in one.all():
            if trial.key in seconds or trial.key in failures or trial.key not in there:
                continue
            if (outcome := store.get(trial)) is not None:
                if outcome.failure is not None:
                    failures[trial.key] = outcome.failure
                else:
                    seconds[trial.key] = outcome.seconds
    return Standing(tuple(cells), failures, seconds)


def groups_of(cells: Sequence[Planned]) -> dict[str, int]:
    """Key of every run, each once -> its group: the first cell that has it, and its role there."""
    found: dict[str, int] = {}
    for place, one in enumerate(cells):
        for role, trials in enumerate(one.trials.values()):
            for trial in trials:
                found.setdefault(trial.key, len(ROLES) * place + role)
    return found


def status_of(study: Study, found: Standing, seconds_left: float | None = None) -> Status:
    """What is said of where a study stands.

    Args:
        study: The study.
        found: Where it, or a part of it, stands.
        seconds_left: Seconds that its missing runs will take one after the other; None where nobody asked.
    """
    own = set(found.keys)
    failed = {key: why for key, why in found.failed.items() if key in own}
    finished = len(own & found.seconds.keys())
    return Status(study.title, study.axes, len(found.planned), len(own), finished, failed, seconds_left)
