"""Does every reader end hostile files in a result or in a sentence, within limits, and run nothing of them?

    python -m benchmarks.fuzz [--count 10000] [--seed 0]

Each case takes the valid files of one reader, makes one of them hostile and reads them in a child process: 2 GiB of
address space more than an idle one, 5 seconds of processor time, no sockets, no processes, no unpickled class, no file
opened for writing. A pickle in many of them would leave a marker if it ran. Ends with exit code 1 if anything of that
fails; `--case N` replays one case here. Writes docs/results/fuzz.md for the full count. Linux only.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import track

from benchmarks.fuzz.cases import Ended, everything, run_case
from benchmarks.fuzz.readers import readers
from benchmarks.machine import processor
from benchmarks.markdown import publish, table, versions

PAGE = Path("docs/results/fuzz.md")
FULL = 10_000


def rows(ended: Sequence[Ended]) -> list[list[str]]:
    """A line for each reader."""
    found = []
    for reader in readers():
        of = [one for one in ended if one.reader == reader.name]
        counts = [sum(one.outcome == outcome for one in of) for outcome in ("result", "refusal", "violation")]
        worst = max((one.seconds for one in of), default=0.0), max((one.mib for one in of), default=0.0)
        found.append([reader.name, str(len(of)), *map(str, counts), f"{worst[0]:.1f}", f"{worst[1]:.0f}"])
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=FULL)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="Replay one case in this process.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(run_case(options.seed, options.case, Path(folder) / "case", loud=True))
        return
    started = time.perf_counter()
    ended = list(track(everything(options.seed, options.count), "Reading hostile files", total=options.count))
    broken = [one for one in ended if one.outcome == "violation"]
    lines = [
        "# Hostile files",
        "",
        f"    python -m benchmarks.fuzz --count {options.count} --seed {options.seed}",
        "",
        (__doc__ or "").split("\n\n")[2].replace("\n", " ").split("; `--case")[0] + ".",
        "",
        f"{len(ended):,} cases, {len(broken)} violations. {time.perf_counter() - started:.0f} s on one core of "
        f"{processor()}; {versions()}.",
        "",
        *table(["file", "cases", "results", "refusals", "violations", "worst s", "worst MiB"], rows(ended)),
        "A result means that what was changed is nothing that the reader looks at, or leaves a sound file. *worst*: "
        "processor time and growth of resident memory of the worst case.",
    ]
    publish("\n".join(lines) + "\n", *([PAGE] if options.count >= FULL else []))
    for one in broken:
        print(f"case {one.number} of seed {options.seed}, {one.reader}, {one.how}: {one.why}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
