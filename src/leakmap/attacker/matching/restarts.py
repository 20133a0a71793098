"""Where restarts ended, and which one is chosen."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Run:
    """Where a restart ended.

    Args:
        x: Its kept iterate, normalized.
        y: ``(N,)`` classes.
        objective: The matching term there; NaN without an update.
        curve: The matching term along the way.
        tv: Total variation of ``x``.
    """

    x: Tensor
    y: Tensor
    objective: float
    curve: tuple[float, ...]
    tv: float


def choose(runs: list[Run]) -> int:
    """Index of the run with the lowest objective; ties within 1 % go to the lower total variation."""
    lowest = min((run.objective for run in runs), default=math.nan)
    if math.isnan(lowest):
        return 0
    tied = [i for i, run in enumerate(runs) if run.objective <= lowest * 1.01]
    return min(tied, key=lambda i: runs[i].tv)
