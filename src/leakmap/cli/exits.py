"""How a command ends: an exit code, and a sentence where there is no result.

0, 1 and 2 are only given with a result, so that a gate never takes an accident for one.
"""

import errno
import os
import platform
import re
import sys
import threading
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path

import click

from leakmap.errors import LeakmapError, WorkerDied, in_words, plain
from leakmap.version import __version__

WRONG, BAD_INPUT, INTERNAL, INTERRUPTED, CLOSED = 1, 3, 4, 130, 141
DEBUG = "LEAKMAP_DEBUG"
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_ABOUT_A_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
_OUT_OF_MEMORY = ("can't allocate memory", "could not create a primitive", "PyObject pointer is null")
"""What torch, oneDNN and safetensors say where there is none left."""
_OWN = re.compile(rf'File "{re.escape(str(Path(__file__).parents[1]))}/([^"]+)", line (\d+), in (\S+)')


def ending(error: BaseException) -> tuple[int, str]:
    """The exit code of a command that ended in this, and what is said about it; nothing where nobody listens."""
    if isinstance(error, click.Abort):
        error = error.__cause__ or error
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        return CLOSED, ""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "Interrupted. What is finished is kept; the same command continues."
    if isinstance(error, click.ClickException):
        return BAD_INPUT, _misused(error)
    if isinstance(error, SystemExit):
        return BAD_INPUT, (
            f"Error: Code that is not leakmap's called sys.exit({error.code!r}) before there was a result: a model, a "
            "loss, an attack or a package. Take that out."
        )
    if isinstance(error, LeakmapError):
        return INTERNAL if isinstance(error, WorkerDied) else BAD_INPUT, f"Error: {error}"
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error, error.errno)
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's own
    if out_of_memory or any(words in str(error) for words in _OUT_OF_MEMORY):
        return INTERNAL, (
            "Error: Memory ran out in this process. Lower --image-size, --batch-size or --workers, or take a smaller "
            "--model; what is finished is kept."
        )
    return _mistake(error)


def _misused(error: click.ClickException) -> str:
    """What is wrong with what was typed; nothing where the help was all that could be said."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    said, alike = getattr(error, "message", ""), getattr(error, "possibilities", None)
    said = f"{said} Did you mean {alike[0]}?" if alike else error.format_message()  # the nearest one alone
    return f"Error: {said} Try '{context.command_path if context else 'leakmap'} --help'." if said else ""


def _of_the_system(error: OSError, number: int) -> tuple[int, str]:
    """The ending by an error of the operating system, most of which are about a path."""
    from leakmap.files import FULL

    where = str(Path(str(error.filename)).parent) if error.filename is not None else "the folder that was written to"
    if number in FULL:
        return INTERNAL, (
            f"Error: There is no room left in {where} ({error.strerror}). What is finished is kept: make room, and the "
            "same command continues; or give another folder with --out."
        )
    if number in _REFUSED:
        return BAD_INPUT, (
            f"Error: {error.filename or 'A file'} cannot be opened ({error.strerror}). Give another --out, or change "
            f"the rights on {where}."
        )
    if number in _ABOUT_A_PATH:
        return BAD_INPUT, f"Error: {error.filename}: {error.strerror}."
    return _mistake(error)


def _mistake(error: BaseException) -> tuple[int, str]:
    """The ending by what leakmap does not foresee."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(":.")
    return INTERNAL, (
        f"Internal error: {reason} ({_place(error)}; leakmap {__version__}, Python {platform.python_version()}, torch "
        f"{version('torch')}). Please report this line and the command; what is finished is kept. {DEBUG}=1 shows the "
        "traceback."
    )


def _place(error: BaseException) -> str:
    """The last line of leakmap's own code that an error went through, in a worker process if it came from one."""
    remote = type(error.__cause__).__name__ == "_RemoteTraceback"
    text = str(error.__cause__) if remote else "".join(traceback.format_tb(error.__traceback__))
    own = _OWN.findall(text)
    return "{} line {}, {}".format(*own[-1]) if own else "outside leakmap"


def end(error: BaseException) -> int:
    """Says how a command ended that has no result, and returns its exit code."""
    code, text = ending(error)
    if code in (BAD_INPUT, INTERNAL) and os.environ.get(DEBUG) == "1":
        text = "".join([*traceback.format_exception(error), text])
    if text:
        say(text)
    if code == CLOSED:
        _hush()
    return code


def one_line_each() -> None:
    """From now on, what is said aside from a command's own words, which may repeat what a file says, is a plain line.

    That is warnings, and errors in threads and in the cleaning up of objects, which nobody catches.
    """
    warnings.showwarning = lambda message, category, *_, **__: say(f"{category.__name__}: {message}")
    if os.environ.get(DEBUG) != "1":
        sys.unraisablehook = lambda told: say(f"Aside: {in_words(told.exc_value or told.exc_type())}.")
        threading.excepthook = lambda told: say(f"Aside: {in_words(told.exc_value or told.exc_type())}.")


def say(text: str) -> None:
    """Writes a line on stderr, if anybody listens."""
    try:
        sys.stderr.write(f"{plain(text)}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        _hush()


def _hush() -> None:
    """Lets Python end without a word about the output that nobody reads."""
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue
