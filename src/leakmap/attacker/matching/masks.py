"""Dropout with masks that an attacker sets and moves, in place of random ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from leakmap.client_step import arrange
from leakmap.local_rule import LocalRule


class Masks:
    """The masks of one simulated client, in the order of their use.

    Attributes:
        layers: Layers that take their masks from here.
        shapes: Shape and rate of each mask, once a client was simulated without masks.
        place: Which mask is taken next.
    """

    def __init__(self) -> None:
        self.layers = 0
        self.shapes: list[tuple[tuple[int, ...], float]] = []
        self.place = 0
        self._given: Sequence[Tensor] | None = None

    def give(self, masks: Sequence[Tensor]) -> None:
        """Sets the masks for the next simulated client."""
        self._given, self.place = masks, 0

    def take(self, shape: tuple[int, ...], rate: float) -> Tensor | None:
        """The next mask; None while shapes are only being recorded."""
        if self._given is None:
            self.shapes.append((shape, rate))
            return None
        self.place += 1
        return self._given[self.place - 1]


class Masked(nn.Module):
    """``x * mask / (1 - rate)``, the mask of the shape that this kind of dropout draws.

    Args:
        rate: Dropout rate.
        kind: What one number of the mask stands for: ``element``, ``channel``, ``example`` or the whole ``batch``.
        masks: Where the masks come from.
    """

    def __init__(self, rate: float, kind: str, masks: Masks):
        super().__init__()
        self.rate, self.kind, self.masks = rate, kind, masks

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, examples first."""
        kept = {"element": x.ndim, "channel": 2, "example": 1, "batch": 0}[self.kind]
        mask = self.masks.take((*x.shape[:kept], *[1] * (x.ndim - kept)), self.rate)
        return x if mask is None else x * mask / (1 - self.rate)


def open_masks(module: nn.Module, rule: LocalRule) -> Masks:
    """Replaces active dropout and stochastic depth in place; dropout inside attention is left to its expectation."""
    masks = Masks()
    arrange(module, rule)
    if rule.mode == "train":
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                found = _rate_and_kind(child)
                if found is not None and found[0] > 0:
                    setattr(parent, name, Masked(*found, masks))
                    masks.layers += 1
    arrange(module, rule, dropout=False)
    return masks


def _rate_and_kind(layer: nn.Module) -> tuple[float, str] | None:
    # They keep mean and variance by an affine map, so a mask over 1 - rate would not be their operation.
    if isinstance(layer, (nn.AlphaDropout, nn.FeatureAlphaDropout)):
        return None
    if isinstance(layer, (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
        return layer.p, "channel"
    if isinstance(layer, _DropoutNd):
        return layer.p, "element"
    if type(layer).__name__ == "StochasticDepth":
        return float(layer.__dict__["p"]), "example" if layer.__dict__["mode"] == "row" else "batch"
    if type(layer).__name__ == "DropPath":
        return float(layer.__dict__["drop_prob"] or 0.0), "example"
    return None


def draw_masks(shapes: Sequence[tuple[tuple[int, ...], float]], like: Tensor, source: torch.Generator) -> list[Tensor]:
    """Random masks, one where kept."""
    return [(torch.rand(shape, generator=source) >= rate).to(like) for shape, rate in shapes]


def rate_penalty(masks: Sequence[Tensor], shapes: Sequence[tuple[tuple[int, ...], float]]) -> Tensor:
    """Sum over masks of ``|share dropped - rate|``.

    Source: Scheliga et al. 2023, "Dropout is NOT All You Need to Prevent Gradient Leakage", arXiv:2208.06163.
    """
    return torch.stack([((1 - m.mean()) - rate).abs() for m, (_, rate) in zip(masks, shapes, strict=True)]).sum()
