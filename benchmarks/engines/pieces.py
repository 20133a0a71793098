"""Pieces of work: measured once, kept as JSON, and measured again only when what they measure has changed."""

import ast
import hashlib
import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

import leakmap
from benchmarks import machine
from leakmap.files import read_json, write_json
from leakmap.runs.run import versions_of

PACKAGES = ("torchvision", "timm", "ultralytics")
"""Whose versions are told where they are used."""
MEASURED = (
    "attacker/matching",
    "attacker/attacks/inverting_gradients.py",
    "models",
    "client_step.py",
    "problem/task.py",
)
"""The code that results depend on."""

Tell = Callable[[str], None]
"""Told what is being done."""
Found = Mapping[str, Any]
"""Name of a piece -> what it found."""


@dataclass(frozen=True)
class Piece:
    """A piece of work.

    Args:
        name: Of its file; begins with the name of its part.
        run: Measures; what it returns is kept.
        facts: All that decides the result, besides code and versions.
        cost: Seconds, roughly: for the progress bar.
        lacking: What it needs and is not here; empty: it can run.
        optional: Whether the page is complete without it.
    """

    name: str
    run: Callable[[Tell], dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    cost: float = 1.0
    lacking: str = ""
    optional: bool = False

    def path(self, out: Path) -> Path:
        """Where its result lies."""
        return out / "pieces" / f"{self.name}.json"

    def kept(self, out: Path) -> dict[str, Any] | None:
        """Its record, if there is one of the present code and settings."""
        record = read_json(self.path(out))
        return record if record and record["asked"] == self._asked() else None

    def measure(self, out: Path, tell: Tell) -> None:
        """Measures it and keeps the record; a failure is kept as a sentence."""
        record: dict[str, Any] = {"asked": self._asked()}
        began = time.perf_counter()
        try:
            record["found"] = self.run(tell)
        except Exception as error:
            record["failure"] = said(error)
        record |= {"seconds": time.perf_counter() - began, "versions": versions()}
        path = self.path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)

    def _asked(self) -> dict[str, Any]:
        return {"code": code_digest(), "torch": torch.__version__, **self.facts}


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


@cache
def code_digest() -> str:
    """SHA-256 of the code that is measured, as it was when this process began; comments do not count."""
    digest, folder = hashlib.sha256(), Path(leakmap.__file__).parent
    for place in MEASURED:
        for path in sorted((folder / place).rglob("*.py")) or [folder / place]:
            digest.update(ast.dump(ast.parse(path.read_bytes())).encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of this process, and the processor."""
    found = versions_of(torch.device("cpu"))
    found |= {package: importlib.metadata.version(package) for package in PACKAGES if package in sys.modules}
    device = f"{found.pop('device')}, {torch.backends.cpu.get_cpu_capability()}"
    name = machine.processor()
    return found | {"processor": f"{name}, {device}" if name else device}


@dataclass
class Clock:
    """Seconds of several contestants in interleaved rounds: wall time, and time of the process."""

    rounds: list[dict[str, tuple[float, float]]] = field(default_factory=list)

    def race(self, contestants: Mapping[str, Callable[[], object]], rounds: int, tell: Tell) -> None:
        """Runs every contestant once in each round, in rotating order; one round more than asked for warms up."""
        names = list(contestants)
        for number in range(rounds + 1):
            turn = number % len(names)
            tell(f"round {number} of {rounds}")
            times = {}
            for name in names[turn:] + names[:turn]:
                wall, own = time.perf_counter(), time.process_time()
                contestants[name]()
                times[name] = (time.perf_counter() - wall, time.process_time() - own)
            if number:
                self.rounds.append(times)

    def record(self, share: float = 1.0) -> dict[str, Any]:
        """Medians, for JSON.

        Args:
            share: What the seconds are divided by.
        """
        names = self.rounds[0]
        return {
            name: {
                "wall": statistics.median(times[name][0] for times in self.rounds) / share,
                "cpu": statistics.median(times[name][1] for times in self.rounds) / share,
                "rounds": [times[name][1] / share for times in self.rounds],
            }
            for name in names
        }


def seconds(timed: Mapping[str, Any]) -> str:
    """Process time, and wall time in brackets, in milliseconds."""
    return f"{1000 * timed['cpu']:.3g} ({1000 * timed['wall']:.3g})"


def ratio(timed: Mapping[str, Any], name: str, base: str) -> float:
    """Median over rounds of the ratio of process times within a round."""
    return statistics.median(a / b for a, b in zip(timed[name]["rounds"], timed[base]["rounds"], strict=True))


def agreement(found: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Cosine and relative error, in float64."""
    left, right = found.double().flatten(), reference.double().flatten()
    norms = left.norm() * right.norm()
    cosine = float(left @ right / norms) if norms > 0 else float("nan")
    return {"cosine": cosine, "error": float((left - right).norm() / right.norm())}
