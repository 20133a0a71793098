"""Power: how small an effect a comparison of so many clients would have shown."""

import math

from scipy import stats

from leakmap.scoring.statistics import clopper_pearson

POWER, ALPHA = 0.8, 0.05


def detectable_mean(error: float, clients: int) -> float:
    """The smallest true mean that a two-sided 95 % interval keeps apart from 0 with 80 % power.

    Args:
        error: Standard error of the mean, from the spread that was measured.
        clients: Independent values; with fewer than two nothing can be shown, which is infinity.

    Source: the usual sum of two quantiles of Student's t, as in Cohen 1988, "Statistical Power Analysis".
    """
    if clients < 2 or not math.isfinite(error):
        return math.inf
    t = stats.t(clients - 1)
    return float(t.ppf(1 - ALPHA / 2) + t.ppf(POWER)) * error


def detectable_margin(error: float, clients: int) -> float:
    """The smallest margin within which a mean that is 0 is shown to lie, with 80 % power.

    Args:
        error: Standard error of the mean.
        clients: Independent values; fewer than two give infinity.

    Source: Schuirmann 1987, see :func:`leakmap.scoring.equivalence.equivalent`.
    """
    if clients < 2 or not math.isfinite(error):
        return math.inf
    t = stats.t(clients - 1)
    return float(t.ppf(1 - ALPHA) + t.ppf((1 + POWER) / 2)) * error


def detectable_share(clients: int, margin: float, above: bool) -> float:
    """How far a true share must lie from a margin, for its exact interval to exclude that with 80 % power.

    Args:
        clients: Independent cases.
        margin: A share in [0, 1].
        above: Whether shares above it are looked for, or below it.

    Returns:
        The distance; infinity where no number of hits excludes the margin.
    """
    if above:
        hits = next((k for k in range(clients + 1) if clopper_pearson(k, clients).low > margin), None)
        return math.inf if hits is None else float(stats.beta.ppf(POWER, hits, clients - hits + 1)) - margin
    hits = next((k for k in range(clients, -1, -1) if clopper_pearson(k, clients).high < margin), None)
    return math.inf if hits is None else margin - float(stats.beta.ppf(1 - POWER, hits + 1, clients - hits))
