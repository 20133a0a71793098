"""Is nothing lost, repeated, damaged or seen torn when commands are killed again and again?

    python -m benchmarks.soak [--kills 100] [--only WORK …] [--seed 0] [--out runs/soak]

Six works: an audit, a tuning, a study, a watched folder, a capture, and an audit by an attack that is fitted first.
Each runs once without interruption, and once more while it and all of its processes are killed with SIGKILL at random
moments. Meanwhile another process's view is taken: every file that is in the folder under its own name is read again
and again, and has to be whole. In the end results must be the same as without a kill, no file that was complete (an
outcome, a fit, a part of one) may have been written again, nothing half written may be left, and no file may hold a
pickle. What every start writes, setups for worker processes and the capture, must have the same content each time.
All of it takes about 40 minutes on two cores.
Writes docs/results/soak.md for 100 kills of all works. Ends with exit code 1 if anything fails.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import processor
from benchmarks.markdown import publish, table, versions
from leakmap import LocalRule, Observation, Task, ThreatModel, build_network, capture, observe
from leakmap.capturing.facts import as_toml, facts_of
from leakmap.client.data import load_pictures
from leakmap.client.simulate import Batch, simulate
from leakmap.files import checksum, read_arrays, read_json, read_tensors
from leakmap.runs.fitting import FOLDER, PART, STATE_LIMIT

PAGE = Path("docs/results/soak.md")
FULL = 100
PICKLES = (b"\x80\x02\x8a", b"\x80\x02}", b"\x80\x03}", b"\x80\x04\x95", b"\x80\x05\x95", b"PK\x03\x04")
"""How files begin that pickle writes, and the archives that torch.save puts pickles into."""
PICTURES = ("--data", "samples", "--image-size", "16", "--labels", "known", "--workers", "2", "--quiet")
MODEL = "resnet,blocks=1,width=8"
STUDY = """
title = "Killed again and again"
seed = [0, 1, 2]
[data]
source = "samples"
image_size = 16
victims = 6
[model]
name = "mlp"
[client]
mode = ["train", "eval"]
[threat]
labels = "known"
[attack]
name = "inverting_gradients"
steps = 150
"""


def _stored(path: Path, when: int) -> int | str:
    """What tells a file that was written again from the same one; reads it, and it has to be whole."""
    tensors, texts = read_tensors(path, 2**32)
    return checksum(tensors, texts) if "setup" in texts else when


def _captured(path: Path, when: int) -> int | str:
    """The same of a captured update."""
    return Observation.from_file(path).digest()


@dataclass(frozen=True)
class Work:
    """A command that is killed.

    Args:
        words: What follows ``leakmap``, from the folder for inputs and that for results.
        result: What must be the same, from the folder for results.
        longest: Seconds until a kill, at most.
        mark: Reads a file of tensors that was written at some time; what must stay the same of it.
    """

    words: Callable[[Path, Path], list[str]]
    result: Callable[[Path], object]
    longest: float = 12.0
    mark: Callable[[Path, int], int | str] = _stored


@dataclass
class Seen:
    """What a reader saw of a folder.

    Args:
        mark: As of the work.
        complete: Files that were there under their own names -> their marks.
        again: Files that were written again although they were complete.
        torn: Files that could not be read, and why.
        reads: Versions of files that were read.
        whole: Files -> the version that was read last, and was whole.
    """

    mark: Callable[[Path, int], int | str]
    complete: dict[Path, int | str] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    reads: int = 0
    whole: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def look(self, folder: Path) -> None:
        """Reads every file of leakmap's in a folder, once in each version."""
        for path in [*folder.rglob("*.json"), *folder.rglob("*.safetensors")]:
            if path.name.startswith("."):
                continue
            stored = path.suffix == ".safetensors"
            try:
                status = path.stat()
                when = status.st_mtime_ns
                if self.whole.get(path) == (when, status.st_ino):
                    continue
                mark = self.mark(path, when) if stored else json.loads(path.read_bytes())
            except FileNotFoundError:  # parts go when the fit is whole
                continue
            except Exception as error:
                self.torn.append(f"{path.name}: {error}")
                continue
            self.reads, self.whole[path] = self.reads + 1, (when, status.st_ino)
            if stored and self.complete.setdefault(path, mark) != mark:
                self.again.append(path.name)
                self.complete[path] = mark


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=FULL)
    parser.add_argument("--only", nargs="+", choices=list(WORKS), default=list(WORKS), metavar="WORK")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(options.out, ignore_errors=True)
    inputs = options.out / "inputs"
    inputs.mkdir(parents=True)
    _inputs(inputs)
    rows, failed = [], []
    for number, name in enumerate(options.only):
        kills = options.kills // len(options.only) + (number < options.kills % len(options.only))
        row, wrong = _killed(name, inputs, options.out, kills, random.Random(f"{options.seed} {name}"))
        print(" | ".join(row), *wrong, sep="\n", flush=True)
        rows.append(row)
        failed += wrong
    text = [
        "# Killed again and again",
        "",
        f"    python -m benchmarks.soak --kills {options.kills} --seed {options.seed}",
        "",
        " ".join((__doc__ or "").split("\n\n")[2].split()).split(" Writes ")[0],
        "",
        f"{sum(int(row[1]) for row in rows)} kills, {len(failed)} failures. {processor()}; {versions()}.",
        "",
        *table(["work", "kills", "while running", "files", "read", "torn", "written again", "same result"], rows),
        "*while running*: kills that met a running command; the others came after its end, and the next run only "
        "looked at what was finished. *files*: complete files of tensors; *written again*: those of them that may not "
        "be. *read*: versions of files that were read while others wrote.",
        *[f"\n- {one}" for one in failed],
    ]
    publish("\n".join(text) + "\n", *([PAGE] if options.kills >= FULL and len(options.only) == len(WORKS) else []))
    sys.exit(bool(failed))


def _killed(name: str, inputs: Path, out: Path, kills: int, r: random.Random) -> tuple[list[str], list[str]]:
    """A line of the table, and what failed."""
    work = WORKS[name]
    seen = Seen(work.mark)
    whole, killed = out / name / "whole", out / name / "killed"
    for folder in (whole, killed):
        folder.parent.mkdir(exist_ok=True)
    begun = time.monotonic()
    _finished(work.words(inputs, whole))
    longest = min(work.longest, 1.2 * (time.monotonic() - begun))
    met = 0
    for _ in range(kills):
        process = _started(work.words(inputs, killed))
        ends = time.monotonic() + r.uniform(0.2, longest)
        while process.poll() is None and time.monotonic() < ends:
            seen.look(killed)
            time.sleep(0.02)
        met += process.poll() is None
        _kill(process)
        seen.look(killed)
    ending = threading.Event()
    reader = threading.Thread(target=_until, args=(ending, seen, killed))
    reader.start()
    _finished(work.words(inputs, killed))
    ending.set()
    reader.join()
    files = [path for path in killed.rglob("*") if path.is_file()]
    same = work.result(whole) == work.result(killed)
    checks = {
        f"{name}: another result than without a kill": not same,
        f"{name}: torn files: {seen.torn[:3]}": bool(seen.torn),
        f"{name}: complete files were written again: {seen.again[:3]}": bool(seen.again),
        f"{name}: a part is left": bool(list(killed.rglob(f"*{PART}"))),
        f"{name}: a pickle": any(path.read_bytes()[:4].startswith(PICKLES) for path in files),
    }
    counts = (kills, met, len(seen.complete), seen.reads, len(seen.torn), len(seen.again))
    return [name, *map(str, counts), "yes" if same else "**no**"], [what for what, bad in checks.items() if bad]


def _until(ending: threading.Event, seen: Seen, folder: Path) -> None:
    while not ending.wait(0.02):
        seen.look(folder)


def _started(words: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "leakmap", *words]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _finished(words: list[str]) -> None:
    if code := _started(words).wait(1200):
        sys.exit(f"leakmap {' '.join(words)} ended with exit code {code} without any kill.")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the command with all of its processes, which are a session of their own."""
    with contextlib.suppress(ProcessLookupError):  # it had ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _inputs(folder: Path) -> None:
    """A study file; captures with their clients' pictures and others'; and states of one client with its facts."""
    (folder / "study.toml").write_text(STUDY)
    pictures = load_pictures("samples", 16)
    task = Task((3, 16, 16), 12, (0.5,) * 3, (0.25,) * 3)
    network, rule = build_network(task, MODEL), LocalRule("delta", lr=0.05)
    shown, y = pictures.images.permute(0, 2, 3, 1).numpy(), pictures.labels.numpy()
    np.savez(folder / "others.npz", images=shown[100:], labels=y[100:])
    (folder / "truth").mkdir()
    state: dict[str, torch.Tensor] = {}
    facts = None
    for client in range(8):
        own = slice(2 * client, 2 * client + 2)
        batch = Batch(pictures.images[own].float() / 255, pictures.labels[own])
        sent = simulate(network, rule, batch)
        after = {name: network.weights[name] + step for name, step in sent.update.tensors.items()}
        state = {**network.weights, **after, **(sent.buffers or {})}
        facts = facts_of(observe(sent, ThreatModel()))
        place = folder / "captures" / "round-0001"
        place.mkdir(parents=True, exist_ok=True)
        capture(network.weights, state, facts, file=place / f"client-{client}.safetensors")
        np.savez(folder / "truth" / f"client-{client}.npz", images=shown[own], labels=y[own])
    assert facts is not None
    for when, tensors in (("before", network.weights), ("after", state)):
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(folder / f"{when}.npz", **arrays)
    (folder / "facts.toml").write_text(as_toml(facts))


def _scores(folder: Path) -> object:
    """Of every client, by its number, all scores and those of its floors."""
    found: Any = read_json(folder / "result.json")
    return [{key: one.get(key) for key in ("client", "ranks", "scores", "floors")} for one in found["clients"]]


def _fits(folder: Path) -> object:
    """Scores, and what every fit holds: not its bytes, as safetensors writes the texts of a file in any order."""
    fits: dict[str, object] = {}
    for path in (folder / FOLDER).glob("*.safetensors"):
        arrays, texts = read_arrays(path, STATE_LIMIT)
        fits[path.name] = {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}, texts
    return _scores(folder), fits


def _tuned(folder: Path) -> object:
    found: Any = read_json(folder / "tuned.json")
    return found["attacks"]


def _table(folder: Path) -> object:
    _finished(["study", "export", str(folder.parents[1] / "inputs" / "study.toml"), "--out", str(folder)])
    return (folder / "scores.csv").read_bytes()


def _rows(folder: Path) -> object:
    found: Any = read_json(folder / "watch.json")
    return found["pooled"], {name: {**row, "file": ""} for name, row in found["captures"].items()}


def _audit(*words: str) -> Callable[[Path, Path], list[str]]:
    return lambda inputs, folder: ["audit", *PICTURES, *words, "--out", str(folder)]


def _capturing(inputs: Path, folder: Path) -> list[str]:
    files = (f"--{word}={inputs / f'{word}.npz'}" for word in ("before", "after"))
    folder.mkdir(exist_ok=True)
    return ["capture", *files, f"--facts={inputs / 'facts.toml'}", f"--out={folder / 'client.safetensors'}"]


def _watching(inputs: Path, folder: Path) -> list[str]:
    told = ("--truth", str(inputs / "truth"), "--others", f"npz:{inputs / 'others.npz'}", "--once", "--quiet")
    attack = ("--attack", "inverting_gradients,steps=30", "--labels", "known")
    return ["watch", str(inputs / "captures"), *told, *attack, "--out", str(folder)]


WORKS = {
    "audit": Work(_audit("--model", "mlp", "--attack", "inverting_gradients,steps=150", "--victims", "24"), _scores),
    "tune": Work(
        lambda inputs, folder: [
            *("tune", *PICTURES, "--model", "mlp", "--attack", "inverting_gradients", "--steps", "60"),
            *("--budget", "4", "--rehearsals", "3", "--victims", "3", "--out", str(folder)),
        ],
        _tuned,
    ),
    "study": Work(
        lambda inputs, folder: ["study", "run", str(inputs / "study.toml"), "--out", str(folder), "--workers", "2"],
        _table,
    ),
    "watch": Work(_watching, _rows),
    "capture": Work(_capturing, lambda folder: _captured(folder / "client.safetensors", 0), mark=_captured),
    "fit": Work(
        _audit("--model", MODEL, "--attack", "learned_inverse,clients=400", "--victims", "24"),
        _fits,
        20.0,
    ),
}

if __name__ == "__main__":
    main()
