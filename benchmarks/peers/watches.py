"""What looks on while an attack runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


class Enough(KeyboardInterrupt):
    """Ends an attack from within. Tools that let their user interrupt them end in order."""


class Watch(Protocol):
    """Told the normalized pictures once in each iteration; may raise :class:`Enough`."""

    def __call__(self, x: Tensor, /) -> None: ...


@dataclass
class Stamps:
    """Notes the time of each iteration.

    Args:
        synchronise: Waits for the device.
    """

    synchronise: Callable[[], None]
    wall: list[float] = field(default_factory=list)

    def __call__(self, x: Tensor) -> None:
        self.synchronise()
        self.wall.append(time.perf_counter())


@dataclass
class Last:
    """Keeps the pictures of the last iteration."""

    x: Tensor | None = None

    def __call__(self, x: Tensor) -> None:
        self.x = x.detach().clone()


@dataclass
class Follower:
    """Keeps pictures with the time at which they were there, not counting the time that it takes itself.

    It looks whenever 2 % more time has passed than at its last look. Scores are computed from what it keeps, later.

    Args:
        synchronise: Waits for the device.
        cap: Seconds after which the attack ends.
        enough: Says of pictures whether the attack may end.
    """

    synchronise: Callable[[], None]
    cap: float
    enough: Callable[[Tensor], bool]
    seen: list[tuple[float, Tensor]] = field(default_factory=list)
    iterations: int = 0
    started: float = field(default_factory=time.perf_counter)
    own: float = 0.0

    def __call__(self, x: Tensor) -> None:
        self.iterations += 1
        spent = self.spent()
        if self.seen and spent < min(self.cap, 1.02 * self.seen[-1][0]):
            return
        self.synchronise()
        began, spent = time.perf_counter(), self.spent()
        self.seen.append((spent, x.detach().clone()))
        enough = spent >= self.cap or self.enough(x.detach())
        self.own += time.perf_counter() - began
        if enough:
            raise Enough

    def spent(self) -> float:
        """Seconds of the attack so far."""
        return time.perf_counter() - self.started - self.own
