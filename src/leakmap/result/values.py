"""Values of clients, computed from a result: what studies compare, client by client."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from leakmap.result.result import Result


def rank_score(result: Result) -> dict[Hashable, float]:
    """Client -> share of the other candidates that the true picture beats in its line-up, mean over its pictures.

    1 is first in every line-up, 0.5 what chance gives, whatever the size of the line-ups.
    """
    return {one.client: _beaten(one.ranks, one.galleries) for one in result.finished}


def first_ranks(result: Result) -> dict[Hashable, float]:
    """Client -> share of its pictures that are ranked first."""
    return {one.client: _mean([float(rank == 1) for rank in one.ranks]) for one in result.finished}


def exposed_share(result: Result) -> dict[Hashable, float]:
    """Client -> share of its pictures that are exposed: first, recognisable, above its floors and other clients'."""
    exposed = Counter(one.client for one in (result.exposure.found if result.exposure else ()))
    return {one.client: exposed[one.client] / len(one.ranks) for one in result.finished}


def exposed_any(result: Result) -> dict[Hashable, float]:
    """Client -> 1 where any of its pictures is exposed, else 0."""
    return {client: float(share > 0) for client, share in exposed_share(result).items()}


def advantage(result: Result) -> dict[Hashable, float]:
    """Client -> by what share of a line-up its pictures rank better from its own update than from a swapped one.

    In [-1, 1], mean over its pictures; 0 on average where updates say nothing of pictures. Clients without a swapped
    update are left out.
    """
    return {
        one.client: _beaten(one.ranks, one.galleries) - _beaten(one.swapped_ranks, one.galleries)
        for one in result.finished
        if one.swapped_ranks
    }


def mean_score(result: Result, metric: str) -> dict[Hashable, float]:
    """Client -> mean of a metric over its pictures; clients without a finite value are left out."""
    return {one.client: _mean(own) for one in result.finished if (own := _all_finite(one.scores[metric])) is not None}


def gain_over_best_floor(result: Result, metric: str = "psnr") -> dict[Hashable, float]:
    """Client -> mean of a metric over its pictures, less that of the floor with the highest mean in this audit.

    Clients without a finite value are left out; all of them, if the audit did not compute the metric.
    """
    return gain_over_floor(result, metric, result.metrics[metric].best_floor) if metric in result.metrics else {}


def gain_over_floor(result: Result, metric: str, floor: str) -> dict[Hashable, float]:
    """Client -> mean of a metric over its pictures, less that of a floor; clients without a finite value are left out.

    Args:
        result: Of an audit that computed the metric.
        metric: Such as ``psnr``.
        floor: Such as ``prior_only``: the same search without the update.
    """
    found: dict[Hashable, float] = {}
    for one in result.finished:
        own, other = _all_finite(one.scores[metric]), _all_finite(one.floors[metric].get(floor) or (None,))
        if own is not None and other is not None:
            found[one.client] = _mean(own) - _mean(other)
    return found


def _all_finite(values: Sequence[float | None]) -> list[float] | None:
    found = [value for value in values if value is not None]
    return found if len(found) == len(values) else None


def _beaten(ranks: Sequence[float], galleries: Sequence[int]) -> float:
    return _mean([(size - rank) / (size - 1) for rank, size in zip(ranks, galleries, strict=True)])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
