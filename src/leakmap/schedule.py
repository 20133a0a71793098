"""The learning rate of every local step, as the schedulers of torch compute it from the client's first one.

A schedule begins anew in every round of a client.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

from pydantic import Field

from leakmap.errors import BadSetting
from leakmap.registry.registry import checked_settings
from leakmap.registry.spec import Spec, near_misses

CONSTANT = "constant"
"""The specification of a client that keeps its rate."""
Per = Literal["step", "epoch"]
Turns = Annotated[int, Field(ge=1)]
Decay = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes.

    Args:
        rate: ``rate(lr, turn, turns)``: that of a turn, counted from 0, of so many, for a client that begins with
            ``lr``.
        per: What a turn is: a local step or an epoch.
    """

    rate: Callable[[float, int, int], float]
    per: Per


def constant() -> Schedule:
    """The same rate in every step."""
    return Schedule(lambda lr, turn, turns: lr, "step")


def step(*, size: Turns, gamma: Decay = 0.1, per: Per = "epoch") -> Schedule:
    """``torch.optim.lr_scheduler.StepLR``: multiplied by ``gamma`` after every ``size`` turns."""
    return Schedule(lambda lr, turn, turns: lr * gamma ** (turn // size), per)


def exponential(*, gamma: Decay, per: Per = "epoch") -> Schedule:
    """``torch.optim.lr_scheduler.ExponentialLR``: multiplied by ``gamma`` after every turn."""
    return Schedule(lambda lr, turn, turns: lr * gamma**turn, per)


def cosine(*, length: Turns | None = None, least: Annotated[float, Field(ge=0)] = 0.0, per: Per = "step") -> Schedule:
    """``torch.optim.lr_scheduler.CosineAnnealingLR``: half a cosine down to ``least`` after ``length`` turns.

    Without a length, over all turns of the client; beyond its length the cosine goes on.
    """

    def rate(lr: float, turn: int, turns: int) -> float:
        return least + (lr - least) * (1 + math.cos(math.pi * turn / (length or turns))) / 2

    return Schedule(rate, per)


_SCHEDULES = {one.__name__: one for one in (constant, step, exponential, cosine)}


@cache
def schedule_of(text: str) -> Schedule:
    """The schedule that a specification names.

    Raises:
        BadSetting: there is none of that name, or a setting is unknown, missing or impossible.
    """
    spec = Spec.parse(text)
    if spec.name not in _SCHEDULES:
        raise BadSetting(f"There is no learning-rate schedule {spec.name!r}; {near_misses(spec.name, _SCHEDULES)}")
    make = _SCHEDULES[spec.name]
    return make(**checked_settings(make, spec, "schedule"))
