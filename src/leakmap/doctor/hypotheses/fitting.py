"""Numbers that are in no list, found by Gauss-Newton on the update: several by slopes, one by secants."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from leakmap.auditing.case import EXACT, Case

FITS, SECANTS = 16, 6
"""Steps of a fit of several numbers, and of one."""
ROUND = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)
"""Leading digits of numbers that people choose."""
Place = Callable[[Case], Tensor]
"""The numbers that are fitted, ``(n,)``, as a case has them."""
At = Callable[[Case, Tensor], Case]
"""The same case with other numbers."""


def fitted(
    now: Case, place: Place, at: At, near: Callable[[Case], Sequence[Case]], *, wide: float, widest: float
) -> Case:
    """The case downhill from here.

    Switches of the network make the update jump, so slopes are taken over steps as wide as what is missing.

    Args:
        now: Where to begin.
        place: Reads the numbers.
        at: Sets them.
        near: Rounder numbers, tried before every step.
        wide: Step of a slope over the distance that is left.
        widest: Largest step of a slope.
    """
    damping = 1e-3
    for _ in range(FITS):
        if now.distance <= EXACT / 10:
            break
        width = min(max(wide * now.distance, 1e-3), widest)
        found = min([now, *near(now), *_steps(now, place(now), at, damping, width)], key=lambda one: one.distance)
        damping = damping / 10 if found.distance < now.distance else damping * 100
        if damping > 1e6:
            break
        now = found
    return now


def _steps(now: Case, place: Tensor, at: At, damping: float, width: float) -> list[Case]:
    """Where Gauss-Newton steps of three sizes lead from here; none where slopes cannot be taken."""
    if now.simulated is None:
        return []
    turned = [at(now, place + width * unit) for unit in torch.eye(len(place), dtype=torch.float64)]
    if any(one.simulated is None for one in turned):
        return []
    columns = [_gap(one.simulated or {}, now.simulated) for one in turned]
    missing = _gap(now.observation.update.tensors, now.simulated)
    square = torch.tensor([[_product(a, b) for a in columns] for b in columns], dtype=torch.float64)
    along = torch.tensor([_product(a, missing) for a in columns], dtype=torch.float64) * width
    step = torch.linalg.solve(square + damping * torch.diag(square.diagonal() + 1e-30), along)
    return [at(now, place + share * step) for share in (1.0, 0.5, 0.2)]


def secants(before: Case, after: Case, value: Callable[[Case], float], at: Callable[[Case, float], Case]) -> Case:
    """The best case on the way that secants lead from two with different values of one positive number.

    Args:
        before: One of them.
        after: The better one.
        value: Reads the number.
        at: Sets it.
    """
    seen = [before, after]
    for _ in range(SECANTS):
        if seen[-1].simulated is None or seen[-1].distance <= EXACT / 10 or value(seen[-1]) == value(seen[-2]):
            break
        last = value(seen[-1])
        # No step beyond a factor of ten: switches of the network can make a slope vanish.
        seen.append(at(seen[-1], min(max(last + secant(seen[-2], seen[-1], value), last / 10), last * 10)))
    return min(seen, key=lambda one: one.distance)


def secant(before: Case, after: Case, value: Callable[[Case], float]) -> float:
    """By how much a number should change behind two cases that were simulated, to first order."""
    first, second, sent = before.simulated or {}, after.simulated or {}, after.observation.update.tensors
    names = [name for name in sent if name in first and name in second]
    turn, gap = ([(second[n].double() - other[n].double()).flatten() for n in names] for other in (first, sent))
    size = _product(turn, turn)
    return -_product(turn, gap) / size * (value(after) - value(before)) if size else 0.0


def round_numbers(near: float) -> list[float]:
    """Numbers that people choose, within a factor of two of a positive one, and the powers of ten beside it."""
    tens = 10.0 ** math.floor(math.log10(near))
    found = [float(f"{digit * ten:g}") for ten in (tens / 10, tens, tens * 10) for digit in ROUND]
    return [number for number in found if near / 2 < number < near * 2 or number in (tens, tens * 10)]


def _gap(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[Tensor]:
    return [(a[name] - b[name]).double().flatten() for name in b]


def _product(a: list[Tensor], b: list[Tensor]) -> float:
    return math.fsum(float(x @ y) for x, y in zip(a, b, strict=True))
