"""What an iteration costs and how soon it gets there: leakmap beside a hand-written loop, breaching and LeakPro.

    python -m benchmarks.speed [--leakpro DIR]

Same models, weights, pictures, labels and objective, on one thread: evaluations and iterations in interleaved rounds,
memory, and what is reached when. breaching 0.1.2 is installed from the package index into an environment of its own
under OUT; LeakPro takes part where DIR is a checkout of it. With a GPU, everything is measured on it too. Interrupted,
the same command continues: what is finished is kept under OUT, as long as the code of leakmap stays the same. Writes
docs/results/speed.md, and the raw figures to OUT/speed.json; only OUT/speed.md with --only.
"""

import argparse
import functools
import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import leakmap
from benchmarks import machine
from benchmarks.markdown import publish
from benchmarks.peers import measures, page
from benchmarks.peers.environments import Place, Unavailable, for_breaching, for_leakpro, here
from benchmarks.peers.works import WORKS
from leakmap.files import read_json, write_json

PAGE = Path("docs/results/speed.md")
DEFAULTS = {"data": "samples", "rounds": 5, "pictures": 8, "cap": 120.0, "patience": 6.0}
Part = tuple[str, Callable[[], dict[str, Any]]]


def parts(bench: measures.Bench, options: argparse.Namespace) -> Iterator[Part]:
    """Everything that is measured, by name."""
    for device in options.devices:
        for work in WORKS:
            yield f"speed-{device}-{work.name}", functools.partial(measures.speed, bench, work, device)
        for work in WORKS:
            yield f"memory-{device}-{work.name}", functools.partial(measures.memory, bench, work, device)
        for work in (measures.BY_PSNR, measures.BY_TERM):
            for client in range(options.pictures):
                run = functools.partial(measures.against_time, bench, work, device, client)
                yield f"time-{device}-{work.name}-{client}", run


def wanted(name: str, only: str) -> bool:
    """Whether a part is asked for: every word of ``only`` is a word of its name."""
    return set(only.split()) <= {*name.split("-"), name, name.split("-", 2)[2]}


def measure(bench: measures.Bench, options: argparse.Namespace, bar: Progress) -> dict[str, Any]:
    """Measures what is not measured yet, and returns everything."""
    asked = {
        "leakmap": source_digest(),
        "torch": torch.__version__,
        "processor": processor(),
        "contestants": [f"{place.kind} {place.version}".strip() for place in bench.places],
        **{name: getattr(options, name) for name in ("data", "rounds", "cap", "patience")},
    }
    todo = [(name, run) for name, run in parts(bench, options) if wanted(name, options.only)]
    task = bar.add_task("", total=len(todo))
    found: dict[str, Any] = {}
    (options.out / "parts").mkdir(parents=True, exist_ok=True)
    for name, run in todo:
        path = options.out / "parts" / f"{name}.json"
        kept = read_json(path)
        if not kept or kept["asked"] != asked:
            began, load = time.time(), os.getloadavg()
            kept = {"asked": asked, "began": began, "load": load, "found": run(), "ended": time.time()}
            write_json(path, kept)
        found[name] = kept
        bar.advance(task)
    return found


def source_digest() -> str:
    """SHA-256 of the code of leakmap."""
    digest = hashlib.sha256()
    folder = Path(leakmap.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def processor() -> str:
    """Its name and the number of its cores."""
    name = machine.processor() or platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({platform.machine()}, {capability}), {os.cpu_count()} cores"


def command(options: argparse.Namespace) -> str:
    """What measures this, with every option that decides a figure and is not the default."""
    given = {name: getattr(options, name) for name, usual in DEFAULTS.items() if getattr(options, name) != usual}
    words = [
        f"--{name} {value:g}" if isinstance(value, float) else f"--{name} {value}" for name, value in given.items()
    ]
    return " ".join(["python -m benchmarks.speed", *(["--leakpro DIR"] if options.leakpro else []), *words])


def written(found: dict[str, Any], bench: measures.Bench, missing: dict[str, str], options) -> str:
    """The page."""
    results = {name: part["found"] for name, part in found.items()}
    versions: dict[str, dict[str, str]] = {}
    failures = dict(missing)
    for name, part in results.items():
        versions |= part["versions"]
        failures |= {f"{who} ({name})": why for who, why in part["failures"].items()}
    first, last = (min(p["began"] for p in found.values()), max(p["ended"] for p in found.values()))
    when = " to ".join(time.strftime("%Y-%m-%d %H:%M", time.gmtime(t)) for t in (first, last))
    load = max(part["load"][0] for part in found.values())
    computed_on = [processor(), "1 thread"]
    if "cuda" in options.devices:
        computed_on.append(torch.cuda.get_device_name())
    named = {place.kind: place.version for place in bench.places if place.version}
    named |= dict(pair for of in versions.values() for pair in of.items())
    lines = [
        "# Speed beside others",
        "",
        f"    {command(options)}     # hours",
        "",
        "Same models with the same random weights, same pictures, labels granted, same objective; BatchNorm in "
        f"inference mode with the statistics of other pictures. Pictures: `{options.data}`, none on which a setting "
        "was chosen. Evaluations are taken at the truth and half a standard deviation of noise. The hand-written loop "
        "ends in `autograd.grad` with respect to the pictures, which costs less than the `.backward()` of many tools.",
        "",
        f"{', '.join(computed_on)}. {', '.join(f'{name} {version}' for name, version in sorted(named.items()))}. "
        f"Measured {when} UTC, with a load average of at most {load:.1f} when a part began.",
        "",
        *page.costs(results),
        *page.memories(results),
        *page.moments(results),
    ]
    if failures:
        lines += ["## Not measured", "", *(f"* {who}: {why.rstrip('.')}." for who, why in failures.items()), ""]
    return "\n".join(lines)


def places(options: argparse.Namespace) -> tuple[list[Place], dict[str, str]]:
    """Where contestants run, and who cannot take part."""
    folder = (options.out / "environments").resolve()
    found, missing = [here()], {}
    makers: dict[str, Callable[[], Place]] = {"breaching": lambda: for_breaching(folder)}
    if options.leakpro:
        makers["LeakPro"] = lambda: for_leakpro(folder, options.leakpro)
    for name, make in makers.items():
        try:
            found.append(make())
        except Unavailable as error:
            missing[name] = str(error)
    return found, missing


def main() -> None:
    """The command."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--leakpro", type=Path, metavar="DIR", help="A checkout of LeakPro.")
    parser.add_argument("--data", help="Where the pictures come from.")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--pictures", type=int, help="For what is reached when.")
    parser.add_argument("--cap", type=float, help="Seconds that breaching gets to reach 20 dB.")
    parser.add_argument("--patience", type=float, help="Times leakmap's seconds for breaching's term.")
    parser.set_defaults(**DEFAULTS)
    parser.add_argument("--devices", nargs="+", default=devices, choices=("cpu", "cuda"))
    parser.add_argument("--only", default="", help="Words of a part's name, such as 'speed resnet18-8'.")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    text = TextColumn("{task.description}")
    with Progress(text, BarColumn(), TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        making = bar.add_task("environments", total=None)
        found_places, missing = places(options)
        bar.remove_task(making)
        bench = measures.Bench(
            found_places,
            options.data,
            options.out / "workers.log",
            *(options.rounds, options.cap, options.patience),
            advance=lambda what: bar.update(bar.task_ids[0], description=what),
        )
        found = measure(bench, options, bar)
    if not found:
        raise SystemExit(f"No part's name has all words of {options.only!r}.")
    content = written(found, bench, missing, options)
    raw = {"parts": found, "missing": missing, "works": [asdict(work) for work in WORKS]}
    write_json(options.out / "speed.json", raw)
    publish(content, options.out / "speed.md", *([] if options.only else [PAGE]))


if __name__ == "__main__":
    main()
