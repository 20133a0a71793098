"""The accountant of sampled releases (optional: ``pip install 'leakmap[dp]'``)."""

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leakmap.errors import BadSetting

INSTALL = "pip install 'leakmap[dp]'"
WIDTH = 1e-3
"""Of the steps in which the accountant rounds privacy losses, upwards; of noise below 1/2 more, as losses grow."""
Profile = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@lru_cache(maxsize=64)
def profile(noise: float, rounds: int, sample_rate: float) -> Profile:
    """The privacy profile of Poisson-sampled releases with Gaussian noise: epsilon -> least delta, from above.

    The privacy loss distribution of dp-accounting, which rounds losses upwards only. Neighbours differ by one
    contribution that is added or removed; of both directions the larger delta counts.

    Args:
        noise: Noise multiplier, positive.
        rounds: Releases.
        sample_rate: Of Poisson sampling, in (0, 1].

    Raises:
        BadSetting: dp-accounting is not installed.

    Source: Doroshenko et al. 2022, "Connect the Dots", arXiv:2207.04380; Zhu, Dong and Wang 2022, arXiv:2106.08567.
    """
    try:
        losses: Any = importlib.import_module("dp_accounting.pld.privacy_loss_distribution")
    except ImportError:
        raise BadSetting(f"Sampled rounds need the package dp-accounting; install it with: {INSTALL}.") from None
    width = WIDTH * max(1.0, (0.5 / noise) ** 2)
    once = losses.from_gaussian_mechanism(noise, sampling_prob=sample_rate, value_discretization_interval=width)
    all_rounds = once.self_compose(rounds)

    def deltas(epsilons: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(all_rounds.get_delta_for_epsilon(epsilons.tolist()))

    return deltas
