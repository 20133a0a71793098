"""The report and the tables of a study, each in one call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from leakmap.plan.plan import Progress
from leakmap.report.study import write_study
from leakmap.runs.runner import HERE, Runner
from leakmap.runs.store import Store
from leakmap.study.file import Study
from leakmap.study.planning import only
from leakmap.study.results import cell_rows, conclusions, score_rows, write_table
from leakmap.study.standing import standing


def report_study(
    study: Study,
    folder: Path,
    *,
    filters: Sequence[str] = (),
    command: str = "",
    runner: Runner = HERE,
    progress: Progress = lambda what, fraction: None,
) -> tuple[Path, dict[str, str]]:
    """Writes the report over all cells so far: ``report.html``, and its figures into ``figures``.

    Args:
        study: The study.
        folder: Where its results lie.
        filters: ``AXIS=VALUE``: only cells that stand there.
        command: The command line that repeats the study, for the report.
        runner: Where to conclude.
        progress: Called with what is being done and the finished fraction.

    Returns:
        The path of the report, and of every cell that cannot be concluded why.

    Raises:
        UsageError: a cell cannot be run as it is written, there is no such axis or value, or nothing is finished.
        StoreError: the folder holds results of another schema.
    """
    chosen = only(standing(study, folder, progress).planned, filters)
    cells, why = conclusions(chosen, folder, runner, progress)
    path = write_study(
        folder / "report.html",
        study.title,
        cells,
        study=study.resolved(),
        command=command,
        figures=folder / "figures",
    )
    return path, why


def export_study(
    study: Study,
    folder: Path,
    to: Path | None = None,
    *,
    kind: Literal["csv", "parquet"] = "csv",
    runner: Runner = HERE,
    progress: Progress = lambda what, fraction: None,
) -> list[Path]:
    """Writes two tables: ``scores`` (a row for each picture of each run) and ``cells`` (a row for each audit).

    Args:
        study: The study.
        folder: Where its results lie.
        to: Folder for the tables; None for the study's.
        kind: ``csv``, or ``parquet``, which needs pyarrow.
        runner: Where to conclude.
        progress: Called with what is being done and the finished fraction.

    Returns:
        The paths of both.

    Raises:
        UsageError: a cell cannot be run as it is written, or pyarrow is not installed.
        StoreError: the folder holds results of another schema.
    """
    planned = standing(study, folder, progress).planned
    cells, _ = conclusions(planned, folder, runner, progress)
    target = to or folder
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, rows in (("scores", score_rows(planned, Store(folder))), ("cells", cell_rows(cells))):
        paths.append(target / f"{name}.{kind}")
        write_table(paths[-1], list(rows), kind)
    return paths
