"""What an attack says."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from leakmap.drawing import card

Tick = Callable[[float], None]
"""Called now and then with the finished fraction, in [0, 1]; may raise KeyboardInterrupt to stop."""


@dataclass(frozen=True)
class Attempt:
    """What one attack of a suite came to.

    Args:
        name: Of the attack.
        pictures: ``(N, C, H, W)`` in [0, 1]; None if it did not run or did not finish.
        y: ``(N,)`` classes that it worked with.
        term: The suite's update residual: how far it is from what the client sent.
        seconds: Wall time.
        note: Why there are no pictures.
        failed: Whether it should have come to a result.
        last: Whether it speaks of the pictures of the client's last local step alone.
    """

    name: str
    pictures: Tensor | None = None
    y: Tensor | None = None
    term: float = float("nan")
    seconds: float = 0.0
    note: str = ""
    failed: bool = False
    last: bool = False


@dataclass(frozen=True)
class Reconstruction:
    """What an attacker says the client held.

    Args:
        pictures: ``(N, C, H, W)`` in [0, 1], one for each of the client's; fewer if ``last``.
        y: ``(N,)`` classes that the attack worked with.
        objective: The matching term of what is returned, by which restarts are chosen; of a suite its residual, by
            which attacks are; NaN where a closed form has none.
        curve: The matching term along the chosen restart, evenly spaced.
        notes: For the record: label rule, chosen restart, what was assumed.
        attempts: Of a suite, what each of its attacks came to.
        used: The facts of the Observation that it rests on besides the update.
        last: Whether it speaks of the pictures of the client's last local step alone, in any order.
    """

    pictures: Tensor
    y: Tensor
    objective: float
    curve: tuple[float, ...] = ()
    notes: dict[str, str | int | float] | None = None
    attempts: tuple[Attempt, ...] = ()
    used: frozenset[str] = frozenset()
    last: bool = False

    def __repr__(self) -> str:
        return f"<Reconstruction: {', '.join(f'{name} {fact}' for name, fact in self._facts().items() if fact)}>"

    def _repr_html_(self) -> str:
        return card("Reconstruction", self._facts(), {"": list(self.pictures)})

    def _facts(self) -> dict[str, str]:
        """What is said of it in a line, or beside its pictures in a notebook."""
        count, *shape = self.pictures.shape
        return {
            "pictures": f"{count} of {' x '.join(map(str, shape))}" + (", of the last step alone" if self.last else ""),
            "attack": str((self.notes or {}).get("won", "")),
            "matching term": "" if math.isnan(self.objective) else f"{self.objective:.4g}",
            "rests on": "the update" + "".join(f", {fact}" for fact in sorted(self.used)),
        }
