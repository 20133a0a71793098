"""What differential privacy promises, as numbers."""

import math

from leakmap.ceiling.releases import Releases
from leakmap.defences import defence_of
from leakmap.errors import BadSetting


def epsilon(defence: str, *, batch_size: int, dataset_size: int, rounds: int, delta: float) -> float:
    """The epsilon of ``(epsilon, delta)`` differential privacy, when a data point is added or removed.

    Every batch is taken for a Poisson sample of the data, which needs dp-accounting; with ``batch_size`` equal to
    ``dataset_size`` nothing is sampled, nothing is gained by it, and the exact value needs no package.

    Args:
        defence: Its specification.
        batch_size: Examples of one step; for a defence of the finished update, clients of one round.
        dataset_size: Examples, or clients, that they are drawn from.
        rounds: Steps, or rounds, in all.
        delta: In (0, 1).

    Returns:
        Infinity for a defence without Gaussian noise, which promises nothing.

    Raises:
        BadSetting: a number is impossible, or dp-accounting is needed and not installed.

    Source: :meth:`leakmap.ceiling.releases.Releases.epsilon`.
    """
    if not 1 <= batch_size <= dataset_size or rounds < 1 or not 0 < delta < 1:
        raise BadSetting(
            "epsilon needs 1 <= batch_size <= dataset_size, at least 1 round and a delta in (0, 1); got "
            f"{batch_size}, {dataset_size}, {rounds} and {delta}."
        )
    gaussian = defence_of(defence).gaussian
    return Releases(gaussian.noise, rounds, batch_size / dataset_size).epsilon(delta) if gaussian else math.inf
