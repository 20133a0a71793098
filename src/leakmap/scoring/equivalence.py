"""Is a difference known to be small?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from leakmap.errors import BadSetting
from leakmap.scoring.statistics import Interval


@dataclass(frozen=True)
class Equivalence:
    """Whether a mean difference is known to be small.

    Args:
        difference: Mean with the interval of confidence 1 - 2 alpha, which lies within the margin exactly where
            ``equivalent``.
        margin: Largest difference that counts as none.
        p: The larger one of the two one-sided tests.
        equivalent: Whether ``p < alpha``.
    """

    difference: Interval
    margin: float
    p: float
    equivalent: bool


def equivalent(differences: Sequence[float], margin: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided t tests that the mean of paired differences lies between -margin and margin.

    Fewer than two differences show nothing: p = 1.

    Args:
        differences: One of each client.
        margin: Positive, in the unit of the differences, fixed before looking at them.
        alpha: Level of each test.

    Raises:
        BadSetting: the margin is not positive.

    Source: Schuirmann 1987, "A comparison of the two one-sided tests procedure and the power approach", Journal of
    Pharmacokinetics and Biopharmaceutics 15.
    """
    if not margin > 0:
        raise BadSetting(f"The margin of an equivalence must be positive; got {margin}.")
    values = np.asarray(differences, dtype=float)
    mean = float(values.mean()) if len(values) else math.nan
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return equivalent_mean(mean, error, len(values), margin, alpha)


def equivalent_mean(mean: float, error: float, clients: int, margin: float, alpha: float = 0.05) -> Equivalence:
    """The same from the mean, its standard error and the number of independent values."""
    if not margin > 0:
        raise BadSetting(f"The margin of an equivalence must be positive; got {margin}.")
    if clients < 2 or not math.isfinite(error):
        return Equivalence(Interval(mean, -math.inf, math.inf), margin, 1.0, False)
    distribution = stats.t(clients - 1)
    half = float(distribution.ppf(1 - alpha)) * error
    if error == 0:
        p = 0.0 if abs(mean) < margin else 1.0
    else:
        p = float(max(distribution.sf((mean + margin) / error), distribution.cdf((mean - margin) / error)))
    return Equivalence(Interval(mean, mean - half, mean + half), margin, p, p < alpha)
