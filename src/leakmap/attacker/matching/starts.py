"""Where a search begins."""

from typing import Literal

import torch
from torch import Tensor

Start = Literal["normal", "truncated", "uniform", "zeros", "tiles", "known_pixels"]


def first_guess(
    kind: Start, shape: tuple[int, ...], source: torch.Generator, known_pixels: Tensor | None = None
) -> Tensor:
    """Pictures in normalized space.

    Args:
        kind: ``normal`` N(0, 1); ``truncated`` a tenth of it, clamped to 0.1; ``uniform`` in [-1, 1]; ``zeros``;
            ``tiles`` 4x4 patterns of N(0, 1), repeated; ``known_pixels`` the known ones,
            N(0, 1) where they are NaN or None.
        shape: ``(N, C, H, W)``.
        source: Of randomness.
        known_pixels: ``(N, C, H, W)`` in normalized space, NaN where unknown.

    Source: the initialisations of breaching; tiles are those of Wei et al. 2020, arXiv:2004.10397.
    """
    if kind == "zeros":
        return torch.zeros(shape)
    if kind == "uniform":
        return torch.rand(shape, generator=source) * 2 - 1
    if kind == "tiles":
        *examples, height, width = shape
        tile = torch.randn(*examples, 4, 4, generator=source)
        times = [1] * len(examples)
        return tile.repeat(*times, -(-height // 4), -(-width // 4))[..., :height, :width]
    noise = torch.randn(shape, generator=source)
    if kind == "truncated":
        return (noise * 0.1).clamp(-0.1, 0.1)
    return noise if kind == "normal" or known_pixels is None else noise.where(known_pixels.isnan(), known_pixels)
