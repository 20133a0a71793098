"""Intervals and tests. Pictures of one client are treated as fully dependent, which only makes them more cautious."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import signal, stats


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
    # Equal values have no spread to resample, and BCa would divide 0 by 0.
    if float(np.ptp(values)) == 0:
        return Interval(mean, mean, mean)
    for method in ("BCa", "percentile"):
        found = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=confidence,
            method=method,
            # The generator is fixed, so the same scores give the same interval in every process.
            n_resamples=4999,
            rng=np.random.default_rng(0),
        ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return Interval(mean, float(found.low), float(found.high))
    return Interval(mean, -math.inf, math.inf)


def proportion_interval(hits: int, pictures: int, clients: int, confidence: float = 0.95) -> Interval:
    """A share with its exact binomial interval (Clopper and Pearson 1934), at the effective size ``clients``."""
    share = hits / pictures
    successes, failures, alpha = share * clients, clients - share * clients, 1 - confidence
    # A beta distribution with a parameter of 0 has no quantile: without a hit, or without a miss, the end is exact.
    low = 0.0 if hits == 0 else float(stats.beta.ppf(alpha / 2, successes, failures + 1))
    high = 1.0 if hits == pictures else float(stats.beta.ppf(1 - alpha / 2, successes + 1, failures))
    return Interval(share, low, high)


GRID = 2000
MANY = 200


def rank_sum_p(ranks: Sequence[Sequence[float]], galleries: Sequence[Sequence[int]]) -> float:
    """One-sided p-value that ranks are lower than chance: the distribution of a sum of uniform ranks.

    A rank counts as its fraction ``(rank - 1/2) / gallery``, and a client as the mean fraction of its pictures, as if
    they were one picture with its smallest gallery. The sum over clients has its exact distribution on a grid of
    1/2000, rounded so that p can only come out larger; the normal one from 200 clients on.

    Args:
        ranks: Of each client's pictures.
        galleries: Candidates in each of these line-ups.
    """
    fractions = [
        [(rank - 0.5) / size for rank, size in zip(*client, strict=True)]
        for client in zip(ranks, galleries, strict=True)
    ]
    observed = sum(float(np.mean(client)) for client in fractions)
    sizes = [min(client) for client in galleries]
    if len(sizes) >= MANY:
        # A fraction (rank - 1/2) / n that is uniform over n ranks has mean 1/2 and variance (1 - 1 / n^2) / 12.
        variance = sum((1 - 1 / size**2) / 12 for size in sizes)
        return float(stats.norm.cdf((observed - len(sizes) / 2) / math.sqrt(variance)))
    distribution = np.ones(1)
    for size in sizes:
        one = np.zeros(GRID)
        # Rounded down, a sum that is at most the observed one stays so: p can only grow.
        # 1e-9 keeps a fraction that lies on the grid from falling one step below it.
        np.add.at(one, np.floor((np.arange(size) + 0.5) / size * GRID + 1e-9).astype(int), 1 / size)
        distribution = signal.fftconvolve(distribution, one)
    reached = math.floor(observed * GRID + 1e-6)
    # fftconvolve leaves rounding of either sign.
    return float(np.clip(distribution[: reached + 1].sum(), 0.0, 1.0))


def rank_one_p(hits: int, pictures: int, galleries: Sequence[Sequence[int]]) -> float:
    """One-sided p-value that so many first ranks come by chance, at the effective size of one picture per client."""
    clients = len(galleries)
    # Rounding down to whole clients makes p larger, never smaller; 1e-9 undoes the rounding of the division.
    whole = math.floor(hits / pictures * clients + 1e-9)
    chance = float(np.mean([1 / size for client in galleries for size in client]))
    return float(stats.binom.sf(whole - 1, clients, chance))


def paired_p(differences: Sequence[float]) -> float:
    """One-sided p-value that a mean paired difference is above 0: the sign-flip test, exact up to 13 clients.

    With few clients it cannot be small: 2 to the power of minus their number is its least value.
    """
    values = np.asarray(differences, dtype=float)
    # Differences that are all 0 have no sign to flip.
    if len(values) < 2 or not values.any():
        return 1.0
    found = stats.permutation_test(
        (values,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        alternative="greater",
        # 2^13 sign patterns are fewer than 9999: up to 13 clients all of them are enumerated.
        n_resamples=9999,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)
