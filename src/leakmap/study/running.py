"""Running a study: what is missing is run, wherever there is room; one writer, the caller.

A study folder holds ``study.toml`` (the file), ``trials/`` (one file for each run, by key), ``networks/`` (briefly
trained weights, by name), ``fitted/`` (what attacks were fitted to) and ``cells/`` (what was concluded). Resuming is
running the keys that are missing.
"""

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leakmap.errors import StoreError, WorkerDied
from leakmap.plan.plan import Progress
from leakmap.runs.fitting import FOLDER
from leakmap.runs.jobs import Job, Report, TrialJob, fit_jobs
from leakmap.runs.run import failed
from leakmap.runs.runner import Runner
from leakmap.runs.store import Store
from leakmap.runs.trial import Outcome
from leakmap.study.file import Study
from leakmap.study.planning import Planned, jobs, of_shard, only, planned, trainings


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


def standing(study: Study, folder: Path) -> Standing:
    """Reads where a study stands.

    Raises:
        UsageError: a cell cannot be run as it is written.
    """
    return _standing(planned(study), Store(folder))


def _standing(cells: Sequence[Planned], store: Store) -> Standing:
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
    runner: Runner,
    *,
    filters: Sequence[str] = (),
    shard: str | None = None,
    limit: int | None = None,
    retry_failed: bool = False,
    progress: Progress = lambda what, fraction: None,
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

    Raises:
        UsageError: a cell cannot be run as it is written, or the folder cannot be used.
        KeyboardInterrupt: after storing what is finished.
    """
    progress("planning", 0.0)
    store, trained = Store(folder), folder.resolve() / "networks"
    store.make()
    store.sweep()
    if study.text:
        store.write_text("study.toml", study.text)
    cells = planned(study)
    before = _standing(cells, store)
    chosen = {trial.key for one in only(cells, filters) for trial in one.all()}
    again = before.failed if retry_failed else {}
    open_ = {*before.missing, *again}
    todo = [key for key in before.keys if key in chosen and key in open_]
    todo = list(of_shard(todo, shard))[:limit]
    work = jobs(cells, set(todo), trained, folder.resolve() / FOLDER)
    _first(runner, trainings(cells, set(todo), trained), "training {} networks briefly", progress)
    _first(runner, fit_jobs(work), "fitting {} attacks", progress)
    finished: set[str] = set()
    fractions: dict[str, float] = {}

    def told(key: str, fraction: float) -> None:
        fractions[key] = max(fractions.get(key, 0.0), fraction)
        progress(f"run {len(finished)} of {len(work)}", sum(fractions.values()) / max(1, len(work)))

    def done(outcome: Outcome) -> None:
        store.put(outcome)
        finished.add(outcome.trial.key)
        told(outcome.trial.key, 1.0)

    _run_all(runner, work, done, told)
    return _standing(cells, store)


def _first(runner: Runner, work: Sequence[Job[Any]], what: str, progress: Progress) -> None:
    """Runs what the runs wait for."""
    fractions: dict[str, float] = {}

    def told(key: str, fraction: float) -> None:
        fractions[key] = fraction
        progress(what.format(len(work)), sum(fractions.values()) / len(work))

    if work:
        runner(work, lambda result: None, told)


def _run_all(runner: Runner, work: Sequence[TrialJob], done: Callable[[Outcome], None], told: Report) -> None:
    """Runs jobs; one that ends its process even when it runs alone is a failure on record, and the rest goes on."""
    left = {job.key: job for job in work}

    def finished(outcome: Outcome) -> None:
        left.pop(outcome.trial.key)
        done(outcome)

    suspects: Collection[str] = ()
    while left:
        alone = [left[key] for key in suspects if key in left]
        try:
            for job in alone:
                runner([job], finished, told)
            if left:
                runner(list(left.values()), finished, told)
        except WorkerDied as error:
            running = [key for key in error.keys if key in left]
            if len(running) == 1 and running[0] in {job.key for job in alone}:
                finished(failed(left[running[0]].trial, error))
            suspects = running or list(left)


def merge(folder: Path, sources: Sequence[Path]) -> dict[str, int]:
    """Brings the runs of several folders into one; what is there already stays, a failure gives way to a score.

    Args:
        folder: Where to.
        sources: Folders of the same study, such as those of its shards.

    Returns:
        Source -> how many of its runs were taken.

    Raises:
        StoreError: a source holds no runs.
    """
    store, taken = Store(folder), {}
    store.make()
    for source in sources:
        if not (source / "trials").is_dir():
            raise StoreError(f"{source} holds no runs of a study; give folders that 'leakmap study run' wrote.")
        other, count = Store(source), 0
        for key in sorted(other.keys()):
            outcome = other.read(key)
            mine = store.read(key)
            better = mine is None or (mine.failure is not None and outcome is not None and outcome.failure is None)
            if outcome is not None and better:
                store.put(outcome)
                count += 1
        if (source / "study.toml").is_file() and not (folder / "study.toml").exists():
            store.write_text("study.toml", (source / "study.toml").read_text(encoding="utf-8"))
        for made in (*source.glob("networks/*.safetensors"), *source.glob(f"{FOLDER}/*.safetensors")):
            own = folder / made.relative_to(source)
            if not own.exists():
                own.parent.mkdir(exist_ok=True)
                temporary = own.with_name(f".{own.name}.part")
                shutil.copyfile(made, temporary)
                temporary.replace(own)
        taken[str(source)] = count
    return taken
