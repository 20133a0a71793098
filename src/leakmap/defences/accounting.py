"""What differential privacy promises, as numbers (optional: ``pip install leakmap[dp]``)."""

import importlib
import math
import warnings
from typing import Any

from leakmap.defences import defence_of
from leakmap.errors import BadSetting

INSTALL = "pip install 'leakmap[dp]'"


def epsilon(defence: str, *, batch_size: int, dataset_size: int, rounds: int, delta: float) -> float:
    """The epsilon of ``(epsilon, delta)`` differential privacy, when a data point is added or removed.

    Rényi accounting by Opacus. It takes every batch for a Poisson sample of the data; with ``batch_size`` equal to
    ``dataset_size`` nothing is sampled and nothing is gained by it.

    Args:
        defence: Its specification.
        batch_size: Examples of one step; for ``clip_noise``, clients of one round.
        dataset_size: Examples, or clients, that they are drawn from.
        rounds: Steps, or rounds, in all.
        delta: In (0, 1).

    Returns:
        Infinity for a defence without Gaussian noise, which promises nothing.

    Raises:
        BadSetting: a number is impossible, or Opacus is not installed.

    Source: Mironov et al. 2019, "Rényi Differential Privacy of the Sampled Gaussian Mechanism", arXiv:1908.10530.
    """
    if not 1 <= batch_size <= dataset_size or rounds < 1 or not 0 < delta < 1:
        raise BadSetting(
            "epsilon needs 1 <= batch_size <= dataset_size, at least 1 round and a delta in (0, 1); got "
            f"{batch_size}, {dataset_size}, {rounds} and {delta}."
        )
    gaussian = defence_of(defence).gaussian
    if gaussian is None or not gaussian.noise:
        return math.inf
    try:
        accountants: Any = importlib.import_module("opacus.accountants")
    except ImportError:
        raise BadSetting(f"epsilon needs the package opacus; install it with: {INSTALL}.") from None
    accountant = accountants.RDPAccountant()
    # One entry stands for all rounds; calling the accountant's step() would count them one by one.
    accountant.history = [(gaussian.noise, batch_size / dataset_size, rounds)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the best order lies at the end of those it tries
        return float(accountant.get_epsilon(delta=delta))
