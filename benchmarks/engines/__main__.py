"""How true and how fast the engines of gradient matching are: ``exact`` beside ``frozen``.

    python -m benchmarks.engines --data npz:cifar10_subset.npz --weights cifar10_resnet20.th \\
        --weights56 cifar10_resnet56.th --compile

Four parts: ``accuracy`` of the gradient on many networks, ``equality`` of reconstructions, ``steps`` (memory and time
of several local steps) and ``restarts`` (folded or one after the other). Each piece is kept as JSON under OUT, so that
an interrupted command continues and parts can be measured apart (``--only``), as long as the code of the engines stays
the same. Detectors are measured where ultralytics is installed, which is an environment apart, with the same OUT.
Writes OUT/engines.md, and docs/results/engines.md once nothing is missing but detectors and the compiler.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.descent_runs import CLIENTS
from benchmarks.engines import accuracy, equality, restarts, steps
from benchmarks.engines.pieces import Piece
from benchmarks.markdown import publish

PAGE = Path("docs/results/engines.md")
PARTS = {"accuracy": accuracy, "equality": equality, "steps": steps, "restarts": restarts}


def wanted(piece: Piece, only: str) -> bool:
    """Whether every word of ``only`` begins a word of its name."""
    return all(any(part.startswith(word) for part in piece.name.split("-")) for word in only.lower().split())


def measure(pieces: list[Piece], options: argparse.Namespace) -> None:
    """Measures what is not measured yet."""
    todo = [piece for piece in pieces if piece.kept(options.out) is None]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) as bar:
        task = bar.add_task("", total=sum(piece.cost for piece in todo))
        for number, piece in enumerate(todo, 1):
            place = f"{piece.name} ({number} of {len(todo)})"
            bar.update(task, description=place)
            piece.measure(options.out, lambda what, place=place: bar.update(task, description=f"{place}: {what}"))
            bar.advance(task, piece.cost)


def written(pieces: list[Piece], options: argparse.Namespace) -> tuple[str, bool]:
    """The page, and whether nothing is missing that can run here."""
    records = {piece.name: piece.kept(options.out) for piece in pieces}
    found = {name: record["found"] for name, record in records.items() if record and "found" in record}
    lines: list[str] = []
    for part in PARTS.values():
        lines += part.page(found, options)
    absent = [piece for piece in pieces if records[piece.name] is None]
    missing = [f"{piece.name}: {piece.lacking}" for piece in absent if piece.lacking]
    missing += [f"{len(absent) - len(missing)} other pieces, not yet"] if len(absent) > len(missing) else []
    missing += [f"{name}: {record['failure']}" for name, record in records.items() if record and "failure" in record]
    if missing:
        lines += ["## Not measured", "", *(f"* {line}" for line in missing), ""]
    told = sorted({pair for record in records.values() if record for pair in record["versions"].items()})
    head = [
        "# Engines",
        "",
        "Two ways to differentiate the gradient of a loss once more: `exact`, a double backward, and `frozen`, "
        "differences of first gradients with every switch held. `auto`, the default, takes `frozen` while it agrees "
        "with `exact`.",
        "",
        "Each command shows how long it still takes. "
        f"One thread. {', '.join(f'{name} {version}' for name, version in told)}.",
        "",
    ]
    complete = all(records[piece.name] is not None or piece.optional for piece in pieces)
    return "\n".join([*head, *lines]), complete


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.engines", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", help="CIFAR-10 with a training split, for accuracy and equality.")
    parser.add_argument("--weights", help="Of ResNet-20 on CIFAR-10.")
    parser.add_argument("--resnet20", default="tests/models/akamaster.py:resnet20", help="Its architecture.")
    parser.add_argument("--weights56", help="Of ResNet-56 on CIFAR-10.")
    parser.add_argument("--resnet56", default="tests/models/akamaster.py:Net,blocks=9", help="Its architecture.")
    parser.add_argument("--only", default="", help="Beginnings of words of a piece's name, such as 'accuracy yolo'.")
    parser.add_argument("--draws", type=int, default=3, help="Clients of each network, for accuracy.")
    parser.add_argument("--clients", type=int, choices=range(1, CLIENTS + 1), default=CLIENTS, help="For equality.")
    parser.add_argument("--steps", type=int, default=200, help="Iterations, for equality.")
    parser.add_argument("--rounds", type=int, default=7, help="Interleaved rounds, for times.")
    parser.add_argument("--compile", action="store_true", help="Also a trial of torch.compile: about a minute.")
    parser.add_argument("--out", type=Path, default=Path("runs/engines"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pieces = [piece for part in PARTS.values() for piece in part.pieces(options)]
    chosen = [piece for piece in pieces if wanted(piece, options.only)]
    if not chosen:
        raise SystemExit(f"No piece's name has words that begin with {options.only!r}.")
    able = [piece for piece in chosen if not piece.lacking]
    options.out.mkdir(parents=True, exist_ok=True)
    if able:
        measure(able, options)
    content, complete = written(pieces, options)
    publish(content, options.out / "engines.md", *([PAGE] if complete else []))


if __name__ == "__main__":
    main()
