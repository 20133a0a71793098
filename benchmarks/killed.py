"""Is nothing lost, repeated or damaged when a study is killed again and again?

    python -m benchmarks.killed [--kills 20] [--out runs/killed]

Runs a study of about 200 runs once without interruption, and once more, killing the command and all of its processes
with SIGKILL at random moments. Then the scores of both must be the same bytes, the stored keys exactly the planned
ones, and no finished run may ever have been written again. Ends with exit code 1 if anything of that fails.
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


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=16.0, help="Seconds until a kill, at most.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/killed"))
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
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
    for what, good in checks.items():
        print(f"{'yes' if good else 'NO':4}{what}")
    sys.exit(not all(checks.values()))


def _call(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "leakmap", "study", *words]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _run(file: Path, folder: Path, workers: int) -> subprocess.Popen[bytes]:
    return _call("run", str(file), "--out", str(folder), "--workers", str(workers))


def _written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "trials").glob("*.safetensors")}


if __name__ == "__main__":
    main()
