"""What this machine says: its processor, how much memory this process holds, and whether another one hangs."""

import ctypes
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

RETURN_PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
"""Variables that make glibc give back what is freed, so that resident memory is memory in use."""


def processor() -> str:
    """Its name; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def held() -> int:
    """Resident bytes of this process, once what is freed is given back; the peak outside Linux."""
    if sys.platform != "linux":
        return peak()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def peak() -> int:
    """The most resident bytes of this process since :func:`forget_peak`; since its start outside Linux."""
    if sys.platform == "linux":
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Lets :func:`peak` start anew, on Linux."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


@dataclass
class Idle:
    """For how long a group of processes has only been waiting, on Linux.

    On a machine with much other work a process is slow, but ready to compute whenever one looks. One that hangs is not.

    Args:
        group: Number of the process group.
        looked: When :meth:`seconds` looked last.
        since: Since when none of them has been ready.
    """

    group: int
    looked: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Until now; it looks twice a second at most."""
        now = time.monotonic()
        if now - self.looked >= 0.5:
            self.looked = now
            if _ready(self.group):
                self.since = now
        return self.looked - self.since


def _ready(group: int) -> bool:
    """Whether a process of a group computes, is ready to, or waits for a disk."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:3]
        except OSError:  # it has ended
            continue
        if int(of) == group and state in "RD":
            return True
    return False
