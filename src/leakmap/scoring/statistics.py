"""Intervals and tests. How alike the pictures of one client are is unknown: they count as fully dependent, which only
makes a statement more cautious, unless there are clients enough to see how alike they are."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal, stats


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval."""

    value: float
    low: float
    high: float


def clopper_pearson(hits: int, n: int, confidence: float = 0.95) -> Interval:
    """A share of independent cases with its exact two-sided interval.

    Args:
        hits: Cases that count, between 0 and ``n``.
        n: Independent cases; none leave the share open, from 0 to 1.
        confidence: At least that often the interval holds the true share, whatever it is.

    Raises:
        ValueError: more hits than cases, or fewer than none.

    Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n} is no share; give between 0 and {n} hits")
    alpha = 1 - confidence
    low = 0.0 if hits == 0 else float(stats.beta.ppf(alpha / 2, hits, n - hits + 1))
    high = 1.0 if hits == n else float(stats.beta.ppf(1 - alpha / 2, hits + 1, n - hits))
    return Interval(hits / n if n else math.nan, low, high)


def share_interval(hits: Sequence[int], pictures: Sequence[int], confidence: float = 0.95) -> Interval:
    """The share of all pictures, which are alike within a client to an unknown degree, with a conservative interval.

    That of :func:`share_of_cases` for as many cases as there are clients; clients of different sizes count as
    ``(sum of sizes)² / (sum of squares)`` ones.

    Args:
        hits: Of each client.
        pictures: Of each client, at least 1.
        confidence: Of the interval.

    Raises:
        ValueError: a client has more hits than pictures.

    Source: Kish 1965, "Survey Sampling", for the number of cases.
    """
    if any(not 0 <= hit <= size for hit, size in zip(hits, pictures, strict=True)):
        raise ValueError(f"hits {list(hits)} of {list(pictures)} pictures: no client can have more hits than pictures")
    if not pictures:
        return Interval(math.nan, 0.0, 1.0)
    total = sum(pictures)
    return share_of_cases(sum(hits), total, total**2 // sum(size**2 for size in pictures), confidence)


def share_of_cases(hits: int, pictures: int, cases: int, confidence: float = 0.95) -> Interval:
    """A share of pictures that are only so many independent cases, with a conservative interval.

    That of :func:`clopper_pearson` for the cases, with the share as hits, rounded outwards to whole ones. With one
    picture per case, or where the pictures of a case are hit all or none, it is exact. The less alike they are, the
    wider it is than needed; no kind of dependence was found that covers less often (docs/results/coverage.md).

    Args:
        hits: Pictures that count.
        pictures: All of them, at least 1.
        cases: How many are independent, at least 1.
        confidence: Of the interval.
    """
    whole = hits * cases
    low = clopper_pearson(whole // pictures, cases, confidence).low
    return Interval(hits / pictures, low, clopper_pearson(-(-whole // pictures), cases, confidence).high)


RESAMPLES = 1999
FEW = 8


def mean_interval(per_client: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean over clients with the interval that covers best: the studentised bootstrap from 8 to 199 clients.

    With fewer clients its width explodes, with more it agrees with Student's t: there the interval is that of t. The
    bootstrap's is cut at the least and the greatest value, since resamples without spread make it infinite. One client
    gives an infinite interval, and equal values one of no width: what no client showed, no interval of a mean knows.
    Such rare events belong to :func:`clopper_pearson`.

    Args:
        per_client: One finite value of each client, at least one.
        confidence: Reached where values are not too skewed, see docs/results/coverage.md.

    Source: Hall 1988, "Theoretical comparison of bootstrap confidence intervals", Annals of Statistics 16.
    """
    values = np.asarray(per_client, dtype=float)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    if float(np.ptp(values)) == 0:
        return Interval(mean, mean, mean)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    if not FEW <= n < MANY:
        half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
        return Interval(mean, mean - half, mean + half)
    deviations = _student_deviations(values - mean)
    tail = round((1 - confidence) / 2 * (RESAMPLES + 1))
    low, high = np.partition(deviations, (tail - 1, RESAMPLES - tail))[[tail - 1, RESAMPLES - tail]]
    return Interval(mean, max(float(values.min()), mean - high * error), min(float(values.max()), mean - low * error))


def _student_deviations(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over standard error of every resample of values around 0; infinite where a resample has no spread."""
    n = len(centred)
    weights = _resamples(n)
    means = weights @ centred
    variances = np.maximum(weights @ centred**2 - means**2, 0)
    spread = variances > 1e-12 * np.mean(centred**2)  # what is less is rounding
    errors = np.sqrt(np.where(spread, variances, 1) / (n - 1))
    return np.where(spread, means / errors, np.copysign(np.inf, means))


@functools.lru_cache(maxsize=8)
def _resamples(n: int) -> NDArray[np.float64]:
    """``(RESAMPLES, n)``: how much each value weighs in each resample; the same ones for every interval."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n


ROUNDING = 1e-13
"""Convolution by Fourier transform leaves rounding of either sign up to this: a smaller p cannot be told from it."""
GRID = 2000
MANY = 200


def spread(distractors: Sequence[Sequence[Sequence[int]]]) -> float:
    """How many times the variance of independent ranks their sum may have, because line-ups share distractors.

    Two ranks are the more alike, the more distractors their line-ups share and the more alike the reconstructions rank
    these. The worst case, the same reconstruction for every client, is no invention: it is what an attack that learns
    nothing gives. There two truths that are compared with the same m distractors have ranks with a correlation of
    1 / (m + 2), as in the test of Mann and Whitney.

    Args:
        distractors: Of each client's pictures, which pictures the truth stood among, at least one each.

    Returns:
        At least 1, which it is where no two clients share any.
    """
    # A fraction (rank - 1/2) / n counts its n - 1 distractors with 1 / n each. Each that two line-ups share adds 1/12
    # of the product of its weights to their covariance.
    count = 1 + max(index for client in distractors for others in client for index in others)
    weights = np.zeros(count)
    own = independent = 0.0
    for client in distractors:
        of_client = np.zeros(count)
        for others in client:
            of_client[list(others)] += 1 / (len(client) * (1 + len(others)))
        weights += of_client
        own += float(of_client @ of_client)
        independent += 1 - 1 / (1 + min(map(len, client))) ** 2
    # Where none is shared the difference is 0 but for its rounding, at which a beta-binomial has no digits left.
    return 1 + round(max(0.0, float(weights @ weights) - own) / independent, 9)


def rank_sum_p(ranks: Sequence[Sequence[float]], galleries: Sequence[Sequence[int]], spread: float = 1.0) -> float:
    """One-sided p-value that ranks are lower than chance.

    A rank counts as its fraction ``(rank - 1/2) / gallery``, and a client as the mean fraction of its pictures. Where
    every client has one picture, or there are fewer than 8, the pictures of a client count as fully dependent, each at
    the same fraction of its line-up, and the sum over clients has its exact distribution under chance on a grid of
    1/2000, rounded so that p can only come out larger; the normal one from 200 clients on. Else it is studentised by
    how much the clients' means differ, which shows how alike the pictures of a client are: but by no less than if these
    were independent.

    Of ranks that are not independent from client to client the deviation counts as that much smaller.

    Args:
        ranks: Of each client's pictures.
        galleries: Candidates in each of these line-ups.
        spread: See :func:`spread`.

    Source: Wilcoxon 1945 for the sum of ranks; Donner and Klar 2000, "Design and Analysis of Cluster Randomization
    Trials in Health Research", for a t-test of cluster means.
    """
    fractions = [
        [(rank - 0.5) / size for rank, size in zip(*client, strict=True)]
        for client in zip(ranks, galleries, strict=True)
    ]
    means = np.array([np.mean(client) for client in fractions])
    clients = len(galleries)
    middle = clients / 2
    # A fraction (rank - 1/2) / n that is uniform over n ranks has mean 1/2 and variance (1 - 1 / n^2) / 12. Of a client
    # the smallest line-up counts, in units of which :func:`spread` tells what line-ups share.
    variances = [(1 - 1 / min(client) ** 2) / 12 for client in galleries]
    if clients >= FEW and any(len(client) > 1 for client in ranks):
        least = sum(one / len(client) for one, client in zip(variances, ranks, strict=True))
        variance = max(clients * float(means.var(ddof=1)), least) + (spread - 1) * sum(variances)
        return float(stats.t.cdf((means.sum() - middle) / math.sqrt(variance), clients - 1))
    observed = middle + (float(means.sum()) - middle) / math.sqrt(spread)
    if clients >= MANY:
        return float(stats.norm.cdf((observed - middle) / math.sqrt(sum(variances))))
    distribution = _rank_sums(tuple(sorted(tuple(sorted(client)) for client in galleries)))
    reached = math.floor(observed * GRID + 1e-6)
    return float(np.clip(distribution[: reached + 1].sum(), ROUNDING, 1.0))


@functools.lru_cache(maxsize=64)
def _rank_sums(galleries: tuple[tuple[int, ...], ...]) -> NDArray[np.float64]:
    """Probability of every sum of clients' mean fractions on the grid, from the line-ups of each client."""
    distribution = np.ones(1)
    for client in galleries:
        distribution = signal.fftconvolve(distribution, _mean_fractions(client))
    return distribution


@functools.lru_cache(maxsize=64)
def _mean_fractions(client: tuple[int, ...]) -> NDArray[np.float64]:
    """Probability of every mean fraction on the grid where one uniform number gives all ranks of a client."""
    counts, whole = Counter(client), math.lcm(*client)
    edges = sorted({place for size in counts for place in range(0, whole + 1, whole // size)})
    found = np.zeros(GRID)
    for low, high in itertools.pairwise(edges):
        told = (count * (low // (whole // size) + 0.5) / size for size, count in counts.items())
        # Rounded down, a sum that is at most the observed one stays so: p can only grow.
        # 1e-9 keeps a fraction that lies on the grid from falling one step below it.
        found[math.floor(sum(told) / len(client) * GRID + 1e-9)] += (high - low) / whole
    return found


def rank_one_p(hits: Sequence[int], galleries: Sequence[Sequence[int]], spread: float = 1.0) -> float:
    """One-sided p-value that so many first ranks come by chance.

    Of 8 clients or more the clients with any first rank are counted, which one has by chance at most as often as its
    pictures together, however alike they are. Where that is often, or clients are fewer, the number of first ranks is
    taken at the effective size of one picture per client.

    Of ranks that are not independent from client to client their number is beta-binomial, with the correlation that the
    spread implies. Where all clients have the same distractors and the same reconstruction, and one picture, that is
    exact.

    Args:
        hits: First ranks of each client.
        galleries: Candidates in each of its line-ups.
        spread: See :func:`spread`.
    """
    clients, pictures = len(galleries), sum(map(len, galleries))
    # Rounding down to whole clients makes p larger, never smaller; 1e-9 undoes the rounding of the division.
    count = math.floor(sum(hits) / pictures * clients + 1e-9)
    single = float(np.mean([1 / size for client in galleries for size in client]))
    chance, correlation = single, (spread - 1) / max(1, clients - 1)
    anyone = float(np.mean([min(1.0, sum(1 / size for size in client)) for client in galleries]))
    if clients >= FEW and anyone <= 0.5:
        count, chance = sum(hit > 0 for hit in hits), anyone
        # What line-ups share moves the chance of all pictures of a client at once.
        correlation *= anyone / single * (1 - single) / (1 - anyone)
    if spread == 1 or clients == 1:
        return float(stats.binom.sf(count - 1, clients, chance))
    correlation = min(correlation, 1 - 1e-9)  # the beta distribution has no point masses
    cases = (1 - correlation) / correlation
    return float(stats.betabinom.sf(count - 1, clients, chance * cases, (1 - chance) * cases))


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
