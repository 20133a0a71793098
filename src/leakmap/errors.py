"""Every exception that leakmap raises on purpose.

    LeakmapError
    ├── UsageError            what the caller asked for cannot be done as asked
    │   ├── UnknownName       no algorithm, model, source or metric of that name
    │   ├── BadSetting        a setting that does not exist or has an impossible value
    │   ├── DataError         pictures that cannot be read, or too few of them
    │   ├── ModelError        a model or its weights that do not fit the task
    │   ├── StoreError        a results folder that belongs to something else
    │   └── NoRoom            what takes more memory than is free now
    ├── ObservationError      a file that is not a sound Observation
    ├── NotGranted            an attack asked for a fact that the threat model withholds
    ├── NotApplicable         the precondition of a closed form or a label rule does not hold
    ├── NonFinite             a computation left the finite numbers
    └── WorkerDied            a process ended in the middle of a run, as when memory runs out

Each message is a sentence: what was got, what was expected, what to do. They end the command line with exit code 3;
what is raised inside a run is recorded as that run's failure.
"""

import sysconfig
import traceback
from pathlib import Path
from typing import Any


def plain(text: str) -> str:
    """A text with everything that does not print written out, as ``\\x1b``; line ends stay.

    Names of files and labels are others': in a terminal, an escape sequence would act.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def in_words(error: BaseException) -> str:
    """Kind and message of any error in one line, for the sentence about code that is not leakmap's."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r}), which leakmap does not follow"
    message = " ".join(str(error).split()).rstrip(".") or "no message"
    return f"{type(error).__name__}: {message}{_place_of(error)}"


_LIBRARIES = tuple(
    {str(Path(__file__).parent), *(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib"))}
)


def _place_of(error: BaseException) -> str:
    """File and line of the innermost code that belongs to neither leakmap nor a library; empty where there is none."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [one for one in frames if one[0].endswith(".py") and not one[0].startswith(_LIBRARIES)]
    return f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""


def check_type(value: object, kinds: Any, what: str, expected: str) -> None:
    """Refuses a value of another type than a public function takes.

    Args:
        value: What was given.
        kinds: What it may be, as ``isinstance`` takes it.
        what: Its name, for the message.
        expected: What it should be, and what to do.

    Raises:
        UsageError: it is of another type.
    """
    if not isinstance(value, kinds):
        raise UsageError(f"{what} is of type {type(value).__name__}; expected {expected}.")


LONGEST = 2000
"""Characters of a message: what a file says may be quoted in it, and be of any length."""


class LeakmapError(Exception):
    """The root: catch this to catch everything that leakmap raises on purpose."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


class UsageError(LeakmapError):
    """What the caller asked for cannot be done as asked."""


class UnknownName(UsageError):
    """No algorithm, model, source or metric of that name."""


class BadSetting(UsageError):
    """A setting that does not exist, or has an impossible value."""


class DataError(UsageError):
    """Pictures that cannot be read, or too few of them."""


class ModelError(UsageError):
    """A model, or its weights, that does not fit the task or cannot be attacked."""


class StoreError(UsageError):
    """A results folder that holds something else than what was asked for."""


class NoRoom(UsageError):
    """What takes more memory than is free now; where more is free, the same works."""


class ObservationError(LeakmapError):
    """A file that is not a sound Observation; the message names the file and the field."""


class NotGranted(LeakmapError):
    """An attack asked for a fact that the threat model withholds."""


class NotApplicable(LeakmapError):
    """The precondition of a closed form or a label rule does not hold."""


class NonFinite(LeakmapError):
    """A computation left the finite numbers."""


class WorkerDied(LeakmapError):
    """A process ended in the middle of a run; what was finished before is kept.

    Args:
        keys: What may have been running in it.
    """

    def __init__(self, keys: frozenset[str] = frozenset()):
        super().__init__(
            "A worker process died, most likely for lack of memory. What was finished is kept; the same command "
            "continues, with fewer --workers if it happens again."
        )
        self.keys = keys
