"""By how much a process grows while it evaluates; runs alone in a process of its own.

    python -m benchmarks.engines.memory WORK ARM

glibc must be told to give pages back, see :data:`RETURN_PAGES`.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.engines import works

RETURN_PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
EVALUATIONS = 2


def grown(work: works.Work, arm: str) -> dict[str, int]:
    """Bytes that an evaluation takes beside the client: once it is built, and at most; in a new process.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.engines.memory", json.dumps(work.facts()), arm]
    variables = {**os.environ, **RETURN_PAGES, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{arm} ended with {ran.returncode}: {(ran.stderr.splitlines() or ['killed'])[-1]}")
    return json.loads(ran.stdout.splitlines()[-1])


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _held() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def main() -> None:
    """Measures one arm; a small case first, so that what is imported late is there."""
    torch.set_num_threads(1)
    work, arm = works.Work(**json.loads(sys.argv[1])), sys.argv[2]
    works.ARMS[arm](works.client(works.SMALL))()
    client = works.client(work)
    before = _held()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    evaluate = works.ARMS[arm](client)
    built = _held()
    for _ in range(EVALUATIONS):
        evaluate()
    print(json.dumps({"built": built - before, "peak": _status("VmHWM") - before}))


if __name__ == "__main__":
    main()
