"""By how much a process grows while it evaluates; runs alone in a process of its own.

    python -m benchmarks.engines.memory WORK ARM

glibc must be told to give pages back, see :data:`benchmarks.machine.RETURN_PAGES`.
"""

import gc
import json
import os
import subprocess
import sys

import torch

from benchmarks import machine
from benchmarks.engines import works

EVALUATIONS = 2


def grown(work: works.Work, arm: str) -> dict[str, int]:
    """Bytes that an evaluation takes beside the client: once it is built, and at most; in a new process.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.engines.memory", json.dumps(work.facts()), arm]
    variables = {**os.environ, **machine.RETURN_PAGES, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{arm} ended with {ran.returncode}: {(ran.stderr.splitlines() or ['killed'])[-1]}")
    return json.loads(ran.stdout.splitlines()[-1])


def _held() -> int:
    gc.collect()
    return machine.held()


def main() -> None:
    """Measures one arm; a small case first, so that what is imported late is there."""
    torch.set_num_threads(1)
    work, arm = works.Work(**json.loads(sys.argv[1])), sys.argv[2]
    works.ARMS[arm](works.client(works.SMALL))()
    client = works.client(work)
    before = _held()
    machine.forget_peak()
    evaluate = works.ARMS[arm](client)
    built = _held()
    for _ in range(EVALUATIONS):
        evaluate()
    print(json.dumps({"built": built - before, "peak": machine.peak() - before}))


if __name__ == "__main__":
    main()
