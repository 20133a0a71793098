"""Running jobs on a Ray cluster: the same jobs, the same results, one writer."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, TypeVar

from leakmap.errors import UsageError, WorkerDied
from leakmap.runs.jobs import Job, Report
from leakmap.runs.runner import Local, in_threads

T = TypeVar("T")
WAITING = 2
"""Jobs sent out for each one that can run at once."""


@dataclass(frozen=True)
class Ray:
    """Runs jobs on the machines of a Ray cluster; each needs the pictures, files and results under the same path.

    Args:
        address: Of the cluster, ``auto``, or ``local`` for a cluster of this machine alone that ends with the work.
        gpus: GPUs of each job, such as 0.25; 0 computes on the CPU, one core for each job.
    """

    address: str
    gpus: float = 0.0

    @property
    def device(self) -> str:
        """Where the jobs are computed."""
        return "cuda" if self.gpus else "cpu"

    @property
    def here(self) -> Local:
        """This process, which asks the cluster for nothing."""
        return Local(0)

    def __call__(self, jobs: Sequence[Job[T]], done: Callable[[str, T], None], report: Report) -> None:
        """Runs them.

        Raises:
            UsageError: Ray is not installed, the cluster does not answer, or has not what a job asks for.
        """
        ray = _ray()
        with redirect_stdout(sys.stderr):  # Ray prints there that a worker died, into what --json prints
            self._run(ray, jobs, done, report)

    def _run(self, ray: Any, jobs: Sequence[Job[T]], done: Callable[[str, T], None], report: Report) -> None:
        self._connect(ray)
        try:
            slots = self._slots(ray)
            options = {"num_cpus": 1, "num_gpus": self.gpus, "max_retries": 0}
            remote = ray.remote(**options)(_compute)
            left, flying = list(reversed(jobs)), {}
            while left or flying:
                while left and len(flying) < WAITING * slots:
                    job = left.pop()
                    flying[remote.remote(job, self.device)] = job
                ready, _ = ray.wait(list(flying), timeout=1.0)
                for reference in ready:
                    job = flying.pop(reference)
                    done(job.key, _result(ray, reference, job.key))
                    report(job.key, 1.0)
        finally:
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        own = {"include_dashboard": False} if self.address == "local" else {}
        try:
            ray.init(self.address, log_to_driver=False, logging_level="error", **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UsageError(
                f"No Ray cluster answers at {self.address!r} ({reason}); start one, or leave --ray out."
            ) from None

    def _slots(self, ray: Any) -> int:
        """Jobs that the cluster can run at once."""
        there = ray.cluster_resources()
        cores, gpus = int(there.get("CPU", 0)), float(there.get("GPU", 0))
        slots = min(cores, int(gpus / self.gpus)) if self.gpus else cores
        if slots < 1:
            raise UsageError(
                f"A job asks for 1 core and {self.gpus:g} GPUs, but the Ray cluster at {self.address!r} has {cores} "
                f"cores and {gpus:g} GPUs; lower --gpus, or add machines."
            )
        return slots


def _compute(job: Job[T], device: str) -> T:
    with in_threads(1):
        return job(device, lambda fraction: None)


def _result(ray: Any, reference: Any, key: str) -> Any:
    try:
        return ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError):
        raise WorkerDied(frozenset({key})) from None
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UsageError("--ray needs Ray, which is not installed; install leakmap[cluster].") from None
    return ray
