"""Runs trials: in this process, or in a pool of processes with one writer, the caller."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leakmap.errors import WorkerDied
from leakmap.models.network import user_code
from leakmap.registry import Spec
from leakmap.trial import Outcome, Stage, Trial, run

Report = Callable[[str, float], None]
"""``(trial key, finished fraction)``."""


def run_here(
    trials: Iterable[Trial], stages: Mapping[str, Stage], done: Callable[[Outcome], None], report: Report
) -> None:
    """Runs trials one after the other in this process."""
    for trial in trials:
        done(run(trial, stages[trial.stage], lambda fraction, key=trial.key: report(key, fraction)))


@dataclass(frozen=True)
class StageFile:
    """A stage as another process finds it.

    Args:
        path: Its file.
        model: The architecture, if it is a user's own file that the worker shall run.
        loss: The loss, likewise.
    """

    path: Path
    model: Spec
    loss: Spec


def run_in_pool(
    trials: list[Trial],
    files: Mapping[str, StageFile],
    done: Callable[[Outcome], None],
    report: Report,
    *,
    workers: int,
    device: str,
) -> None:
    """Runs trials in fresh processes, which load the stages from files.

    On an interruption the running trials stop at their next sign of life, and the interruption goes on.

    Args:
        trials: What to run.
        files: Stage digest -> file.
        done: Called here with each outcome, as it comes.
        report: Called here with the progress of running trials.
        workers: Processes; each computes in one thread, so that results do not depend on their number.
        device: Where to compute.

    Raises:
        WorkerDied: a process ended in the middle of a run.
    """
    context = multiprocessing.get_context("spawn")
    queue, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(
        min(workers, len(trials)),
        mp_context=context,
        initializer=_start,
        initargs=(dict(files), device, queue, stop),
    ) as pool:
        with _interrupts_held():
            pending: set[Future[Outcome]] = {pool.submit(_run, trial) for trial in trials}
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                while not queue.empty():
                    report(*queue.get())
                for future in finished:
                    done(future.result())
        except BaseException as error:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise WorkerDied(
                    "A worker process died, most likely for lack of memory. What was finished is kept; the same "
                    "command continues, with fewer --workers if it happens again."
                ) from None
            raise


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


_stages: dict[str, Stage] = {}
_worker: dict[str, Any] = {}


def _start(files: dict[str, StageFile], device: str, queue: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker.update(files=files, device=device, queue=queue, stop=stop)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(trial: Trial) -> Outcome:
    if trial.stage not in _stages:
        file: StageFile = _worker["files"][trial.stage]
        stage = Stage.load(file.path, user_code(file.model, file.loss))
        _stages[trial.stage] = stage.to(_worker["device"])

    def report(fraction: float) -> None:
        if _worker["stop"].is_set():
            raise KeyboardInterrupt
        _worker["queue"].put((trial.key, fraction))

    return run(trial, _stages[trial.stage], report)
