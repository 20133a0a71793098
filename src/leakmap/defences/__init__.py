"""What a client does to its update before anyone sees it, one defence per file, for both sides.

The client applies a defence with its own randomness. The attacker, who knows name and settings, judges a guess by what
the client would send of it, the randomness left out: so at the truth the distance is 0 for a defence without noise, and
at the level of the noise for others. Where that has no useful slope, as with signs, it descends on a smooth stand-in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

from leakmap.registry.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NONE = "none"
"""The specification of a client that defends nothing."""
Left = Literal["values", "ratios", "largest", "signs"]


@dataclass(frozen=True)
class Simulated:
    """What an attack descends on.

    Args:
        tensors: The simulated update, defended, or a smooth stand-in for that.
        slopes: By what a direction is multiplied on its way back to the undefended update, 0-dim or of the tensor's
            shape, taken for constant; None: by 1.
    """

    tensors: list[Tensor]
    slopes: list[Tensor] | None = None

    def back(self, directions: list[Tensor]) -> list[Tensor]:
        """Directions along the defended update, as ones along the undefended."""
        if self.slopes is None:
            return directions
        return [direction * slope for direction, slope in zip(directions, self.slopes, strict=True)]


if TYPE_CHECKING:
    Share = Callable[[Sequence[Tensor], torch.Generator | None], list[Tensor]]
    """``share(update, source)``: what the client sends; without a source of randomness, without noise."""
    Simulate = Callable[[Sequence[Tensor], Sequence[Tensor]], Simulated]
    """``simulate(update, observed)``: what an attack compares with the observed update while it descends."""
else:  # what reads the options of an audit waits for no torch
    Share = Simulate = Callable


def _shared(update: Sequence[Tensor], source: torch.Generator | None) -> list[Tensor]:
    return list(update)


def _simulated(update: Sequence[Tensor], observed: Sequence[Tensor]) -> Simulated:
    return Simulated(list(update))


@dataclass(frozen=True)
class Gaussian:
    """Clipping to a norm, and Gaussian noise in proportion to it.

    Args:
        clip: Largest norm.
        noise: Standard deviation of the noise in each entry, over ``clip``: the noise multiplier.
        unit: Whose data the noise hides.
    """

    clip: float
    noise: float
    unit: str

    def factor(self, tensors: Sequence[Tensor]) -> Tensor:
        """By what all tensors together are multiplied so that their norm is at most ``clip``: 0-dim, at most 1."""
        import torch

        norm = torch.stack([tensor.norm() for tensor in tensors]).norm()
        # Never above 1: a small update is not scaled up. 1e-30 keeps an update of zeros from giving NaN.
        return (self.clip / norm.clamp(min=1e-30)).clamp(max=1.0)

    def disturbed(self, tensors: Sequence[Tensor], source: torch.Generator | None, examples: int = 1) -> list[Tensor]:
        """The tensors with noise of the standard deviation ``noise * clip / examples``."""
        import torch

        size = self.noise * self.clip / examples
        if source is None or not size:
            return list(tensors)
        return [t + size * torch.randn(t.shape, generator=source).to(t) for t in tensors]


@dataclass(frozen=True)
class Defence:
    """A defence of one client; it acts on the update, not on returned buffers.

    Args:
        share: Acts on the finished update.
        simulate: Stands for it in a descent.
        examples: Acts on the gradient of every example in every local step (DP-SGD).
        gaussian: The noise for which an accountant finds an epsilon, wherever it acts.
        left: What is left of an update: ``values``; ``ratios``, while sizes are rescaled by what no one sees;
            the ``largest`` entries; ``signs``.
        exact: Whether that is left without noise and rounding.
    """

    share: Share = field(default=_shared)
    simulate: Simulate = field(default=_simulated)
    examples: Gaussian | None = None
    gaussian: Gaussian | None = None
    left: Left = "values"
    exact: bool = True

    @property
    def rescales(self) -> bool:
        """Whether the finished update is no longer the sum of the client's steps, entry by entry."""
        return self.left != "values" and self.examples is None


defences: Registry[Defence] = Registry("defence", __name__)


@cache
def defence_of(text: str) -> Defence:
    """The defence that a specification names.

    Raises:
        UnknownName: there is none of that name.
        BadSetting: a setting is unknown, missing or impossible.
    """
    return defences.build(text)
