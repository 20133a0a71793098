"""What a check comes to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from leakmap.observation.observation import Observation

Level = Literal["fine", "notice", "wrong"]
LEAVE_OUT = "leave the buffers out (--no-buffers of leakmap capture, attack and audit)"


@dataclass(frozen=True)
class Finding:
    """What one check came to.

    Args:
        name: What was looked at.
        level: ``fine``; ``notice``: it costs something, or cannot be told; ``wrong``: the facts contradict the update.
        sentence: What was found, what it means, what to do.
    """

    name: str
    level: Level
    sentence: str


Check = Callable[[Observation], Iterator[Finding]]
