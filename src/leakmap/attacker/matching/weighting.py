"""Which entries of an update a match looks at, and how much each counts.

An weighting returns one weight for each tensor, 0-dim or of the tensor's shape; the inner products of the distance are
weighted by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from leakmap.seeds import generator

Weights = list[Tensor]


class Weighting(Protocol):
    """Weighs the entries of an update."""

    @property
    def every(self) -> int:
        """Iterations after which it is drawn anew; 0: never."""
        ...

    def __call__(self, target: Sequence[Tensor], draw: int, seed: int) -> Weights:
        """Weights for the observed update.

        Args:
            target: The observed update.
            draw: How often it was drawn before.
            seed: For random choices.
        """
        ...


@dataclass(frozen=True)
class Largest:
    """Only the tensors with the largest norms.

    Args:
        count: How many tensors.

    Source: "top-10" of the code of arXiv:2508.19819.
    """

    count: int = 10
    every = 0

    def __call__(self, target: Sequence[Tensor], draw: int, seed: int) -> Weights:
        """One or zero for each tensor."""
        norms = torch.stack([tensor.norm() for tensor in target])
        kept = torch.zeros_like(norms)
        kept[norms.topk(min(self.count, len(target))).indices] = 1
        return list(kept)


@dataclass(frozen=True)
class ByDepth:
    """The first tensors count most.

    Args:
        decay: ``linear``: ``(L - i) / L`` for tensor i of L; ``exponential``: ``exp(-i)``.

    Source: the layer weights of Geiping et al. 2020, arXiv:2003.14053, and Dimitrov et al. 2022, arXiv:2206.12395.
    """

    decay: Literal["linear", "exponential"] = "exponential"
    every = 0

    def __call__(self, target: Sequence[Tensor], draw: int, seed: int) -> Weights:
        """A number for each tensor."""
        # The order of the tensors is that of the model's declaration, which is taken for depth.
        depth = torch.arange(len(target), dtype=target[0].dtype, device=target[0].device)
        return list((-depth).exp() if self.decay == "exponential" else 1 - depth / len(target))


@dataclass(frozen=True)
class Partial:
    """A share of the entries of every tensor.

    Args:
        share: Fraction kept, in (0, 1].
        by: ``random``, or ``magnitude`` for the largest entries.
        every: Iterations between two draws of ``random``.

    Source: partial matching of FedLeak, arXiv:2506.08435, whose text was not at hand: the policies are this project's.
    """

    share: float = 0.3
    by: Literal["random", "magnitude"] = "random"
    every: int = 25

    def __call__(self, target: Sequence[Tensor], draw: int, seed: int) -> Weights:
        """One or zero for each entry."""
        source = generator(seed, "partial", draw)
        return [self._kept(tensor, source) for tensor in target]

    def _kept(self, tensor: Tensor, source: torch.Generator) -> Tensor:
        if self.by == "random":
            return (torch.rand(tensor.shape, generator=source) < self.share).to(tensor)
        # At least one entry, or a small tensor such as a bias would drop out.
        count = max(1, round(self.share * tensor.numel()))
        lowest = tensor.abs().flatten().topk(count).values[-1]
        return (tensor.abs() >= lowest).to(tensor.dtype)
