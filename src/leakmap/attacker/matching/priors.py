"""What an attacker believes about pictures before seeing an update."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.attacker.matching.context import SearchContext
from leakmap.seeds import generator


class Prior(Protocol):
    """A term of the objective that looks at the pictures alone."""

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., C, H, W)`` normalized -> scalar, weight included."""
        ...


class Measured(Protocol):
    """A prior that is measured on public pictures before the search begins."""

    @property
    def needs(self) -> frozenset[str]:
        """Facts of the Observation that it cannot do without."""
        ...

    def __call__(self, context: SearchContext) -> Prior:
        """Measures it."""
        ...


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of horizontal neighbours plus that of vertical ones, of ``(..., C, H, W)``.

    Source: the anisotropic form of Geiping et al. 2020, arXiv:2003.14053; other codes differ in scale by 1e5.
    """
    return (x[..., :, 1:] - x[..., :, :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()


@dataclass(frozen=True)
class TotalVariation:
    """Anisotropic total variation.

    Args:
        weight: In normalized space.
    """

    weight: float = 1e-2

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., C, H, W)`` normalized -> scalar."""
        return self.weight * total_variation(x)


@dataclass(frozen=True)
class SmoothVariation:
    """``mean(((|dx| + e)^p + (|dy| + e)^p)^q)`` with zero padding, so that borders count too.

    Args:
        weight: In normalized space.
        p: Inner exponent.
        q: Outer exponent.
        opponents: Whether the differences of colour channels are smoothed too, for three channels.

    Source: the total variation of the settings "modern" and "beyond inferring" of breaching; double opponents of Åström
    and Schnörr 2016.
    """

    weight: float
    p: float = 2.0
    q: float = 0.5
    opponents: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., C, H, W)`` normalized -> scalar."""
        x = x.flatten(0, -4) if x.ndim > 4 else x
        if self.opponents and x.shape[1] == 3:
            red, green, blue = x.unbind(1)
            x = torch.cat([x, torch.stack([red - green, red - blue, green - blue], 1)], 1)
        # The outer power of 0.5 has an infinite slope at 0, which flat areas reach.
        across = F.pad(x, (0, 1)).diff(dim=-1).abs() + 1e-8
        down = F.pad(x, (0, 0, 0, 1)).diff(dim=-2).abs() + 1e-8
        return self.weight * (across**self.p + down**self.p).pow(self.q).mean()


@dataclass(frozen=True)
class Norm:
    """Mean square of the normalized pictures.

    Args:
        weight: In normalized space.

    Source: the l2 prior of Yin et al. 2021, "See through Gradients", arXiv:2104.07586.
    """

    weight: float

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., C, H, W)`` normalized -> scalar."""
        return self.weight * x.square().mean()


@dataclass(frozen=True)
class SamePictures:
    """The pictures of every epoch are the same, in whatever order.

    The mean over pairs of epochs of the squared distance between order-invariant summaries: the largest response over
    the examples of an untrained 3x3 convolution.

    Args:
        weight: Of the term.
        filters: Of the convolution.
        seed: For its weights.

    Source: Dimitrov et al. 2022, "Data Leakage in Federated Averaging", arXiv:2206.12395, the prior "l2_max_conv".
    """

    weight: float = 6.075
    filters: int = 96
    seed: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """``(epochs, N, C, H, W)`` normalized -> scalar; 0 for one epoch."""
        if x.ndim < 5 or len(x) < 2:
            return x.new_zeros(())
        kernel = torch.randn(self.filters, x.shape[2], 3, 3, generator=generator(self.seed, "same pictures")).to(x)
        # Responses to unit noise then have variance 1, however many channels there are.
        kernel = kernel / (9 * x.shape[2]) ** 0.5
        summaries = torch.stack([F.conv2d(epoch, kernel, padding=1).amax(0) for epoch in x])
        pairs = (summaries[:, None] - summaries[None]).square().flatten(2).mean(2)
        return self.weight * pairs.mean()
