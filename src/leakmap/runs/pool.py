"""A pool of processes with one writer, the caller."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from leakmap.errors import WorkerDied
from leakmap.runs.jobs import Job, Report

T = TypeVar("T")
AHEAD = 4
"""Jobs on their way for each process: waiting for a million at once takes longer than running them."""
_SHARED = [__name__, "leakmap.attacker.attacks.strongest", "torch._dynamo"]
"""What every process would import for itself; the last is what torch imports with the first optimiser that is made."""


def run_in_pool(
    jobs: Sequence[Job[T]], done: Callable[[str, T], None], report: Report, *, workers: int, device: str
) -> None:
    """Runs jobs in fresh processes.

    On an interruption the running jobs stop at their next sign of life, and the interruption goes on.

    Args:
        jobs: What to run.
        done: Called here with the key of each job and what it made, as it comes.
        report: Called here with the progress of running jobs.
        workers: Processes; each computes in one thread, so that results do not depend on their number.
        device: Where to compute.

    Raises:
        WorkerDied: a process ended in the middle of a job; names the jobs that it may have been.
    """
    context = _context()
    queue, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start, initargs=(device, queue, stop)
    ) as pool:
        left, started = iter(jobs), dict[Future[bytes], str]()
        running = frozenset[str]()
        try:
            while _fill(pool, started, left, AHEAD * workers):
                finished, pending = wait(started, timeout=0.2, return_when=FIRST_COMPLETED)
                died = any(isinstance(future.exception(), BrokenProcessPool) for future in finished)
                running = running if died else frozenset(started[future] for future in pending if future.running())
                while not queue.empty():
                    report(*queue.get())
                for future in finished:
                    done(started.pop(future), pickle.loads(future.result()))  # noqa: S301  of our own process
        except BaseException as error:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise WorkerDied(running) from None
            raise


def _fill(pool: ProcessPoolExecutor, started: dict[Future[bytes], str], left: Iterator[Job[Any]], most: int) -> bool:
    """Sends out jobs until so many are on their way; whether any is."""
    with _interrupts_held():
        while len(started) < most and (job := next(left, None)) is not None:
            started[pool.submit(_run, job)] = job.key
    return bool(started)


def _context() -> Any:
    """How processes are started: on Linux out of one that has imported what computes, and nothing of the user's, once.

    That is Python's own default there from 3.14 on. Elsewhere each process imports everything anew, as forks of a
    process that holds Apple's libraries are not safe.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_SHARED)
    return context


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back here; processes started meanwhile inherit this and never see it, not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: dict[str, Any] = {}


def _start(device: str, queue: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    # Else an ending process waits until its reports of progress are read, which nobody does after an interruption.
    queue.cancel_join_thread()
    _worker.update(device=device, queue=queue, stop=stop)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(job: Job[Any]) -> bytes:
    """The result by value: tensors that were shared would each hold a file open in the caller."""

    def told(fraction: float) -> None:
        if _worker["stop"].is_set():
            raise KeyboardInterrupt
        _worker["queue"].put((job.key, fraction))

    return pickle.dumps(job(_worker["device"], told))
