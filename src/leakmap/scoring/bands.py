"""What leaks, by bands: line-ups on colour alone, layout alone and detail alone, beside that of the whole picture.

The definitions are frozen, so that ranks of different versions can be compared. Where which colour is, only the whole
picture says.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from leakmap.scoring.invariance import FAINT
from leakmap.scoring.lineup import Similarity, rank

COARSE = 8
"""Cosine waves per axis that make up the layout: what a picture of 8x8 pixels can hold."""


def band_ranks(pictures: Tensor, truth: Tensor, distractors: Tensor) -> dict[str, float]:
    """Rank of the true picture in a line-up of each band, 1 is best; ties count half.

    As in :func:`leakmap.scoring.lineup.rank`, a candidate scores its highest similarity to any reconstruction of the
    batch, so without leakage every rank is equally likely in each band. Poses are not searched: a mirrored picture is
    found by the rank of the whole under :func:`leakmap.scoring.invariance.invariant_ncc`, not here.

    Args:
        pictures: ``(N, C, H, W)`` reconstructions of one client.
        truth: ``(C, H, W)``.
        distractors: ``(G - 1, C, H, W)``.

    Returns:
        The name of each of :data:`BANDS` -> rank.
    """
    return {name: rank(pictures, truth, distractors, similarity) for name, similarity in BANDS.items()}


def colour_similarity(pictures: Tensor, candidates: Tensor) -> Tensor:
    """Minus the distance of the means of the channels; of grey pictures that is their brightness."""
    means, others = (x.mean((2, 3), dtype=torch.float64) for x in (pictures, candidates))
    return -(means[:, None] - others).norm(dim=2)


def layout_similarity(pictures: Tensor, candidates: Tensor) -> Tensor:
    """NCC of the 8 slowest cosine waves along each axis, of grey pictures; without the mean, which is colour."""
    return _cosines(_layout(_grey(pictures)), _layout(_grey(candidates)))


def detail_similarity(pictures: Tensor, candidates: Tensor) -> Tensor:
    """NCC of what grey pictures hold beyond their layout and their mean."""
    return _cosines(_detail(_grey(pictures)), _detail(_grey(candidates)))


BANDS: Mapping[str, Similarity] = {
    "colour": colour_similarity,
    "layout": layout_similarity,
    "detail": detail_similarity,
}
"""Band -> how alike two pictures are in it."""


def _grey(pictures: Tensor) -> Tensor:
    """Mean over channels, less its mean, ``(N, H, W)``."""
    grey = pictures.mean(1).double()
    return grey - grey.mean((1, 2), keepdim=True)


def _layout(grey: Tensor) -> Tensor:
    """How much of each slow wave, ``(N, 8, 8)``; of waves that are orthonormal, NCC is the cosine of these."""
    rows, columns = (_slow_waves(side) for side in grey.shape[1:])
    return _unless_empty(rows @ grey @ columns.T, grey[0].numel())


def _detail(grey: Tensor) -> Tensor:
    """What the slow waves leave, orthogonal to all of them. Blurring only weakens it, and NCC disregards how faint."""
    rows, columns = (_slow_waves(side) for side in grey.shape[1:])
    return _unless_empty(grey - rows.T @ (rows @ grey @ columns.T) @ columns, grey[0].numel())


def _cosines(bands: Tensor, others: Tensor) -> Tensor:
    """``(N, G)``; both have mean 0, so this is their NCC."""
    units = [band.flatten(1) / band.flatten(1).norm(dim=1, keepdim=True).clamp(min=1e-12) for band in (bands, others)]
    return units[0] @ units[1].T


def _slow_waves(side: int) -> Tensor:
    """``(8, side)``: the slowest waves of the cosine transform (DCT-II), orthonormal."""
    waves, places = torch.arange(min(COARSE, side)).double(), torch.arange(side).double() + 0.5
    basis = torch.cos(math.pi / side * waves[:, None] * places) * math.sqrt(2 / side)
    return torch.cat([basis[:1] / math.sqrt(2), basis[1:]])


def _unless_empty(bands: Tensor, pixels: int) -> Tensor:
    """Zero where a band of so many pixels holds nothing but rounding, so that it ties with everything."""
    return torch.where(bands.square().sum((1, 2), keepdim=True) > FAINT**2 * pixels, bands, 0.0)
