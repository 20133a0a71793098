"""What leaks, by bands: line-ups on colour alone, layout alone and detail alone, beside that of the whole picture.

The definitions are frozen, so that ranks of different versions can be compared. Where which colour is, only the whole
picture says.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from leakmap.scoring.invariance import FAINT
from leakmap.scoring.lineup import Similarity, cross_correlation, rank

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
    return {name: rank(pictures, truth, distractors, likeness) for name, likeness in BANDS.items()}


def colour_likeness(pictures: Tensor, candidates: Tensor) -> Tensor:
    """Minus the distance of the means of the channels; of grey pictures that is their brightness."""
    means, others = (x.double().mean((2, 3)) for x in (pictures, candidates))
    return -(means[:, None] - others).norm(dim=2)


def layout_likeness(pictures: Tensor, candidates: Tensor) -> Tensor:
    """NCC of the 8 slowest cosine waves along each axis, of grey pictures; without the mean, which is colour."""
    return cross_correlation(_split(pictures)[0], _split(candidates)[0])


def detail_likeness(pictures: Tensor, candidates: Tensor) -> Tensor:
    """NCC of what grey pictures hold beyond their layout and their mean."""
    return cross_correlation(_split(pictures)[1], _split(candidates)[1])


BANDS: Mapping[str, Similarity] = {
    "whole": cross_correlation,
    "colour": colour_likeness,
    "layout": layout_likeness,
    "detail": detail_likeness,
}
"""Band -> how alike two pictures are in it."""


def _split(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Layout and detail of the grey pictures, ``(N, H, W)`` each; the split is orthogonal, so neither holds the other.

    A picture that was blurred keeps faint detail, and NCC disregards how faint.
    """
    grey = pictures.double().mean(1)
    grey = grey - grey.mean((1, 2), keepdim=True)
    rows, columns = (_slow_waves(side) for side in grey.shape[1:])
    layout = rows.T @ (rows @ grey @ columns.T) @ columns
    return _unless_empty(layout), _unless_empty(grey - layout)


def _slow_waves(side: int) -> Tensor:
    """``(8, side)``: the slowest waves of the cosine transform (DCT-II), orthonormal."""
    waves, places = torch.arange(min(COARSE, side)).double(), torch.arange(side).double() + 0.5
    basis = torch.cos(math.pi / side * waves[:, None] * places) * math.sqrt(2 / side)
    return torch.cat([basis[:1] / math.sqrt(2), basis[1:]])


def _unless_empty(bands: Tensor) -> Tensor:
    return torch.where(bands.square().mean((1, 2), keepdim=True) > FAINT**2, bands, 0.0)
