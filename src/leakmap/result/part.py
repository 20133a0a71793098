"""What every part of a result is made of.

Every model is frozen and refuses unknown keys. Numbers that are not finite become None on construction, so a result in
memory equals the one that is read back. The ``Args`` sections of all parts are published: docs/result.md and
docs/result.schema.json are made from them.
"""

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_number)]
"""None where it is not finite, which JSON cannot hold."""


class Part(BaseModel):
    """A part of a result; made from keywords, or by ``model_validate`` from an object with the same attributes."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True, allow_inf_nan=False)


class Estimate(Part):
    """An estimate with its 95 % interval.

    Args:
        value: The estimate.
        low: Lower end; null where one client shows nothing about others.
        high: Upper end; null likewise.
    """

    value: Number
    low: Number
    high: Number


class Rate(Part):
    """A share with its exact 95 % interval.

    Args:
        value: The share.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float
