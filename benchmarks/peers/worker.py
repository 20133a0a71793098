"""A process that serves one kind of contestants: lines of JSON in, lines of JSON out.

    python -m benchmarks.peers.worker leakmap|breaching|leakpro FOLDER cpu|cuda

FOLDER holds a saved case. Each request names an operation and its arguments; each answer is its result, or
``{"error": "…"}``. The first answer comes unasked: versions.
"""

import gc
import importlib.metadata
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import machine
from benchmarks.peers.contestants import Attack, Evaluate, HandWritten, Preset, Settings
from benchmarks.peers.watches import Follower, Last, Stamps
from benchmarks.peers.works import Case
from leakmap.scoring.metrics import metrics

KINDS = {
    "leakmap": "benchmarks.peers.contestants",
    "breaching": "benchmarks.peers.of_breaching",
    "leakpro": "benchmarks.peers.of_leakpro",
}
PACKAGES = ("torch", "torchvision", "timm", "leakmap", "breaching")
MEMORY_ITERATIONS, WARM = 3, 3


class Server:
    """Holds a case and who attacks it.

    Args:
        folder: Of the case.
        device: Where it is attacked.
        contestants: Name -> what builds an evaluation.
        attacks: Name -> a whole attack.
        presets: Name -> a whole attack in published settings.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        contestants: Mapping[str, Callable[[Case], Evaluate]],
        attacks: Mapping[str, Attack],
        presets: Mapping[str, Preset],
    ):
        self.case, self.device = Case.load(folder, device), device
        self.contestants, self.attacks, self.presets = contestants, attacks, presets
        self.built: dict[str, Evaluate] = {}

    def synchronise(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def build(self, name: str, file: str, warm: int) -> dict[str, Any]:
        """Builds a contestant and warms it up; its answer goes to a file, if it gives one."""
        self.built[name] = self.contestants[name](self.case)
        for _ in range(warm):
            answer = self.built[name]()
        answer = self.built[name]()
        if answer is None:
            return {}
        save_file({"gradient": answer[1].detach().contiguous().cpu()}, file)
        return {"match": float(answer[0])}

    def evaluate(self, name: str, iterations: int) -> dict[str, Any]:
        """Seconds of one evaluation: the mean over as many as are asked for."""
        run = self.built[name]
        self.synchronise()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(iterations):
            run()
        self.synchronise()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"seconds": wall / iterations, "cpu": cpu / iterations}

    def iterate(self, name: str, iterations: int) -> dict[str, Any]:
        """Seconds of one iteration of a whole attack, between the beginnings of the second and a later one."""
        stamps = Stamps(self.synchronise)
        self.attacks[name](self.case, Settings(steps=iterations + 2), stamps)
        wall = stamps.wall[1 : iterations + 2]
        if len(wall) <= iterations:
            raise ValueError(f"{name} made {len(stamps.wall)} iterations of {iterations + 2}.")
        return {"seconds": (wall[-1] - wall[0]) / iterations}

    def memory(self, name: str, small: str) -> dict[str, Any]:
        """Bytes that a contestant takes beside the client: once it is built, and at most within 3 evaluations.

        First it evaluates a small case, so that what is imported late is there.
        """
        self.contestants[name](Case.load(Path(small), self.device))()
        gc.collect()
        before = self._held()
        self._forget_peak()
        run = self.contestants[name](self.case)
        gc.collect()
        built = self._held()
        for _ in range(MEMORY_ITERATIONS):
            run()
        self.synchronise()
        return {"built": built - before, "peak": self._peak() - before}

    def follow(
        self, name: str, settings: dict[str, Any], cap: float, psnr: float | None, term: float | None
    ) -> dict[str, Any]:
        """Runs a whole attack; afterwards scores what it had when: seconds, PSNR, matching term.

        A few iterations run before the clock starts, so that imports and the like do not count.

        Args:
            name: Of the attack.
            settings: Of :class:`Settings`.
            cap: Seconds after which it ends.
            psnr: In dB, at which it ends; None: never.
            term: Matching term at which it ends; None: never.
        """
        task, metric, referee = self.case.observation.network.task, metrics.build("psnr"), HandWritten(self.case)

        def scored(x: Tensor) -> float:
            return float(metric(task.denormalize(x), self.case.pictures).mean())

        def measured(x: Tensor) -> float:
            return float(referee.term(x).detach())

        def reached(x: Tensor) -> bool:
            return (psnr is not None and scored(x) >= psnr) or (term is not None and measured(x) <= term)

        self.attacks[name](self.case, Settings(**{**settings, "steps": WARM}), lambda x: None)
        self.synchronise()
        follower = Follower(self.synchronise, cap, reached)
        self.attacks[name](self.case, Settings(**settings), follower)
        self.synchronise()
        spent = follower.spent()
        points = [(seconds, scored(x), measured(x)) for seconds, x in follower.seen]
        return {"points": points, "iterations": follower.iterations, "seconds": spent}

    def take(self, folder: str) -> dict[str, Any]:
        """Holds another case from now on."""
        self.case = Case.load(Path(folder), self.device)
        return {}

    def reconstruct(self, name: str, steps: int, file: str) -> dict[str, Any]:
        """Runs a preset over so many iterations and writes the pictures of the last one; returns seconds of CPU."""
        last, cpu = Last(), time.process_time()
        self.presets[name](self.case, steps, last)
        self.synchronise()
        cpu = time.process_time() - cpu
        if last.x is None:
            raise ValueError(f"{name} made no iteration.")
        save_file({"pictures": self.case.observation.network.task.denormalize(last.x).clamp(0, 1).cpu()}, file)
        return {"cpu": cpu}

    def _held(self) -> int:
        self.synchronise()
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return machine.held()

    def _forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            machine.forget_peak()

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return machine.peak()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"torch": torch.__version__}


def _full_precision() -> None:
    """float32 throughout, for everyone: no TF32."""
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):  # pyright: ignore[reportAttributeAccessIssue]
        backend.fp32_precision = "ieee"


def main() -> None:
    """Serves until the requests end. What a contestant prints goes to the log, never among the answers."""
    kind, folder, device = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    if device == "cuda":
        _full_precision()

    def reply(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        module = importlib.import_module(KINDS[kind])
        server = Server(Path(folder), torch.device(device), module.CONTESTANTS, module.ATTACKS, module.PRESETS)
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        raise
    reply({"versions": _versions(), "contestants": list(module.CONTESTANTS), "attacks": list(module.ATTACKS)})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply(getattr(server, request.pop("do"))(**request))
        except Exception as error:
            reply({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})


if __name__ == "__main__":
    main()
