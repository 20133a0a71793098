"""Intervals and tests. Pictures of one client are treated as fully dependent, which only makes them more cautious."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval."""

    value: float
    low: float
    high: float


def mean_interval(per_client: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean over clients with a bootstrap interval (BCa; percentile where that is undefined).

    One client gives an infinite interval: nothing can be said about others.
    """
    values = np.asarray(per_client, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    if float(np.ptp(values)) == 0:
        return Interval(mean, mean, mean)
    for method in ("BCa", "percentile"):
        found = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=confidence,
            method=method,
            n_resamples=4999,
            rng=np.random.default_rng(0),
        ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return Interval(mean, float(found.low), float(found.high))
    return Interval(mean, -math.inf, math.inf)


def share_interval(hits: int, pictures: int, clients: int, confidence: float = 0.95) -> Interval:
    """A share with its exact binomial interval (Clopper and Pearson 1934), at the effective size ``clients``."""
    share = hits / pictures
    successes, failures, alpha = share * clients, clients - share * clients, 1 - confidence
    low = 0.0 if hits == 0 else float(stats.beta.ppf(alpha / 2, successes, failures + 1))
    high = 1.0 if hits == pictures else float(stats.beta.ppf(1 - alpha / 2, successes + 1, failures))
    return Interval(share, low, high)


def rank_sum_p(ranks: Sequence[Sequence[float]], galleries: Sequence[int]) -> float:
    """One-sided p-value that ranks are lower than chance: the exact distribution of a sum of uniform ranks.

    Args:
        ranks: Of each client's pictures; the mean of a client counts as one rank.
        galleries: Candidates in each client's line-ups.
    """
    observed = sum(float(np.mean(of_client)) for of_client in ranks)
    distribution = np.ones(1)
    for size in galleries:
        distribution = np.convolve(distribution, np.full(size, 1 / size))
    reached = math.floor(observed + 1e-9) - len(galleries)
    return float(min(1.0, distribution[: reached + 1].sum())) if reached >= 0 else 0.0


def rank_one_p(hits: int, pictures: int, galleries: Sequence[int]) -> float:
    """One-sided p-value that so many first ranks come by chance, at the effective size of one picture per client."""
    clients = len(galleries)
    whole = math.floor(hits / pictures * clients + 1e-9)
    return float(stats.binom.sf(whole - 1, clients, float(np.mean([1 / size for size in galleries]))))
