"""Running a study: what is missing is run, wherever there is room; one writer, the caller.

A study folder holds ``study.toml`` (the file), ``trials/`` (one file for each run, by key), ``networks/`` (briefly
trained weights, by name), ``fitted/`` (what attacks were fitted to) and ``cells/`` (what was concluded). Resuming is
running the keys that are missing.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from leakmap.errors import StoreError
from leakmap.files import write_text, written
from leakmap.plan.plan import Progress
from leakmap.runs.fitting import FOLDER
from leakmap.runs.runner import FITTING, HERE, Runner, run_jobs, run_trials
from leakmap.runs.store import STUDY, Store
from leakmap.runs.trial import Outcome
from leakmap.study.file import Study
from leakmap.study.planning import Planned, TrainJob, jobs, of_shard, only, planned, trainings


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


Foretold = Callable[[Standing, int], None]
"""Called with where the cells that were chosen stand, and how many runs are about to start."""


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
    return standing_of(planned(study, progress), store)


def standing_of(cells: Sequence[Planned], store: Store) -> Standing:
    """Where planned cells stand in a store."""
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


def run_study(
    study: Study,
    folder: Path,
    runner: Runner = HERE,
    *,
    filters: Sequence[str] = (),
    shard: str | None = None,
    limit: int | None = None,
    retry_failed: bool = False,
    progress: Progress = lambda what, fraction: None,
    foretold: Foretold | None = None,
) -> Standing:
    """Runs what is missing of a study and returns where it then stands.

    Args:
        study: The study.
        folder: Where its results lie; the same folder continues.
        runner: Where to run.
        filters: ``AXIS=VALUE``: only cells that stand there.
        shard: ``i/n``: only this share of the runs.
        limit: At most so many runs.
        retry_failed: Whether runs that failed before are run again.
        progress: Called with what is being done and the finished fraction.
        foretold: Called with where the chosen cells stand and how many runs are about to start, where any are.

    Raises:
        UsageError: a cell cannot be run as it is written, or the folder cannot be used.
        KeyboardInterrupt: after storing what is finished.
    """
    store, trained = Store(folder), folder.resolve() / "networks"
    store.claim({STUDY: study.title}, "study")
    if study.text:
        write_text(folder / "study.toml", study.text)
    cells = planned(study, progress)
    before = standing_of(cells, store)
    among = tuple(only(cells, filters))
    chosen = {trial.key for one in among for trial in one.all()}
    again = before.failed if retry_failed else {}
    open_ = {*before.missing, *again}
    todo = [key for key in before.keys if key in chosen and key in open_]
    todo = list(of_shard(todo, shard))[:limit]
    if todo and foretold is not None:
        foretold(replace(before, planned=among), len(todo))
    work = jobs(cells, set(todo), trained, folder.resolve() / FOLDER)
    _train(runner, trainings(cells, set(todo), trained), progress)
    finished: set[str] = set()
    fractions: dict[str, float] = {}

    def told(key: str, fraction: float) -> None:
        if key not in finished:
            fractions[key] = max(fractions.get(key, 0.0), fraction)
        # Only what is running is summed up: over all runs that would take longer than the runs.
        share = (len(finished) + sum(fractions.values())) / max(1, len(work))
        progress(f"run {len(finished)} of {len(work)}", share)

    with store.writing() as put:

        def done(outcome: Outcome) -> None:
            put(outcome)
            finished.add(outcome.trial.key)
            fractions.pop(outcome.trial.key, None)
            told(outcome.trial.key, 1.0)

        run_trials(runner, work, done, told, lambda fraction: progress(FITTING, fraction))
    return standing_of(cells, store)


def _train(runner: Runner, work: Sequence[TrainJob], progress: Progress) -> None:
    """Trains what can be trained; the runs of what cannot try again, and record why they fail."""
    fractions: dict[str, float] = {}

    def told(key: str, fraction: float) -> None:
        fractions[key] = fraction
        progress(f"training {len(work)} networks briefly", sum(fractions.values()) / len(work))

    run_jobs(runner, work, lambda key, why: None, told, lambda job, error: str(error))


def merge_study(folder: Path, sources: Sequence[Path]) -> dict[str, int]:
    """Brings the runs of several folders into one; what is there already stays, a failure gives way to a score.

    Args:
        folder: Where to.
        sources: Folders of the same study, such as those of its shards.

    Returns:
        Source -> how many of its runs were taken.

    Raises:
        StoreError: a source holds no runs, or a folder holds results of another schema.
    """
    store, taken = Store(folder), {}
    store.make()
    for source in sources:
        other, count = Store(source), 0
        other.check()
        if not (source / "trials").is_dir():
            raise StoreError(f"{source} holds no runs of a study; give folders that 'leakmap study run' wrote.")
        for key in sorted(other.keys()):
            outcome = other.read(key)
            mine = store.read(key)
            better = mine is None or (mine.failure is not None and outcome is not None and outcome.failure is None)
            if outcome is not None and better:
                store.put(outcome)
                count += 1
        if (source / "study.toml").is_file() and not (folder / "study.toml").exists():
            write_text(folder / "study.toml", (source / "study.toml").read_text(encoding="utf-8"))
        for made in (*source.glob("networks/*.safetensors"), *source.glob(f"{FOLDER}/*.safetensors")):
            own = folder / made.relative_to(source)
            if not own.exists():
                own.parent.mkdir(exist_ok=True)
                written(own, partial(shutil.copyfile, made))
        taken[str(source)] = count
    return taken
