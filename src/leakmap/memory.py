"""Whether something fits into the memory that is left, asked before it is allocated.

An allocation that the system cannot serve ends Python, or another process, without a word.
"""

import os
import resource
from pathlib import Path

from leakmap.errors import NoRoom

_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, its container and its own limit the least.

    None where the system does not say, as outside Linux.
    """
    found = [_of_machine(), _of_container(), _of_process()]
    return min((one for one in found if one is not None), default=None)


def check_fits(needed: int, what: str, advice: str) -> None:
    """Refuses what does not fit into the memory that is left.

    Args:
        needed: Bytes.
        what: What takes them, with its verb in the plural or singular: ``12 pictures of 6000x6000 take``.
        advice: What to do about it, as the rest of a sentence.

    Raises:
        NoRoom: it does not fit.
    """
    free = free_memory()
    if free is not None and needed > free:
        raise NoRoom(f"{what} {needed / 1e9:.1f} GB of memory, and {max(free, 0) / 1e9:.1f} GB are free: {advice}.")


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _of_container() -> int | None:
    try:
        most, used = (_CGROUP / name for name in ("memory.max", "memory.current"))
        return int(most.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or none with a limit
        return None


def _of_process() -> int | None:
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return None
    return None if most == resource.RLIM_INFINITY else most - pages * os.sysconf("SC_PAGE_SIZE")
