"""Does everything that reads files or options end in a result or in a sentence, within limits, and run nothing of them?

    python -m benchmarks.fuzz [--count 20000] [--only KIND] [--seed 0] [--out runs/fuzz]

Each case of a file takes the valid files of one reader, makes one of them hostile and reads them in a child process: 2
GiB of address space more than an idle one, 5 seconds of processor time, no sockets, no processes, no unpickled class,
no file opened for writing, none left open. A pickle in many of them would leave a marker if it ran. Each case of a
command runs it in a child process, with 2 GiB more than an idle one and 30 seconds of processor time: odd options,
model files, watched folders, folders of pictures and stored results; commands that need much have 64 MiB to 1 GiB more.
And several processes write one file. A traceback, an escape sequence on the terminal, and an exit code of 0, 1 or 2
without a result are violations, as are scores that a changed file changed, and 30 seconds of waiting without computing.
A command takes a hundred times as long as a file: each kind has .5 % of the cases, that with little memory .1 %. Ends
with exit code 1 if there is any violation.

The same command continues where it was stopped; `--case N --only KIND` replays one case. Writes docs/results/fuzz.md
for the full count. Linux only.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
from rich.progress import track

from benchmarks.fuzz.cases import Ended, everything, run_case
from benchmarks.fuzz.commands import ALL, every_command, run_command
from benchmarks.fuzz.readers import readers
from benchmarks.machine import processor
from benchmarks.markdown import publish, table, versions

PAGE = Path("docs/results/fuzz.md")
FULL = 20_000
FILES = "files"


def rows(ended: Sequence[Ended]) -> list[list[str]]:
    """A line for each reader and each kind of command that has cases."""
    found = []
    for name in (*(reader.name for reader in readers()), *ALL):
        of = [one for one in ended if one.reader == name]
        counts = [sum(one.outcome == outcome for one in of) for outcome in ("result", "refusal", "violation")]
        worst = max((one.seconds for one in of), default=0.0), max((one.mib for one in of), default=0.0)
        if of:
            found.append([name, str(len(of)), *map(str, counts), f"{worst[0]:.1f}", f"{worst[1]:.0f}"])
    return found


def remaining(kind: str, seed: int, count: int, done: int) -> Iterator[Ended]:
    """The cases of one kind that are not done."""
    if kind == FILES:
        return everything(seed, count, done)
    return every_command(seed, range(done, count), (kind,))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=FULL)
    parser.add_argument("--only", choices=[FILES, *ALL], help="One kind; all of them by default.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="Replay one case in this process.")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.case is not None:
        with tempfile.TemporaryDirectory() as text:
            folder, kind = Path(text) / "case", options.only or FILES
            files = kind == FILES
            print(
                run_case(options.seed, options.case, folder, loud=True)
                if files
                else run_command(options.seed, options.case, kind, folder)
            )
        return
    counts = _shares(options.count, options.only)
    known = {kind: _known(_log(options, kind)) for kind in counts}
    todo = chain.from_iterable(_kept(options, kind, count, len(known[kind])) for kind, count in counts.items())
    left = sum(max(0, count - len(known[kind])) for kind, count in counts.items())
    ended = [*chain.from_iterable(known.values()), *track(todo, "Fuzzing", total=left)]
    broken = [one for one in ended if one.outcome == "violation"]
    seconds = sum(one.seconds for one in ended)
    lines = [
        "# Hostile files and odd commands",
        "",
        f"    python -m benchmarks.fuzz --count {options.count} --seed {options.seed}",
        "",
        (__doc__ or "").split("\n\n")[2].replace("\n", " "),
        "",
        f"{len(ended):,} cases, {len(broken)} violations. {seconds:.0f} s of computing on {processor()}; {versions()}.",
        "",
        *table(["file or command", "cases", "results", "refusals", "violations", "worst s", "worst MiB"], rows(ended)),
        "A result means that what was changed is nothing that is looked at, or leaves something sound. *worst*: "
        "processor time and growth of resident memory of the worst case.",
    ]
    full = options.count >= FULL and options.only is None
    publish("\n".join(lines) + "\n", *([PAGE] if full else []))
    for one in broken:
        print(f"case {one.number} of seed {options.seed}, {one.reader}, {one.how}: {one.why}")
    sys.exit(bool(broken))


def _shares(count: int, only: str | None) -> dict[str, int]:
    """How many cases of each kind: all readers share what the kinds of commands leave."""
    if only is not None:
        return {only: count}
    commands = {kind: count // (1000 if kind == "little memory" else 200) for kind in ALL}
    return {FILES: count - sum(commands.values()), **commands}


def _log(options: argparse.Namespace, kind: str) -> Path:
    return options.out / f"{kind.replace(' ', '-')}-{options.seed}.jsonl"


def _known(file: Path) -> list[Ended]:
    """The cases that are done; a line that a kill cut off is none."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        file.write_text("".join(whole), encoding="utf-8")
    return [Ended(**json.loads(line)) for line in whole]


def _kept(options: argparse.Namespace, kind: str, count: int, done: int) -> Iterator[Ended]:
    """Runs what is missing, and keeps how each case ended."""
    options.out.mkdir(parents=True, exist_ok=True)
    with _log(options, kind).open("a", encoding="utf-8") as log:
        for one in remaining(kind, options.seed, count, done):
            log.write(json.dumps(asdict(one)) + "\n")
            log.flush()
            yield one


if __name__ == "__main__":
    main()
