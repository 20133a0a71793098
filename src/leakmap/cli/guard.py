"""A process that waits for the command and speaks for it where it ends without a word.

Code of the user's own may call ``os._exit``, and native code may abort where memory ends. Neither can be caught in the
process that it happens in, and only a result may end with exit code 0, 1 or 2.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from leakmap.cli.exits import BAD_INPUT, INTERNAL, say

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FROM_A_PROCESS, _DIE_WITH_PARENT = 0, 1
"""``SI_USER`` of siginfo, and ``PR_SET_PDEATHSIG`` of prctl."""
_TOGETHER = 0.5
"""Seconds in which two interruptions are one, sent to the group of processes and passed on."""


def guarded(command: Callable[[], int]) -> int:
    """Runs a command in a child process, on Linux; elsewhere in this one.

    Args:
        command: Returns its exit code, whatever happens in Python.

    Returns:
        The exit code that the command returned, in both processes; where it did not get that far, one that no result
        has, and a sentence was said.
    """
    if sys.platform != "linux":
        return command()
    source, sink = os.pipe()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    parent = os.getpid()
    child = os.fork()
    if child:
        return _speaking_for(child, source)
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(INTERNAL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted())
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    code = command()
    os.write(sink, bytes([code]))
    return code


def _interrupted() -> Callable[[int, FrameType | None], None]:
    last = -_TOGETHER

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _TOGETHER:
            last = now
            signal.default_int_handler(number, frame)

    return handler


def _speaking_for(child: int, source: int) -> int:
    """Passes signals on until the child has ended, and says how if it could not."""
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        came = signal.sigwaitinfo({*_PASSED_ON, signal.SIGCHLD})
        if came.si_signo in _PASSED_ON and came.si_code == _FROM_A_PROCESS:  # a terminal tells both by itself
            os.kill(child, came.si_signo)
    os.set_blocking(source, False)
    try:
        return os.read(source, 1)[0]
    except BlockingIOError:
        return _without_a_word(os.waitstatus_to_exitcode(ended[1]))


def _without_a_word(ended: int) -> int:
    """The exit code, said in a sentence, of a command that ended with a status or, below 0, by a signal."""
    if ended >= 0:
        say(
            f"Error: Code that is not leakmap's ended the process with os._exit({ended}) before there was a result: a "
            "model, a loss, an attack or a package. Take that out."
        )
        return BAD_INPUT
    if -ended in _PASSED_ON:
        signal.signal(-ended, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        os.kill(os.getpid(), -ended)
    name = signal.Signals(-ended).name
    if -ended in (signal.SIGXCPU, signal.SIGXFSZ):
        say(f"Error: {name}, a limit of this system (ulimit), ended the process; what is finished is kept.")
        return INTERNAL
    say(
        f"Error: {name} ended the process before there was a result, most likely for lack of memory. Lower "
        "--image-size, --batch-size or --workers, or take a smaller --model; what is finished is kept."
    )
    return INTERNAL
