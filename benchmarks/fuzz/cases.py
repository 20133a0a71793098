"""Runs cases, each decided by the seed and its number, and says how they ended."""

import gc
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.fuzz.bombs import bombs, marker
from benchmarks.fuzz.mutations import Hostile, hostile
from benchmarks.fuzz.readers import Reader, readers
from benchmarks.machine import Idle, forget_peak, held, peak
from leakmap.errors import LeakmapError

GROWTH, SECONDS, HANG, ENDLESS = 2 * 2**30, 5.0, 30.0, 60
"""Bytes of address space and seconds of processor time of a case; seconds after which a case that only waits is killed,
and seconds of processor time after which one is that does not end."""
LONGEST = 4000
"""Characters of a sentence."""


@dataclass(frozen=True)
class Ended:
    """How a case ended.

    Args:
        reader: Its name.
        number: Of the case.
        how: What was done to the file.
        outcome: ``result``, ``refusal`` or ``violation``.
        why: The sentence of a refusal; what is wrong.
        seconds: Of the processor.
        mib: Resident memory that it took.
    """

    reader: str
    number: int
    how: str
    outcome: str
    why: str = ""
    seconds: float = 0.0
    mib: float = 0.0


FORBIDDEN = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class", "ctypes.dlopen"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
}


class Forbidden(BaseException):
    """A reader did what none may."""


class Guard:
    """Refuses what a reader may not do, while it is on."""

    def __init__(self) -> None:
        self.on, self.installed, self.seen = False, False, ""

    def __enter__(self) -> None:
        if not self.installed:
            sys.addaudithook(self._hear)
            self.installed = True
        self.seen, self.on = "", True

    def __exit__(self, *_: object) -> None:
        self.on = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and (event in FORBIDDEN or (event == "open" and _writes(arguments))):
            self.on = False
            self.seen = f"{event} {str(arguments)[:200]}"
            raise Forbidden(self.seen)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


GUARD = Guard()


def run_case(seed: int, number: int, folder: Path, *, loud: bool = False) -> Ended:
    """Runs one case.

    Args:
        seed: Of all cases.
        number: Of the case; with the seed it decides everything.
        folder: Where to write its files; emptied first.
        loud: Whether to print where an exception came from.
    """
    reader, how = written(seed, number, folder)
    return replace(judged(reader, folder, loud=loud), number=number, how=how)


def judged(reader: Reader, folder: Path, *, loud: bool = False) -> Ended:
    """How reading the files in a folder ends."""
    outcome, why, before, files = "result", "", time.process_time(), _open_files()
    try:
        with GUARD, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if reader.read(folder) is None:
                outcome = "refusal"
    except KeyboardInterrupt:
        raise
    except LeakmapError as error:
        outcome, why = "refusal", str(error)
        if "\n" in why or not 0 < len(why) <= LONGEST:
            outcome, why = "violation", f"no sentence, {len(why)} characters: {why[:200]!r}"
    except BaseException as error:
        outcome, why = "violation", f"{type(error).__name__}: {str(error)[:300]}"
        if loud:
            traceback.print_exc()
    seconds = time.process_time() - before
    if GUARD.seen or marker().exists():
        outcome, why = "violation", f"something ran: {GUARD.seen or 'the marker was left'}"
        marker().unlink(missing_ok=True)
    elif seconds > SECONDS:
        outcome, why = "violation", f"took {seconds:.1f} s; {why}"
    elif _open_files() > files and gc.collect() >= 0 and (left := _open_files() - files) > 0:
        outcome, why = "violation", f"files left open: {left}; {why}"
    return Ended(reader.name, 0, "", outcome, why, seconds)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def prepare(folder: Path) -> None:
    """Reads every valid payload, so that all is imported that cases need, and all bombs are made.

    Args:
        folder: Where to write files; emptied first.

    Raises:
        LeakmapError: a payload is not valid; that of CIFAR-10 cannot be, as only its authors' files are read.
        ValueError: a payload is one that its reader takes for none.
    """
    bombs()
    for reader in readers():
        write(folder, dict(reader.files))
        try:
            if reader.read(folder) is None:
                raise ValueError(f"The payload of {reader.name!r} is not valid.")
        except LeakmapError:
            if reader.name != "cifar10":
                raise


def written(seed: int, number: int, folder: Path) -> tuple[Reader, str]:
    """Writes the files of a case; returns its reader and what was done."""
    r = random.Random(f"{seed} {number}")
    reader = readers()[number % len(readers())]
    chosen = r.choice(list(reader.files))
    how, changed = hostile(r, chosen, reader.files[chosen])
    write(folder, {**reader.files, chosen: changed})
    return reader, f"{chosen}: {how}"


def write(folder: Path, files: Mapping[str, Hostile]) -> None:
    """Writes the files of a payload into a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, int):
            path.touch()
            os.truncate(path, content)
        else:
            path.write_bytes(content)


def everything(seed: int, count: int, done: int = 0) -> Iterator[Ended]:
    """Runs all cases in child processes: one that dies or hangs takes none of the others with it.

    Args:
        seed: Of all cases.
        count: How many.
        done: How many of them are done already.
    """
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder) / "case")
    while done < count:
        source, sink = os.pipe()
        child = os.fork()
        if not child:
            os.close(source)
            _serve(seed, range(done, count), sink)
        os.close(sink)
        with os.fdopen(source) as lines:
            for line in _until_quiet(lines, child):
                done += 1
                yield Ended(**json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if done < count:
            reader = readers()[done % len(readers())]
            yield Ended(reader.name, done, "", "violation", f"the process ended with {status}")
            done += 1


def _until_quiet(lines: Any, child: int) -> Iterator[str]:
    idle = Idle(child)
    while idle.seconds() < HANG:
        if select.select([lines], [], [], 0.5)[0]:
            line = lines.readline()
            if not line:
                return
            yield line
            idle = Idle(child)
    os.kill(child, signal.SIGKILL)


def _serve(seed: int, numbers: range, sink: int) -> None:
    """The child: runs cases, one line for each; never returns."""
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit = address_space() + GROWTH
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        with tempfile.TemporaryDirectory() as folder:
            for number in numbers:
                before, used = held(), int(time.process_time())
                resource.setrlimit(resource.RLIMIT_CPU, (used + ENDLESS, resource.RLIM_INFINITY))
                forget_peak()
                ended = asdict(run_case(seed, number, Path(folder) / "case"))
                ended["mib"] = max(0.0, (peak() - before) / 2**20)
                os.write(sink, (json.dumps(ended) + "\n").encode())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(70)


def address_space() -> int:
    """Bytes that this process may address now, on Linux."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
