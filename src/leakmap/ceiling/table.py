"""Ceilings as a table, without an attack: what ``leakmap ceiling`` prints."""

import math
from dataclasses import dataclass

from leakmap.ceiling.releases import Releases

GALLERIES = (10, 24, 100, 1000)
"""Sizes of line-ups that a table has besides those that are asked for."""
DELTA = 1e-5
"""At which epsilon is told."""


@dataclass(frozen=True)
class Row:
    """One size of line-up.

    Args:
        gallery: Candidates, equally likely before anything is released.
        chance: One over their number.
        ceiling: Largest probability of naming the true one.
    """

    gallery: int
    chance: float
    ceiling: float


@dataclass(frozen=True)
class CeilingTable:
    """What noise allows anybody.

    Args:
        releases: Noise, rounds and sampling.
        clip: Largest norm of a contribution; ceilings depend on the noise in its unit alone.
        deviation: Of the noise in each entry of a release, in the unit of ``clip``.
        rows: One for each size of line-up.
        epsilon: Of ``(epsilon, delta)`` differential privacy, when the contribution is added or removed.
        delta: Of that epsilon.
        numbers: Of a picture.
        variance: Of each number, as the attacker of ``psnr`` takes it to be.
        psnr: In dB, of the least mean squared error of an attacker who takes all numbers for independent and Gaussian;
            one who knows pictures may do better. None without noise.
    """

    releases: Releases
    clip: float
    deviation: float
    rows: tuple[Row, ...]
    epsilon: float
    delta: float
    numbers: int
    variance: float
    psnr: float | None

    @property
    def accountant(self) -> str:
        """By what the numbers are computed."""
        sampled = self.releases.sample_rate < 1
        return "privacy loss distributions (dp-accounting), rounded upwards" if sampled else "exact (mu-GDP)"


def table(releases: Releases, galleries: list[int], clip: float, numbers: int, variance: float) -> CeilingTable:
    """The table of what these releases allow.

    Args:
        releases: Noise, rounds and sampling.
        galleries: Sizes of line-ups, in place of :data:`GALLERIES` where there are any.
        clip: Largest norm of a contribution.
        numbers: Of a picture, such as 3 x 32 x 32.
        variance: Of each number, of pictures in [0, 1].

    Raises:
        BadSetting: a number is impossible, or rounds are sampled and dp-accounting is not installed.
    """
    sizes = sorted(set(galleries or GALLERIES))
    rows = tuple(Row(size, 1 / size, releases.success(size)) for size in sizes)
    error = releases.error(numbers, variance)
    psnr = -10 * math.log10(error) if error else None
    deviation = clip * releases.noise
    return CeilingTable(releases, clip, deviation, rows, releases.epsilon(DELTA), DELTA, numbers, variance, psnr)
