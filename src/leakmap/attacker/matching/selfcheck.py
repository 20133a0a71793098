"""Whether differences can be trusted in place of double backward: asked at the start, and again and again."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from leakmap.attacker.matching.derivatives import Derivative, Exact, Frozen
from leakmap.errors import NotApplicable

AGREEMENT = 0.999
"""Cosine between two gradients of the matching term from which one stands for the other."""
EVERY = 100
"""Evaluations between two checks."""
# 1e-5 was taken in 112 of 130 measured cases (docs/results/engines.md). Central differences cost a pass more: last.
LADDER = (Frozen(1e-5), Frozen(1e-6), Frozen(1e-4), Frozen(1e-4, central=True))
REFERENCE = Frozen(1e-4, central=True)
"""Where double backward cannot run."""


class SelfCheck:
    """Chooses how gradients are differentiated, and records what it did.

    Attributes:
        checks: How many were made.
        lowest: Lowest cosine at which differences were taken.
        changes: What was changed, and when.
    """

    def __init__(self) -> None:
        self.checks = 0
        self.lowest = math.inf
        self.changes: list[str] = []
        self._evaluations = 0
        self._current: Derivative = LADDER[0]
        self._doubly = True

    def __str__(self) -> str:
        against = "double backward" if self._doubly else "central differences"
        if not self.checks:
            return "not begun"
        agreement = f", lowest cosine {self.lowest:.6f}" if self.lowest < math.inf else ""
        changed = f"; {'; '.join(self.changes)}" if self.changes else ""
        return f"{self._current}, {self.checks} checks against {against}{agreement}{changed}"

    def due(self) -> bool:
        """Whether the next evaluation is to be checked; counts it."""
        self._evaluations += 1
        # 1, not 0: the very first evaluation is checked.
        return self._evaluations % EVERY == 1

    def choose(self, gradient: Callable[[Derivative], list[Tensor]]) -> Derivative:
        """The cheapest derivative that agrees with double backward here.

        Where the network has none, one-sided differences are compared with central ones.

        Args:
            gradient: ``gradient(derivative)``, of the matching term at the present guess.

        Raises:
            NotApplicable: nothing agrees at the first check, and there is no double backward.
        """
        first = not self.checks
        self.checks += 1
        reference = self._reference(gradient)
        found: list[tuple[float, Derivative]] = []
        for candidate in self._candidates():
            found.append((_cosine(gradient, candidate, reference), candidate))
            if found[-1][0] >= AGREEMENT:
                self.lowest = min(self.lowest, found[-1][0])
                return self._take(candidate, found[0])
        if self._doubly:
            return self._take(Exact(), found[0])
        if first:
            raise NotApplicable(
                "The gradient of the matching term cannot be trusted: the network has no double backward, and "
                f"differences of two widths agree only to a cosine of {max(found)[0]:.4f} (at least {AGREEMENT})."
            )
        return self._take(REFERENCE, found[0])

    def _candidates(self) -> list[Derivative]:
        own = [self._current] if isinstance(self._current, Frozen) else []
        ladder = [step for step in LADDER if self._doubly or not step.central]
        return [*own, *(step for step in ladder if step not in own)]

    def _reference(self, gradient: Callable[[Derivative], list[Tensor]]) -> list[Tensor]:
        if self._doubly:
            try:
                return gradient(Exact())
            except (RuntimeError, NotImplementedError) as error:
                # Too little memory says nothing about whether the network has a second derivative.
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self._doubly = False
        return gradient(REFERENCE)

    def _take(self, chosen: Derivative, tried: tuple[float, Derivative]) -> Derivative:
        if chosen != self._current:
            cosine, before = tried
            self.changes.append(f"{chosen} from evaluation {self._evaluations}, as {before} had cosine {cosine:.4f}")
        self._current = chosen
        return chosen


def _cosine(gradient: Callable[[Derivative], list[Tensor]], how: Derivative, reference: list[Tensor]) -> float:
    """-1 where differences fail: a network may do what no replay can follow."""
    try:
        found = gradient(how)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return -1.0
    left, right = (torch.cat([tensor.flatten().double() for tensor in tensors]) for tensors in (found, reference))
    norms = float(left.norm() * right.norm())
    # Where no gradient reaches the pictures there is no direction to compare; both must then be zero.
    if norms == 0:
        return float(torch.equal(left, right))
    return float(left @ right) / norms
