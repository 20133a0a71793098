"""Benchmarks of several cases, each of which is stored when it is finished, so that the same command continues.

The records under ``benchmarks/results`` are what the published pages show; hours of computing on several machines meet
there. ``--out`` with another folder measures anew.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.markdown import publish
from leakmap.cli.terminal import progress_bar
from leakmap.files import read_json, write_json
from leakmap.plan.plan import Progress

RECORDS = Path(__file__).parent / "results"
Entry = dict[str, Any]


def run_cases(
    parser: argparse.ArgumentParser,
    cases: Sequence[str],
    published: Path,
    measured: Callable[[str, argparse.Namespace, Progress], Entry],
    page: Callable[[dict[str, Entry]], str],
    beside: Callable[[dict[str, Entry]], object] = lambda found: None,
) -> None:
    """The command of a benchmark: measures the cases that are asked for and not stored, and writes the page of all.

    Args:
        parser: With the options of this benchmark; ``--only``, ``--out`` and ``--page`` are added.
        cases: By name, in the order of the page.
        published: Where ``--page`` writes it; its stem names the folder of the records.
        measured: One case, from its name, the options and a progress.
        page: Markdown, from the cases that are stored.
        beside: Writes what belongs to the page, with ``--page``.
    """
    parser.add_argument("--only", nargs="*", choices=list(cases), default=list(cases), metavar="CASE")
    parser.add_argument("--out", type=Path, default=RECORDS / published.stem)
    parser.add_argument("--page", action="store_true", help=f"Write {published} too.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    with progress_bar() as told:
        for case in options.only:
            if read_json(options.out / f"{case}.json") is None:
                write_json(options.out / f"{case}.json", measured(case, options, told))
    stored = {case: read_json(options.out / f"{case}.json") for case in cases}
    found = {case: entry for case, entry in stored.items() if isinstance(entry, dict)}
    if not found:
        parser.error(f"No case has a record in {options.out}: there is nothing to show.")
    if options.page:
        beside(found)
    publish(page(found), *([published] if options.page else []))
