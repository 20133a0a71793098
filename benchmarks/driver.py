"""What the driver of runs costs by itself: trials that do nothing, planned, run, stored and counted.

A trial that does nothing returns an outcome with one picture of 32 pixels. What is measured is all that leakmap does
besides attacking: naming runs, sending them to processes, storing what comes back, and reading a folder again.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import held, processor
from benchmarks.markdown import publish, table, versions
from leakmap import Spec, read_study
from leakmap.attacker.reconstruction import Tick
from leakmap.files import write_json
from leakmap.local_rule import LocalRule
from leakmap.runs.layout import scored_at
from leakmap.runs.ray import Ray
from leakmap.runs.runner import HERE, Local, Runner, run_jobs
from leakmap.runs.store import WAITS, Store
from leakmap.runs.trial import Outcome, Trial
from leakmap.scoring.score import Score
from leakmap.study.index import FILE
from leakmap.study.planning import jobs, planned
from leakmap.study.running import run_study
from leakmap.threat import ThreatModel

PAGE, KEPT = Path("docs/results/driver.md"), Path("benchmarks/results/driver.json")
SMALL = 16
"""Workers of the local cluster, each on a share of a core."""
MILLION, GIB = 10**6, 2**30
STUDY = """
title = "A study of nothing"
[data]
source = "samples"
victims = 36
[model]
name = "mlp"
[attack]
name = "inverting_gradients"
steps = [{steps}]
"""
A_CELL = 36 * 3 + 6
"""Runs of a cell: of 36 clients the attack and two floors, and 6 of the planted control."""


@dataclass(frozen=True)
class Nothing:
    """The job of a trial that does nothing."""

    trial: Trial

    @property
    def key(self) -> str:
        """The trial's."""
        return self.trial.key

    def __call__(self, device: str, told: Tick) -> Outcome:
        """An outcome as large as a usual one."""
        return outcome_of(self.trial)


def outcome_of(trial: Trial) -> Outcome:
    """An outcome with one picture of 32 pixels."""
    values = {"psnr": (10.0,), "ssim": (0.1,)}
    return Outcome(trial, Score(torch.zeros(1, 3, 32, 32), values, (1.0,), (100,), 1.0, (1.0,)), seconds=1.0)


def nothings(count: int) -> list[Nothing]:
    """So many different trials."""
    first = Trial("0" * 64, LocalRule(), ThreatModel(), Spec("linear"))
    return [Nothing(replace(first, client=client)) for client in range(count)]


def rate(runner: Runner, count: int) -> tuple[float, float]:
    """Outcomes a second, and a second of this process's processor time, from the first job to the last file.

    What starting the processes takes is left out.

    Args:
        runner: Where to run.
        count: Trials.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.make()
        first: list[tuple[float, float]] = []

        def done(key: str, outcome: Outcome) -> None:
            if not first:
                first.append(_clocks())
            put(outcome)

        with store.writing() as put:
            work = nothings(count)
            run_jobs(runner, work, done, lambda key, fraction: None, lambda job, error: outcome_of(job.trial))
        spent = [now - began for now, began in zip(_clocks(), first[0], strict=True)]
        if len(store.keys()) != count:
            raise RuntimeError(f"{count} trials were run and {len(store.keys())} were stored")
    return (count - 1) / spent[0], (count - 1) / spent[1]


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def stored(count: int) -> tuple[float, float]:
    """Outcomes a second, and a second of processor time, that one writer stores, without running anything."""
    outcomes = [outcome_of(job.trial) for job in nothings(count)]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.make()
        started = _clocks()
        with store.writing() as put:
            for outcome in outcomes:
                put(outcome)
        elapsed, computing = (now - began for now, began in zip(_clocks(), started, strict=True))
        return count / elapsed, count / computing


def planning(runs: int, finished: int) -> dict[str, Any]:
    """What planning a study costs, and how its status is answered.

    Args:
        runs: About so many runs.
        finished: So many of them are in the folder.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, cells = Path(name), max(1, round(runs / A_CELL))
        file, out = folder / "study.toml", folder / "out"
        file.write_text(STUDY.format(steps=", ".join(map(str, range(1, cells + 1)))))
        study = read_study(file)
        planned(replace(study, cells=study.cells[:1]))  # pictures and imports count once
        before, started = held(), time.process_time()
        study = read_study(file)
        found = planned(study)
        keys = {trial.key for one in found for trial in one.all()}
        by_name, planning_took = held() - before, time.process_time() - started
        work = jobs(found, keys, folder / "networks", folder / "fitted")
        with_jobs, count = held() - before, len(keys)
        run_study(study, out, HERE, limit=0)
        with Store(out).writing() as put:
            for job in work[:finished]:
                put(outcome_of(job.trial))
        rest = [job.key for job in work[finished:]]
        del found, work, keys
        command = ["-m", "leakmap", "study", "status", str(file), "--out", str(out), "--json"]
        figures: dict[str, Any] = {
            "runs": count,
            "planning": planning_took,
            "bytes": by_name,
            "bytes_with_jobs": with_jobs,
            "finished": finished,
            "record": answered(command, count, finished),
            "read": answered(["-c", READ, str(file), str(out)], count, finished),
        }
        (out / FILE).rename(folder / FILE)
        figures["again"] = answered(command, count, finished, times=1)
        (folder / FILE).rename(out / FILE)
        for key in rest:
            scored_at(out, key).touch()
        return figures | {"all": answered(command, count, count)}


READ = """
import json, sys
from pathlib import Path
import leakmap
file, out = map(Path, sys.argv[1:])
leakmap.read_study(file)
found = leakmap.recorded_status(file, out)
print(json.dumps({"runs": found.runs, "finished": found.finished}))
"""
WATCHING = """
import json, resource, subprocess, sys
said = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, check=True).stdout
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([json.loads(said), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))
"""
"""A small process that runs a command: one that is started by this large one would count its memory."""


def answered(command: Sequence[str], runs: int, finished: int, times: int = 3) -> dict[str, float]:
    """What Python takes for a command that says where a study stands, from the start of its process to the end.

    Args:
        command: What follows ``python``.
        runs: What it should say.
        finished: Likewise.
        times: How often it is asked; of seconds comes the median, of bytes the largest.
    """
    found: list[tuple[float, float, int]] = []
    for _ in range(times):
        started = time.perf_counter()
        watched = [sys.executable, "-c", WATCHING, sys.executable, *command]
        said, computing, most = json.loads(subprocess.run(watched, stdout=subprocess.PIPE, check=True).stdout)
        found.append((computing, time.perf_counter() - started, most))
        if (said["runs"], said["finished"]) != (runs, finished):
            raise RuntimeError(f"{said['finished']} of {said['runs']} runs were counted, not {finished} of {runs}")
    computing, wall, most = zip(*found, strict=True)
    return {"computing": statistics.median(computing), "wall": statistics.median(wall), "peak": max(most)}


@contextmanager
def cluster() -> Iterator[Runner]:
    """A Ray cluster of this machine with many small workers, which ends with the block."""
    from ray.cluster_utils import Cluster

    own = Cluster(initialize_head=True, head_node_args={"num_cpus": SMALL, "include_dashboard": False})
    try:
        yield Ray(str(own.address))
    finally:
        own.shutdown()


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the page says."""
    found: dict[str, Any] = {"versions": versions(), "processor": processor(), "jobs": options.jobs}
    found |= {"command": shlex.join(sys.argv[1:]), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    found["writer"] = stored(options.jobs)
    found["pool"] = {str(count): rate(Local(2), count) for count in (options.jobs, 4 * options.jobs)}
    found["ray"] = None
    if options.ray:
        with cluster() as ray:
            found["ray"] = rate(ray, options.jobs)
    found["planning"] = [planning(runs, options.stored) for runs in options.planned]
    return found


def page(found: dict[str, Any]) -> str:
    """Markdown."""
    most = max(found["planning"], key=lambda one: one["runs"])
    each, with_jobs = (most[name] / most["runs"] for name in ("bytes", "bytes_with_jobs"))
    rates = [("one writer, nothing run", found["jobs"], found["writer"])]
    rates += [("2 processes", int(count), value) for count, value in found["pool"].items()]
    if found["ray"] is not None:
        rates.append((f"Ray on this machine, {SMALL} workers", found["jobs"], found["ray"]))
    return "\n".join(
        [
            "# The driver by itself",
            "",
            *(__doc__ or "").split("\n\n", 1)[1].strip().split("\n"),
            "",
            f"    python -m benchmarks.driver {found['command']}".rstrip() + "     # 20 minutes of one core",
            "",
            f"{found['processor']}, {found['cores']} cores. {found['versions']}. When it began, {found['load']:.0f} "
            "processes wanted the cores.",
            "",
            "## Outcomes a second",
            "",
            *table(
                ["where", "trials", "outcomes a second", "a second of the writer's processor time"],
                [(where, f"{count:,}", f"{found[0]:.0f}", f"{found[1]:.0f}") for where, count, found in rates],
            ),
            f"Every outcome is a file, of which at most {WAITS} wait for the disk at a time. The first column of "
            "figures depends on what else the machine does, the second hardly.",
            "",
            "## Planning",
            "",
            *table(
                ["runs", "seconds to plan", "MiB per 100,000", "with their jobs"],
                [
                    (
                        f"{one['runs']:,}",
                        f"{one['planning']:.1f}",
                        f"{one['bytes'] / one['runs'] * 1e5 / 2**20:.0f}",
                        f"{one['bytes_with_jobs'] / one['runs'] * 1e5 / 2**20:.0f}",
                    )
                    for one in found["planning"]
                ],
            ),
            "Seconds are of processor time. Planning reads the study file and names every run. "
            f"At {each:.0f} bytes for each planned run, and {with_jobs:.0f} with its job, a million planned runs take "
            f"{each * MILLION / GIB:.2f} GiB by name and {with_jobs * MILLION / GIB:.2f} GiB when all are to be run.",
            "",
            "## Where a study stands",
            "",
            "Three ways to answer `leakmap study status`, each a process from its start to its end, imports included:",
            "",
            *table(
                ["runs", "finished", "way", "seconds", "elapsed", "peak MiB"],
                [
                    (
                        f"{one['runs']:,}",
                        f"{one['runs' if way == 'all' else 'finished']:,}",
                        what,
                        f"{one[way]['computing']:.2f}",
                        f"{one[way]['wall']:.2f}",
                        f"{one[way]['peak'] / 2**20:.0f}",
                    )
                    for one in found["planning"]
                    for way, what in WAYS.items()
                ],
            ),
            "*Seconds* are of processor time, *elapsed* those of the clock. *Planned again* is what the command does "
            "where there is no record: it names every run, reads the outcomes and times a network. *By the record* is "
            "what it does after a `leakmap study run`: it reads `planned.safetensors`, which that run wrote, and the "
            "names of the files in `trials/`, which say what finished and what failed. It imports no torch and reads "
            "no cells of the study; the second way does both, and that takes longer than the answer. Where all runs "
            "are finished, the files beyond the first are empty, as only their names are read.",
            "",
        ]
    )


WAYS = {
    "again": "planned again",
    "read": "by the record, the study read",
    "record": "by the record",
    "all": "by the record",
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--planned", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--stored", type=int, default=1000)
    parser.add_argument("--ray", action="store_true", help="Also on a Ray cluster of this machine, many small workers.")
    parser.add_argument("--page", action="store_true", help="Write the page from the kept figures, measure nothing.")
    options = parser.parse_args()
    if not options.page:
        write_json(KEPT, measured(options))
    publish(page(json.loads(KEPT.read_text(encoding="utf-8"))), PAGE)


if __name__ == "__main__":
    main()
