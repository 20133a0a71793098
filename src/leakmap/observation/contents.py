"""What an Observation consists of."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from leakmap.local_rule import Share


@dataclass(frozen=True)
class Update:
    """What a client shares, by parameter name. A gradient and a weight delta are never called the same thing.

    Args:
        kind: ``gradient`` or ``delta``.
        tensors: One tensor for each trained parameter, in the order of the model.
    """

    kind: Share
    tensors: Mapping[str, Tensor]


SHOWN = 256
"""Public pictures that an Observation holds at most: an attack on one client measures statistics on a few batches.
What learns from more is fitted to the Setting, which holds all of them and is made once for all clients."""


@dataclass(frozen=True)
class Public:
    """Pictures that anyone could have.

    Args:
        pictures: ``(P, C, H, W)`` in [0, 1].
        labels: Targets, as those of the client.
    """

    pictures: Tensor
    labels: Tensor

    def first(self, count: int) -> "Public":
        """The first ones."""
        return Public(self.pictures[:count], self.labels[:count])
