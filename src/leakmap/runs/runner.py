"""Where jobs are computed: here, in a pool of processes, on a cluster."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from leakmap.runs.pool import Job, Report, one_thread, run_here, run_in_pool


def default_workers(device: str = "cpu") -> int:
    """One process for each core that this process may use, at most 16; one where they would share an accelerator."""
    if device != "cpu":
        return 1
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


T = TypeVar("T")


class Runner(Protocol):
    """Runs jobs somewhere and hands every result to ``done``, in this process."""

    def __call__(self, jobs: Sequence[Job[T]], done: Callable[[T], None], report: Report) -> None:
        """Runs them.

        Raises:
            WorkerDied: a process ended in the middle of a job.
        """
        ...


@dataclass(frozen=True)
class Local:
    """Runs jobs on this machine.

    Args:
        workers: Processes; 0 computes in this one.
        device: Where to compute.
    """

    workers: int
    device: str = "cpu"

    def __call__(self, jobs: Sequence[Job[T]], done: Callable[[T], None], report: Report) -> None:
        """Runs them."""
        if self.workers:
            run_in_pool(jobs, done, report, workers=self.workers, device=self.device)
        else:
            with one_thread():
                run_here(jobs, done, report, device=self.device)
