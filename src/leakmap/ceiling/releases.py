"""Noisy releases of a contribution, and what anybody can learn from all of them at most.

A contribution is what one unit adds to a release: the clipped gradient of a picture, or the clipped update of a client.
Its neighbour is the release without it: the contribution is taken for zero, and all else stays (the field says
*zero-out*, or *add or remove one*). All candidates of a line-up are judged beside this one reference, so that a
contribution of norm 1 is at distance 1 at most, whichever candidate it comes from.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from leakmap.ceiling.accountant import profile
from leakmap.errors import BadSetting

STEPS = 81
"""Points of each of both grids of epsilon. Every epsilon gives a bound that holds; more of them make it tighter."""
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Releases:
    """Releases that a contribution may be part of, each with fresh Gaussian noise.

    Args:
        noise: Standard deviation of the noise in each entry over the largest norm of the contribution: the noise
            multiplier. 0 bounds nothing.
        rounds: How many releases.
        sample_rate: Probability that the contribution is part of one of them, drawn anew for each and seen by no one;
            1 where it is part of all, or where the server sees who takes part.

    Raises:
        BadSetting: a number is impossible.
    """

    noise: float
    rounds: int = 1
    sample_rate: float = 1.0

    def __post_init__(self) -> None:
        if not (self.noise >= 0 and math.isfinite(self.noise) and self.rounds >= 1 and 0 < self.sample_rate <= 1):
            raise BadSetting(
                "A ceiling needs a finite noise of at least 0, at least 1 round and a sample rate in (0, 1]; got "
                f"{self.noise}, {self.rounds} and {self.sample_rate}."
            )

    @property
    def distance(self) -> float:
        """How far both means are apart, over the noise, where nothing is sampled: mu of mu-GDP; infinite without noise.

        Source: Dong, Roth and Su 2022, "Gaussian Differential Privacy", arXiv:1905.02383, corollary 3.3.
        """
        return math.sqrt(self.rounds) / self.noise if self.noise else math.inf

    def success(self, gallery: int) -> float:
        """Largest probability, whoever attacks, of naming the right one of equally likely candidates: 1 - f(1 / G).

        f is the trade-off function between the releases without and with the contribution. With ``a_i`` the probability
        of naming candidate i from releases without any, the success is at most the mean of ``1 - f(a_i)``; the ``a_i``
        sum to 1 at most, and f is convex.

        Args:
            gallery: Candidates, at least 1.

        Returns:
            In [1 / G, 1]; 1 without noise.

        Raises:
            BadSetting: sampling needs the package dp-accounting, which is not installed.

        Source: Hayes, Mahloujifar and Balle 2023, "Bounding Training Data Reconstruction in DP-SGD", arXiv:2302.07225;
        without sampling Phi(Phi^-1(1 / G) + mu), from Dong, Roth and Su 2022.
        """
        if gallery < 1:
            raise BadSetting(f"A line-up has at least 1 candidate; got {gallery}.")
        if gallery == 1 or not self.noise:
            return 1.0
        if self.sample_rate == 1:
            return float(stats.norm.cdf(stats.norm.ppf(1 / gallery) + self.distance))
        return self._sampled_success(1 / gallery)

    def _sampled_success(self, blind: float) -> float:
        """``inf delta(epsilon) + e^epsilon blind`` over epsilon: each of these is a bound, the least one is 1 - f."""
        deltas = profile(self.noise, self.rounds, self.sample_rate)
        # Beyond this e^epsilon * blind is above 1; far below 0 the bound tends to 1 as well.
        coarse = np.linspace(-20.0, -math.log(blind), STEPS)
        best = float(coarse[int((deltas(coarse) + np.exp(coarse) * blind).argmin())])
        step = float(coarse[1] - coarse[0])
        fine = np.linspace(best - step, best + step, STEPS)
        return min(1.0, float((deltas(fine) + np.exp(fine) * blind).min()))

    def delta(self, epsilon: float) -> float:
        """The least delta of ``(epsilon, delta)`` differential privacy, when the contribution is added or removed.

        Args:
            epsilon: At least 0.

        Raises:
            BadSetting: see :meth:`success`.

        Source: Balle and Wang 2018, arXiv:1805.06530, theorem 8, where nothing is sampled.
        """
        if not self.noise:
            return 1.0
        if self.sample_rate < 1:
            return float(profile(self.noise, self.rounds, self.sample_rate)(np.array([epsilon]))[0])
        mu = self.distance
        # As a difference of logarithms, or e^epsilon overflows where the noise is small.
        less = math.exp(epsilon + float(stats.norm.logcdf(-epsilon / mu - mu / 2)))
        return max(0.0, float(stats.norm.cdf(-epsilon / mu + mu / 2)) - less)

    def epsilon(self, delta: float) -> float:
        """The least epsilon of ``(epsilon, delta)`` differential privacy, when the contribution is added or removed.

        Args:
            delta: In (0, 1).

        Returns:
            Infinity without noise.

        Raises:
            BadSetting: delta is impossible; else see :meth:`success`.
        """
        if not 0 < delta < 1:
            raise BadSetting(f"delta lies in (0, 1); got {delta}.")
        if not self.noise:
            return math.inf
        if self.delta(0.0) <= delta:
            return 0.0
        high = 1.0
        while self.delta(high) > delta:
            high *= 2
        return optimize.root_scalar(lambda epsilon: self.delta(epsilon) - delta, bracket=(0.0, high), xtol=1e-9).root

    def error(self, numbers: int, variance: float) -> float:
        """Least mean squared error of whoever takes all numbers of a record for independent and Gaussian.

        This attacker knows mean and variance of every number and nothing of how pictures look; one who knows that can
        do better. What all releases tell of the record is at most ``rounds * sample_rate / (2 noise²)`` nats: the mean
        divergence from noise alone. A Gaussian with variance ``v`` in ``d`` numbers that is known by ``R`` nats keeps
        the mean squared error ``v exp(-2 R / d)`` at least.

        Args:
            numbers: Of a record, such as 3 x 32 x 32.
            variance: Of each number.

        Returns:
            Of each number, in its unit squared.

        Source: Cover and Thomas 2006, "Elements of Information Theory", theorem 10.3.2 (rate distortion of a Gaussian),
        with the convexity of divergence for sampling.
        """
        if numbers < 1 or variance <= 0:
            raise BadSetting(
                f"An error needs at least 1 number of a positive variance; got {numbers} with variance {variance}."
            )
        return variance * math.exp(-self.rounds * self.sample_rate / self.noise**2 / numbers) if self.noise else 0.0
