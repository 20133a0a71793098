"""Is nothing lost, repeated or damaged when a study is killed again and again?

    python -m benchmarks.killed [--kills 20] [--out runs/killed]
    python -m benchmarks.killed --fitted [--kills 10]

Runs a study of about 200 runs once without interruption, and once more, killing the command and all of its processes
with SIGKILL at random moments. Then the scores of both must be the same bytes, the stored keys exactly the planned
ones, and no finished run may ever have been written again. With ``--fitted`` it is an audit by an attack that is fitted
first: of that neither a part that was complete nor the whole may be written again, and no file may hold a pickle. Ends
with exit code 1 if anything of that fails.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from leakmap.files import read_json
from leakmap.runs.fitting import FOLDER, PART
from leakmap.study.file import read_study
from leakmap.study.running import standing

STUDY = """
title = "Killed again and again"
seed = [0, 1, 2, 3, 4]
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


AUDIT = (
    *("--model", "resnet,blocks=1-1,width=8,preact=false", "--data", "samples", "--image-size", "16"),
    *("--attack", "learned_inverse,clients=1200", "--labels", "known", "--victims", "90"),
)
PICKLES = (b"\x80\x02\x8a", b"\x80\x02}", b"\x80\x03}", b"\x80\x04\x95", b"\x80\x05\x95", b"PK\x03\x04")
"""How files begin that pickle writes, and the archives that torch.save puts pickles into."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--fitted", action="store_true", help="An audit by a fitted attack, in place of a study.")
    parser.add_argument("--kills", type=int, default=None, help="20, of a fitted attack 10.")
    parser.add_argument("--longest", type=float, default=16.0, help="Seconds until a kill, at most.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/killed"))
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    options.kills = options.kills or (10 if options.fitted else 20)
    sys.exit(not all((_fitted(options) if options.fitted else _study(options)).values()))


def _study(options: argparse.Namespace) -> dict[str, bool]:
    """A study: what holds."""
    file = options.out / "study.toml"
    file.write_text(STUDY)
    whole, killed = options.out / "whole", options.out / "killed"
    _run(file, whole, options.workers).wait()
    random.seed(options.seed)
    kept: dict[Path, int] = {}
    rewritten, progress = 0, []
    for _ in range(options.kills):
        process = _run(file, killed, options.workers)
        time.sleep(random.uniform(0.5, options.longest))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = _written(killed)
        rewritten += sum(now.get(path) != when for path, when in kept.items())
        kept = now
        progress.append(len(now))
    _run(file, killed, options.workers).wait()
    now = _written(killed)
    rewritten += sum(now.get(path) != when for path, when in kept.items())
    planned = set(standing(read_study(file), killed).keys)
    for folder in (whole, killed):
        _call("export", str(file), "--out", str(folder), "--workers", "0").wait()
    checks = {
        "exactly the planned keys": {path.stem for path in now} == planned,
        "none written again": rewritten == 0,
        "none damaged": not standing(read_study(file), killed).missing,
        "same bytes in scores.csv": (whole / "scores.csv").read_bytes() == (killed / "scores.csv").read_bytes(),
    }
    print(f"{len(planned)} runs, killed {options.kills} times; finished after each: {progress}")
    return _told(checks)


def _fitted(options: argparse.Namespace) -> dict[str, bool]:
    """An audit by an attack that is fitted first: what holds."""
    whole, killed = options.out / "whole", options.out / "killed"
    if code := _audit(whole, options.workers).wait():
        sys.exit(f"The audit ended with exit code {code} without any kill.")
    random.seed(options.seed)
    seen: dict[str, int] = {}
    again: list[str] = []
    progress = []
    while len(progress) < options.kills:
        process = _audit(killed, options.workers)
        before = len(_written(killed))
        kill_at = time.monotonic() + random.uniform(2.0, options.longest)
        # The first half at any moment of the fit; the others once clients are being attacked again.
        until_attacking = len(progress) >= options.kills // 2
        while process.poll() is None and (until_attacking or time.monotonic() < kill_at):
            again += _watched(killed, seen)
            if until_attacking and len(_written(killed)) > before:
                until_attacking, kill_at = False, time.monotonic() + random.uniform(0.0, 2.0)
            time.sleep(0.02)
        ended = process.poll() is not None
        if not ended:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        again += _watched(killed, seen)
        progress.append(_standing(killed))
        if ended:
            break
    _audit(killed, options.workers).wait()
    again += _watched(killed, seen)
    files = [path for path in killed.rglob("*") if path.is_file()]
    checks = {
        f"killed {options.kills} times before it ended": len(progress) == options.kills,
        "same scores": _scores(whole) == _scores(killed),
        "same bytes of what was fitted": _bytes(whole / FOLDER) == _bytes(killed / FOLDER),
        "nothing that was complete written again": not again,
        "no part is left": not list((killed / FOLDER).glob(f"*{PART}")),
        "no pickle": not [path for path in files if path.read_bytes()[:4].startswith(PICKLES)],
    }
    print(f"{len(seen)} files of fits and trials; kept after each kill (parts, fits, trials): {progress}")
    return _told(checks)


def _told(checks: dict[str, bool]) -> dict[str, bool]:
    for what, good in checks.items():
        print(f"{'yes' if good else 'NO':4}{what}")
    return checks


def _audit(folder: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "leakmap", "audit", *AUDIT, "--out", str(folder), "--workers", str(workers)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _watched(folder: Path, seen: dict[str, int]) -> list[str]:
    """Notes when every part, fit and trial was written; names those that were seen complete before, and are newer."""
    again = []
    for path in (*(folder / FOLDER).glob("[!.]*.safetensors"), *(folder / "trials").glob("[!.]*.safetensors")):
        try:
            when = path.stat().st_mtime_ns
        except FileNotFoundError:  # parts go when the fit is whole
            continue
        name = str(path.relative_to(folder))
        if seen.setdefault(name, when) != when:
            again.append(name)
            seen[name] = when
    return again


def _standing(folder: Path) -> tuple[int, int, int]:
    """Parts of fits, fits and trials that are kept."""
    fits = [path.name for path in (folder / FOLDER).glob("[!.]*.safetensors")]
    parts = sum(name.endswith(PART) for name in fits)
    return parts, len(fits) - parts, len(_written(folder))


def _scores(folder: Path) -> object:
    """Of every client, by its number, all scores and those of its floors."""
    found = read_json(folder / "result.json")
    assert isinstance(found, dict)
    return [{key: one.get(key) for key in ("client", "ranks", "scores", "floors")} for one in found["clients"]]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def _call(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "leakmap", "study", *words]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _run(file: Path, folder: Path, workers: int) -> subprocess.Popen[bytes]:
    return _call("run", str(file), "--out", str(folder), "--workers", str(workers))


def _written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "trials").glob("*.safetensors")}


if __name__ == "__main__":
    main()
