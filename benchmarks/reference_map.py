"""Measures the map that `leakmap inspect` compares with, and writes it into the package.

    leakmap study run studies/map.toml --scale cpu && python -m benchmarks.reference_map --scale cpu

Reads the cells of the study that are finished; networks without one are left out. Writes
src/leakmap/inspection/reference.json.
"""

import argparse
import json
import time
from pathlib import Path

from pydantic import TypeAdapter

from leakmap.auditing.prepare import gather
from leakmap.cli.terminal import progress_bar
from leakmap.files import write_json
from leakmap.inspection import read_traits
from leakmap.inspection.reference import Entry, Reference, features, measured
from leakmap.models.network import build_network
from leakmap.registry.spec import Spec
from leakmap.result.result import Result
from leakmap.runs.runner import Local
from leakmap.runs.workers import default_workers
from leakmap.study.file import read_study
from leakmap.study.paper import versions
from leakmap.study.planning import pictures_of, planned
from leakmap.study.results import conclusions

FILE = Path("src/leakmap/inspection/reference.json")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scale", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--study", type=Path, default=Path("studies/map.toml"))
    parser.add_argument("--folder", type=Path, default=Path("runs/map"), help="Where the study ran.")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    scale = options.scale if options.scale == "cpu" else None
    cells = planned(read_study(options.study, scale))
    with progress_bar() as progress:
        concluded, why = conclusions(cells, options.folder, Local(default_workers()), progress)
    for place, reason in why.items():
        print(f"left out: {place}: {reason}")
    networks: dict[str, list[Result]] = {}
    plans = {str(Spec.parse(one.cell.plan.model)): one.cell.plan for one in cells}
    for cell in concluded:
        if cell.result.line_up.attack and not cell.result.unfinished:
            networks.setdefault(str(Spec.parse(cell.result.plan.model)), []).append(cell.result)
    entries = []
    for model, results in networks.items():
        plan = plans[model]
        _, task = gather(plan, pictures_of(plan))
        traits = read_traits(build_network(task, plan.model, seed=plan.seed))
        entries.append(Entry(model, features(traits), tuple(map(measured, results))))
    command = f"leakmap study run {options.study}{f' --scale {scale}' if scale else ''}"
    when = time.strftime("%Y-%m-%d", time.gmtime())
    found = Reference(command, versions(options.folder), when, tuple(entries))
    write_json(options.out, json.loads(TypeAdapter(Reference).dump_json(found)))
    print(f"{len(entries)} networks, {sum(len(entry.cells) for entry in entries)} cells: {options.out}")


if __name__ == "__main__":
    main()
