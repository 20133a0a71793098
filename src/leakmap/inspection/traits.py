"""The traits of an architecture that matter to gradient inversion."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Placement = Literal["pre", "post", "inside", "none"]


@dataclass(frozen=True)
class Norm:
    """Normalization layers of one kind.

    Args:
        kind: ``BatchNorm``, ``LayerNorm``, ``GroupNorm``, ``InstanceNorm``, ``RMSNorm`` or ``by hand``.
        layers: How many the forward pass runs through.
        eps: Their values of epsilon, ascending.
        momentum: Of running statistics, as torch defines it; None stands for a cumulative mean.
        running: Whether inference uses running statistics.
        groups: Of GroupNorm, ascending.
    """

    kind: str
    layers: int
    eps: tuple[float, ...] = ()
    momentum: tuple[float | None, ...] = ()
    running: bool = False
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Noise:
    """Random numbers that a forward pass draws in training mode.

    Args:
        kind: ``dropout`` of single values, ``channel dropout``, ``stochastic depth`` of whole branches, or ``other``.
        places: How often a pass draws.
        low: Lowest rate; None for ``other``.
        high: Highest rate.
        before_head_only: Whether only the last weight layer follows.
    """

    kind: str
    places: int
    low: float | None
    high: float | None
    before_head_only: bool


@dataclass(frozen=True)
class Stage:
    """Everything at one resolution.

    Args:
        positions: Pixels of a feature map, or tokens; 1 where there is one vector.
        low: Fewest channels of the residual stream, or of the weight layers of a network without one.
        high: Most.
    """

    positions: int
    low: int
    high: int


@dataclass(frozen=True)
class Stem:
    """The first weight layer that sees the picture.

    Args:
        weight: Its name.
        kind: ``convolution`` or ``linear``.
        kernel: Side in pixels; 0 for a linear layer.
        stride: In pixels; 1 for a linear layer.
        channels: That it gives.
        pool_stride: Product of the strides of the pools in front of the next weight layer.
        patch: Side of the patches that do not overlap, each of which it embeds; None without such.
    """

    weight: str
    kind: Literal["convolution", "linear"]
    kernel: int
    stride: int
    channels: int
    pool_stride: int
    patch: int | None


@dataclass(frozen=True)
class Traits:
    """What an architecture is made of.

    Args:
        parameters: Number of values in its parameters.
        frozen: How many of them are not trained.
        only_head: Whether the last layer alone is trained, above frozen ones.
        shares: Share of them in convolutions, linear layers, normalization, scales and the rest.
        depth: Weight layers on the longest path from the picture to the outputs, those inside gates included.
        stages: From the finest resolution to the coarsest.
        identities: Skip connections whose short side has no weight layer.
        projections: Skip connections whose short side has some.
        concatenations: Skip connections that concatenate in place of adding.
        placement: Where normalization stands in most residual branches. ``pre``: in front of their weight layers;
            ``post``: behind them, or behind the addition; ``inside``: between them only; ``none``. Without skip
            connections the two orders differ at the ends alone: ``pre`` if normalization alone stands in front of the
            second weight layer, or none in front of the head.
        placements: Residual branches of each placement.
        norms: By kind.
        activations: How often each is applied, the most frequent first; those inside gates are left out.
        gates: Places where a side branch scales channels or positions (squeeze and excitation).
        noise: Drawn in training mode.
        training_fails: Why a pass in training mode is impossible; empty if it is possible.
        stem: The first weight layer.
        total_stride: Side of the picture over side of the last feature map; None where there is no such map.
        attention: Attention layers.
        closed_forms: What can be read exactly, each a sentence that names the attack and the layer.
        head: Name of the weight of the last layer.
        zero_head: Whether that weight is exactly zero.
        zero_branches: Names of other weights of layers and normalizations that are exactly zero.
        scales: Multiplications by a learned vector.
        tiny_scales: Those whose largest absolute value is below 1e-3.
        smallest_scale: The smallest of these largest values; None without any.
    """

    parameters: int
    frozen: int
    only_head: bool
    shares: Mapping[str, float]
    depth: int
    stages: tuple[Stage, ...]
    identities: int
    projections: int
    concatenations: int
    placement: Placement
    placements: Mapping[Placement, int]
    norms: tuple[Norm, ...]
    activations: Mapping[str, int]
    gates: int
    noise: tuple[Noise, ...]
    training_fails: str
    stem: Stem
    total_stride: int | None
    attention: int
    closed_forms: tuple[str, ...]
    head: str
    zero_head: bool
    zero_branches: tuple[str, ...]
    scales: int
    tiny_scales: int
    smallest_scale: float | None

    @property
    def skips(self) -> int:
        """Skip connections of every sort."""
        return self.identities + self.projections + self.concatenations
