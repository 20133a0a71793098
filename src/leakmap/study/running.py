"""Running a study: what is missing is run, wherever there is room; one writer, the caller.

A study folder holds ``study.toml`` (the file), ``trials/`` (one file for each run, by key), ``networks/`` (briefly
trained weights, by name), ``fitted/`` (what attacks were fitted to), ``cells/`` (what was concluded) and
``planned.safetensors`` (what the last run planned). Resuming is running the keys that are missing.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from leakmap.auditing.recipe import ROLES
from leakmap.errors import StoreError
from leakmap.files import write_text, written
from leakmap.plan.plan import Progress
from leakmap.runs.fitting import FOLDER
from leakmap.runs.runner import FITTING, HERE, Runner, run_jobs, run_trials
from leakmap.runs.store import STUDY, Store
from leakmap.runs.trial import Outcome
from leakmap.study.estimate import prices, seconds_left
from leakmap.study.file import Study
from leakmap.study.index import FILE, Prices, record
from leakmap.study.planning import Planned, TrainJob, files_of, jobs, of_shard, only, planned, trainings
from leakmap.study.standing import Standing, groups_of, read_standing

Foretold = Callable[[int, int, float], None]
"""Called with how many cells were chosen, how many runs are about to start, and the seconds that they will take."""


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
        foretold: Called with what is about to start, where anything is; None times no network.

    Raises:
        UsageError: a cell cannot be run as it is written, or the folder cannot be used.
        KeyboardInterrupt: after storing what is finished.
    """
    store, trained = Store(folder), folder.resolve() / "networks"
    store.claim({STUDY: study.title}, "study")
    if study.text:
        write_text(folder / "study.toml", study.text)
    cells = planned(study, progress)
    before = read_standing(cells, store)
    for key in before.failed:
        store.set_apart(key)
    among = tuple(only(cells, filters))
    chosen = {trial.key for one in among for trial in one.all()}
    again = before.failed if retry_failed else {}
    open_ = {*before.missing, *again}
    todo = [key for key in before.keys if key in chosen and key in open_]
    todo = list(of_shard(todo, shard))[:limit]
    foreseen = Prices(np.full((len(cells), len(ROLES)), np.nan), {})
    if todo and foretold is not None:
        found = replace(before, planned=among)
        of_them = prices(found, folder, progress)
        left = seconds_left(found, of_them) * len(todo) / max(len(todo), len(found.missing))
        foretold(len(among), len(todo), left)
        places = {id(one): place for place, one in enumerate(cells)}
        foreseen.seconds[[places[id(one)] for one in among]] = of_them.seconds.reshape(-1, len(ROLES))
        foreseen = replace(foreseen, fits=of_them.fits)
    _record(study, folder, cells, foreseen)
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
    return read_standing(cells, store)


def _record(study: Study, folder: Path, cells: Sequence[Planned], foreseen: Prices) -> None:
    """Keeps what was planned, for whoever asks how the study stands; of a study that is no file there is no asking."""
    if study.digest:
        seconds = foreseen.seconds.reshape(-1)
        own = (study.digest, study.title, study.axes, len(cells), groups_of(cells))
        record(folder, *own, replace(foreseen, seconds=seconds), files_of(cells))


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
        for made in (
            *source.glob("networks/*.safetensors"),
            *source.glob(f"{FOLDER}/*.safetensors"),
            *source.glob(FILE),
        ):
            own = folder / made.relative_to(source)
            if not own.exists():
                own.parent.mkdir(exist_ok=True)
                written(own, partial(shutil.copyfile, made))
        taken[str(source)] = count
    return taken
