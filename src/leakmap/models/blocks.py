"""What the parametric families share: the values that their knobs take."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import nn

Norm = Literal["batch", "group", "layer", "instance", "none"]
Activation = Literal["relu", "leaky_relu", "gelu", "silu", "elu", "tanh", "sigmoid"]


def _dashes(value: Any) -> Any:
    return [int(part) for part in str(value).split("-")] if isinstance(value, (str, int)) else value


Size = Annotated[int, Field(ge=1, le=65536)]
Sizes = Annotated[tuple[Size, ...], Field(min_length=1, max_length=64), BeforeValidator(_dashes)]
"""Whole numbers, written with dashes: ``1-1-1``."""
Blocks = Annotated[
    tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=1, max_length=8), BeforeValidator(_dashes)
]
"""Residual blocks of each stage."""
Rate = Annotated[float, Field(ge=0, lt=1)]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def activation_layer(kind: Activation) -> nn.Module:
    """A fresh activation layer."""
    return _ACTIVATIONS[kind]()


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    """A normalization over ``(N, channels, H, W)``.

    ``group`` uses groups of at most 8 channels that divide ``channels``; ``layer`` normalizes each picture over all its
    channels and positions (one group); ``instance`` has weights and no running statistics.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        size = max(d for d in range(1, 9) if channels % d == 0)
        return nn.GroupNorm(channels // size, channels)
    if kind == "layer":
        return nn.GroupNorm(1, channels)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()
