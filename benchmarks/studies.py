"""Running a study to its end, as several benchmarks do."""

from pathlib import Path

from leakmap.cli.terminal import progress_bar
from leakmap.report.study import Cell
from leakmap.runs.runner import Local
from leakmap.study.file import Study
from leakmap.study.planning import planned
from leakmap.study.results import conclusions
from leakmap.study.running import run_study


def run_to_end(study: Study, folder: Path, workers: int) -> list[Cell]:
    """Runs what is missing of a study, beside a progress bar, and concludes all its cells.

    Raises:
        SystemExit: a cell cannot be concluded.
    """
    runner = Local(workers)
    with progress_bar() as progress:
        run_study(study, folder, runner, progress=progress)
        cells, why = conclusions(planned(study), folder, runner, progress)
    if why:
        raise SystemExit(f"{len(why)} audits could not be concluded, the first: {next(iter(why.items()))}")
    return cells
