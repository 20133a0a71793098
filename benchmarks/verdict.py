"""How often is the verdict wrong? False alarms on null audits, detections of planted leaks.

    python -m benchmarks.verdict [--out runs/verdict]

Runs both studies of studies/verdict, 200 audits each, and writes docs/results/verdict.md. Interrupted, the same command
continues. With --seeds N only the first N audits of each are run, and only OUT/verdict.md is written.
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

from benchmarks.markdown import publish, table
from benchmarks.studies import run_to_end
from leakmap.runs.runner import default_workers
from leakmap.scoring.statistics import clopper_pearson
from leakmap.scoring.verdict import LEVELS
from leakmap.study.file import read_study
from leakmap.study.paper import versions

PAGE = Path("docs/results/verdict.md")
STUDIES = {
    "null": ("false alarms", "statistical", "at most 5 %"),
    "planted": ("detections", "partial", "at least 90 %"),
}
"""Study -> what is counted, the least level that counts, what it should be."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, help="Only the first so many audits of each.")
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--out", type=Path, default=Path("runs/verdict"))
    options = parser.parse_args()
    rows, levels = [], {}
    for name, (what, least, goal) in STUDIES.items():
        study = read_study(Path("studies/verdict") / f"{name}.toml")
        study = replace(study, cells=study.cells[: options.seeds])
        cells = run_to_end(study, options.out, options.workers)
        levels[name] = Counter(cell.result.verdict.level for cell in cells)
        hits = sum(count for level, count in levels[name].items() if LEVELS.index(level) >= LEVELS.index(least))
        found = clopper_pearson(hits, len(cells))
        rows.append(
            [
                study.title,
                f"{what} (`{least}` or more)",
                f"{hits} of {len(cells)}",
                f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]",
                goal,
            ]
        )
    told = ", ".join(f"{name} {version}" for name, version in versions(options.out).items())
    lines = [
        "# How often the verdict is wrong",
        "",
        "    python -m benchmarks.verdict",
        "",
        "The verdict is a measuring instrument, so it is calibrated: on audits in which every update comes from other "
        "pictures, and on a network that is known to leak. 12 clients of one picture of 16 px each, 60 iterations, an "
        "own seed for every audit, from which pictures, weights and starts follow. Intervals are exact binomial, 95 %.",
        "",
        f"{told}.",
        "",
        *table(["audits", "counted", "", "rate", "should be"], rows),
        "Verdicts:",
        "",
        *table(["", *LEVELS], [[name, *(str(of[level]) for level in LEVELS)] for name, of in levels.items()]),
    ]
    publish("\n".join(lines), options.out / "verdict.md", *([] if options.seeds else [PAGE]))


if __name__ == "__main__":
    main()
