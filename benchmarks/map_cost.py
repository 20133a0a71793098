"""What the full map and the paper's claims cost at the scale of GPUs, before they are run.

Every study is planned, and every network of it is timed: a client step in one thread, its floating-point operations,
and how many operators it calls. What a run takes follows from the client steps that its attack asks for.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.driver import KEPT as DRIVER
from benchmarks.machine import forget_peak, held, peak, processor
from benchmarks.markdown import publish, table, versions
from leakmap.auditing.estimate import TIMING, Pace
from leakmap.auditing.prepare import gather
from leakmap.client.simulate import simulate
from leakmap.files import file_digest, write_json
from leakmap.models.network import build_network
from leakmap.registry.spec import Spec
from leakmap.runs.run import held_by, network_of, run
from leakmap.runs.runner import in_threads
from leakmap.runs.setup import Setup
from leakmap.runs.store import Store
from leakmap.study.file import read_study
from leakmap.study.planning import Planned, pictures_of, planned
from leakmap.study.shipped import file_of, paths

PAGE, KEPT = Path("docs/results/map-cost.md"), Path("benchmarks/results/map_cost.json")
TRIED = 2
"""Iterations of the attack whose memory is measured."""


class Operators(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One of them."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def setup_of(one: Planned) -> Setup:
    """The audited network of a cell with random weights, which cost what trained ones cost."""
    plan = one.cell.plan
    groups, task = gather(plan, pictures_of(plan))
    return Setup(build_network(task, plan.model, seed=plan.seed), groups, one.names.main)


def step_of(one: Planned) -> dict[str, float]:
    """One client step: seconds in one thread, floating-point operations, and operators."""
    setup, trial = setup_of(one), one.trials["attack"][0]
    network, batch = network_of(trial, setup), held_by(trial, setup)
    with in_threads(1), FlopCounterMode(display=False) as operations, Operators() as operators:
        simulate(network, trial.rule, batch)
    return {
        "seconds": seconds_of(lambda: simulate(network, trial.rule, batch)),
        "operations": operations.get_total_flops(),
        "operators": operators.count,
    }


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of processor time in one thread, as other processes want the cores: the median, after the first."""
    spent: list[float] = []
    with in_threads(1):
        while len(spent) < 5 and sum(spent) < TIMING:
            began = time.process_time()
            work()
            spent.append(time.process_time() - began)
    return statistics.median(spent[1:] or spent)


def tried(one: Planned) -> dict[str, float]:
    """Memory by which a process grows in a run of a few iterations, and the bytes of its outcome."""
    setup, trial = setup_of(one), one.trials["attack"][0]
    short = replace(trial, attack=Spec(trial.attack.name, trial.attack.params | {"steps": TRIED}))
    before = held()
    forget_peak()
    with in_threads(1):
        outcome = run(short, setup)
    most = peak() - before
    if outcome.failure is not None:
        raise RuntimeError(f"{one.cell}: {outcome.failure}")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.make()
        store.put(outcome)
        return {"memory": most, "bytes": store.path(short.key).stat().st_size}


def study_cost(name: str) -> dict[str, Any]:
    """Cells and runs of a study, what all of it computes, and its costliest network."""
    cells = planned(read_study(name))
    steps: dict[str, dict[str, float]] = {}
    runs: dict[str, tuple[str, float]] = {}
    costliest: tuple[float, Planned] | None = None
    for one in track(cells, description=name, transient=True):
        plan = one.cell.plan
        kind = repr((plan.model, plan.data, plan.image_size, plan.batch_size, plan.rule))
        if kind not in steps:
            steps[kind] = step_of(one)
        if costliest is None or steps[kind]["seconds"] > costliest[0]:
            costliest = steps[kind]["seconds"], one
        for trials in filter(None, one.trials.values()):
            asked = Pace(1.0).seconds(trials[0]) - Pace(0.0).seconds(trials[0])
            for trial in trials:
                runs.setdefault(trial.key, (kind, asked))
    assert costliest is not None
    every = [(steps[kind], asked) for kind, asked in runs.values()]
    return {
        "file": file_digest(file_of(name)),
        "cells": len(cells),
        "runs": len(runs),
        "networks": len(steps),
        "core": sum(step["seconds"] * asked for step, asked in every),
        "operations": sum(step["operations"] * asked for step, asked in every),
        "operators": sum(step["operators"] * asked for step, asked in every),
        "by_step": [[step["operations"], step["operators"], asked] for step, asked in _together(every)],
        "network": costliest[1].cell.plan.model,
        **tried(costliest[1]),
    }


def _together(every: list[tuple[dict[str, float], float]]) -> Iterator[tuple[dict[str, float], float]]:
    """Each kind of step once, with all client steps that are asked of it."""
    sums: dict[int, list[Any]] = {}
    for step, asked in every:
        sums.setdefault(id(step), [step, 0.0])[1] += asked
    yield from ((step, asked) for step, asked in sums.values())


def gpu_hours(found: Mapping[str, Any], teraflops: float, microseconds: float) -> float:
    """Hours of one GPU: of each step the longer of its arithmetic and of starting its operators."""
    return (
        sum(
            asked * max(operations / teraflops / 1e12, operators * microseconds / 1e6)
            for operations, operators, asked in found["by_step"]
        )
        / 3600
    )


def page(kept: Mapping[str, Any], teraflops: float, microseconds: float) -> str:
    """Markdown."""
    studies, planning = kept["studies"], json.loads(DRIVER.read_text(encoding="utf-8"))["planning"]
    most = max(planning, key=lambda one: one["runs"])
    each, with_job = (most[name] / most["runs"] for name in ("bytes", "bytes_with_jobs"))
    hours = {name: gpu_hours(one, teraflops, microseconds) for name, one in studies.items()}
    rows = [
        (
            f"`{name}`",
            one["cells"],
            f"{one['runs']:,}",
            one["networks"],
            f"{one['core'] / 3600:,.0f}",
            f"{hours[name]:,.0f}",
            f"`{one['network']}`",
            f"{one['memory'] / 2**20:,.0f}",
            f"{one['runs'] * one['bytes'] / 2**20:,.0f}",
        )
        for name, one in studies.items()
    ]
    runs = sum(one["runs"] for one in studies.values())
    store = sum(one["runs"] * one["bytes"] for one in studies.values())
    cells, core = (sum(one[what] for one in studies.values()) for what in ("cells", "core"))
    rows.append(
        (
            "all",
            cells,
            f"{runs:,}",
            "",
            f"{core / 3600:,.0f}",
            f"{sum(hours.values()):,.0f}",
            "",
            f"{max(one['memory'] for one in studies.values()) / 2**20:,.0f}",
            f"{store / 2**20:,.0f}",
        )
    )
    head = ["study", "cells", "runs", "networks", "core hours", "GPU hours", "costliest network", "MiB", "store, MiB"]
    table_of = "\n".join(table(head, rows)).strip()
    claims = len(studies) - ("map" in studies)
    text = f"""# What the study `map` and the paper's claims cost on GPUs

The study `map` and {claims} of the paper's claims, at the scale of GPUs, are {runs:,} runs: about
{core / 3600:,.0f} hours of one core of this machine, computed from measured client steps, or
{sum(hours.values()):,.0f} hours of one GPU. Attacks that a claim tries besides its search are not counted.
**The hours of GPUs are extrapolated and were not measured: no GPU was at hand.**
[How to run it on a cluster](../cluster.md).

    python -m benchmarks.map_cost     # 20 minutes of one core; what is measured is kept

{kept["processor"]}, one thread. {kept["versions"]}.

{table_of}

*Runs* are counted once in each study; an audit brings its floors and its planted control along. *Core hours* are the
measured seconds of processor time of a client step of each network, times the client steps that the attack asks for:
2.5 in an evaluation of a search, as `leakmap study run --dry-run` estimates. Line-ups, scores, brief training and what
a search stops early are left out. The steps of a planted control, a small network, are counted at the price of the
audited one.

*GPU hours*: the floating-point operations of each client step and the operators that it calls were counted. A step is
taken to last as long as the longer of two: its operations at {teraflops:g} TFLOP/s, and {microseconds:g} µs for each
operator to start. Both rates are assumptions. Small networks with one picture wait for operators, not for arithmetic:
several runs that share a GPU (`--gpus 0.25`) may take fewer hours, and a faster GPU does not help them.
`python -m benchmarks.map_cost --page --teraflops 30 --microseconds 5` computes the column for other rates from what is
kept, in seconds.

*MiB* is by how much a process grew in a run of {TRIED} iterations against the costliest network, on the CPU. How much
of a GPU's memory a run takes was not measured. *Store* is the size of the outcome of that run, times the runs.

The process that plans all of it takes {each * runs / 2**20:,.0f} MiB by name and {with_job * runs / 2**20:,.0f} MiB
with a job for every run, at the [measured bytes of a run](driver.md).
"""
    paragraphs = text.split("\n\n")
    return "\n\n".join(one if one.startswith(("|", " ")) else one.replace("\n", " ") for one in paragraphs) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", help="Names of studies; the map and the paper's claims by default.")
    parser.add_argument("--teraflops", type=float, default=10.0, help="What a GPU is taken to sustain in float32.")
    parser.add_argument("--microseconds", type=float, default=10.0, help="What an operator is taken to need to start.")
    parser.add_argument("--page", action="store_true", help="Write the page from the kept figures, measure nothing.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {"studies": {}}
    wanted = options.only or ["map", *(name for name in paths() if name.startswith("paper/"))]
    # What was measured of a study that has changed since says nothing of it.
    kept["studies"] = {name: one for name, one in kept["studies"].items() if one["file"] == file_digest(file_of(name))}
    for name in [] if options.page else wanted:
        if name not in kept["studies"]:
            kept["studies"][name] = study_cost(name)
            kept |= {"versions": versions(), "processor": processor()}
            write_json(KEPT, kept)
    publish(page(kept, options.teraflops, options.microseconds), PAGE)


if __name__ == "__main__":
    main()
