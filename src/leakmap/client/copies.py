"""Near copies: pictures of a pool that are one picture, saved, resized, mirrored or cropped again.

A picture that a client holds and, as another file, the public pictures or the distractors hold too, spoils both: the
attacker knows the truth beforehand, and the line-up has two right answers. Files that differ in one byte pass a check
for exact duplicates, so the pool is searched by likeness.

A picture's signature is the discrete cosine transform of its grey thumbnail, each wave weighted by its frequency.
The weights even out the spectrum of photographs: what all X-rays have in common is coarse, and unweighted they are
alike at .97. Mirroring flips the sign of the odd waves, so one product finds mirrored copies too. The nearest pictures
by signature are then compared over a few crops, as a signature changes with a crop.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from leakmap.client.data import Pictures

PIXELS = 32
"""Side of a thumbnail; smaller pictures stay as they are."""
WAVES = 12
"""Waves along a side: up to 5.5 periods, which JPEG at quality 50 and a resize to 75 % leave intact at 32 pixels."""
ALIKE = 0.96
"""Correlation of signatures from which on two pictures are copies.

Measured at 32 pixels a side, PneumoniaMNIST at 28. First the merged pairs of different pictures among 3,158 X-rays,
4,574 of CIFAR-10, 960 of ImageNet and 360 samples; the five of CIFAR-10 are real copies, and three more lie at .92 to
.94, where different ships begin. Then the share of 300 copies that is found, in %, in the worst of the four sets: JPEG
at quality 50, resizes to 75 and 50 %, crops of 2 and 5 % of a side, and crops of 5 % followed by JPEG at quality 75
and a gamma of .8. At .96 at least 99.7 % are found of mirrored copies, JPEG from quality 75 on, brightness scaled by
.8 or 1.2, contrast by .6 or 1.4 and gammas of .7 and 1.4, and 96 % where brightness is shifted by 51 of 255 and clips.

===== ====== ======= ======== ======= ======= ==== ==== ====== ====== ==============
ALIKE X-rays CIFAR10 ImageNet samples JPEG 50 75 % 50 % crop 2 crop 5 crop 5 and all
===== ====== ======= ======== ======= ======= ==== ==== ====== ====== ==============
.93   63     6       0        2       99.7    100  85.3 100    98.7   99.0
.94   10     5       0        2       99.7    100  54.3 99.7   98.7   99.0
.95   1      5       0        2       99.3    100  16.0 99.3   98.7   98.7
.96   0      5       0        0       99.3    100  .7   99.0   97.7   95.0
.97   0      4       0        0       97.0    100  0    96.7   92.7   76.3
.98   0      1       0        0       91.0    99.7 0    77.7   68.7   44.3
===== ====== ======= ======== ======= ======= ==== ==== ====== ====== ==============

Two X-rays of different patients reach .951, so .96 keeps a margin and pays with copies that were changed twice.
"""
WORTH = 0.6
"""Pairs below this before cropping are not compared further; 95 of 100 crops of 5 % keep .7."""
NEAREST = 16
"""Later pictures that each picture is compared with over crops: bounds the work where all are alike, as X-rays."""
FLAT = 2.0
"""Thumbnails whose grey values (of 255) deviate less are nobody's copies: what is left of them is noise."""
MOST = 60_000
"""Pictures of a pool that are searched; the work grows with their square."""
CROPS = (0.0, 0.025, 0.05)
"""Shares of a side that a crop may have taken away, in all; crops between them are within .4 pixels of one."""
CLOSE = 30.0
"""PSNR in dB from which on a public picture counts as the victim's: different pictures of the sets above reach 28.9."""
_ROWS = 256
_KNOWN = 64
_PAIRS = 2048


@dataclass(frozen=True)
class Merged:
    """What grouping near copies did to a pool.

    Args:
        families: Pictures that have copies.
        left_out: Copies that were left out.
    """

    families: int
    left_out: int


def families(images: Tensor) -> Tensor:
    """Which pictures are copies of each other.

    Copies are pictures that were saved again with loss, resized, mirrored, cropped by up to 5 % of a side, or
    changed in brightness, contrast or gamma. Colours are not compared.

    Args:
        images: ``(N, C, H, W)`` uint8, at most :data:`MOST`.

    Returns:
        ``(N,)`` int64: of each picture the index of the first one that it is a copy of, its own where there is none.

    Raises:
        ValueError: more pictures than :data:`MOST`.
    """
    if len(images) > MOST:
        raise ValueError(f"Copies are looked for among at most {MOST:,} pictures; got {len(images):,}.")
    small = _thumbnails(images)
    first, second = _neighbours(_signatures(small))
    alike = torch.cat(
        [
            _over_crops(small[one].double(), small[other].double())
            for one, other in zip(first.split(_PAIRS), second.split(_PAIRS), strict=True)
        ]
    )
    edges = first[alike >= ALIKE].numpy(), second[alike >= ALIKE].numpy()
    graph = coo_array((np.ones(len(edges[0]), dtype=bool), edges), shape=(len(images),) * 2)
    _, members = connected_components(graph, directed=False)
    _, heads = np.unique(members, return_index=True)
    return torch.from_numpy(heads[members].astype(np.int64))


def without_copies(pictures: Pictures, given: int = 0) -> tuple[Pictures, Merged]:
    """The same pictures with one of each family, also across the sets: the first, in the main set if it has one.

    Args:
        pictures: The source, with at most :data:`MOST` pictures in all of its sets.
        given: The first pictures that stay even if they are copies of each other; all their copies are left out.

    Returns:
        The pictures, without a set that holds copies alone, and what was left out.
    """
    sets = [pictures, *(one for one in (pictures.spare, pictures.elsewhere) if one is not None)]
    family = families(torch.cat([one.images for one in sets]))
    place = torch.arange(len(family))
    stays = (family == place) | (place < given)
    merged = Merged(len(family[family != place].unique()), int((~stays).sum()))
    kept = iter(one.only(part) for one, part in zip(sets, stays.split([len(one) for one in sets]), strict=True))
    main = next(kept)
    spare, elsewhere = ((next(kept) or None) if one is not None else None for one in (main.spare, main.elsewhere))
    return replace(main, spare=spare, elsewhere=elsewhere), merged


def nearest_public(victims: Tensor, public: Tensor) -> tuple[Tensor, Tensor]:
    """The public picture that is nearest to each victim, and its PSNR.

    Above :data:`CLOSE` the attacker was given the picture, and finding it again shows nothing.

    Args:
        victims: ``(V, C, H, W)`` uint8.
        public: ``(P, C, H, W)`` uint8, at least one.

    Returns:
        ``(V,)`` places in ``public``, and ``(V,)`` dB, at most 60.
    """
    places, squares = [], []
    # Floats are made of a few rows at a time. In float64 the sums of squared bytes are exact up to any size.
    for rows in victims.flatten(1).split(_ROWS):
        truth = rows.double()
        apart = [_squared_errors(truth, part.double()) for part in public.flatten(1).split(_KNOWN)]
        least, place = torch.cat(apart, 1).min(1)
        places.append(place)
        squares.append(least)
    share = torch.cat(squares) / (255**2 * victims[0].numel())
    return torch.cat(places), -10 * share.clamp(min=1e-6).log10()


def _squared_errors(truth: Tensor, known: Tensor) -> Tensor:
    """``(V, P)`` sums over all pixels, in one product."""
    return truth.square().sum(1)[:, None] + known.square().sum(1) - 2 * truth @ known.T


def _thumbnails(images: Tensor) -> Tensor:
    """``(N, S, S)`` grey, averaged over areas; flat ones are all 0."""
    side = min(PIXELS, *images.shape[-2:])
    parts = [
        F.interpolate(part.float().mean(1, keepdim=True), size=(side, side), mode="bilinear", antialias=True)
        for part in images.split(_ROWS)
    ]
    small = torch.cat(parts)[:, 0]
    return small * (small.flatten(1).std(1, correction=0) >= FLAT)[:, None, None]


def _signatures(small: Tensor, rows: tuple[float, float] = (0, 1), columns: tuple[float, float] = (0, 1)) -> Tensor:
    """Unit signatures ``(2, N, WAVES * WAVES / 2)`` of a part of each thumbnail: even columns, odd ones."""
    waves = torch.arange(WAVES, dtype=small.dtype)
    vertical, horizontal = (_waves(small.shape[-1], *part).to(small) for part in (rows, columns))
    found = vertical @ small @ horizontal.T * torch.hypot(waves[:, None], waves)
    found = found / found.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-6)
    return torch.stack([found[..., ::2].flatten(1), found[..., 1::2].flatten(1)])


def _waves(pixels: int, start: float, stop: float) -> Tensor:
    """``(WAVES, pixels)`` cosines over a part of a side, integrated over pixels: crop, resize and transform in one."""
    order = torch.arange(WAVES, dtype=torch.float64)[:, None]
    edges = torch.linspace(0, 1, pixels + 1, dtype=torch.float64).clamp(start, stop)
    phase = math.pi * (edges - start) / (stop - start)
    integral = torch.where(order > 0, (order * phase).sin() / order.clamp(min=1), phase / math.sqrt(2))
    return integral.diff(dim=1)


def _neighbours(signatures: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs worth comparing, the earlier picture first: each with the nearest later ones, mirrored or not.

    Only later ones count, so that also of many copies each is joined to the next: the nearest of a picture are then
    never all earlier ones.
    """
    even, odd = signatures
    first, second = [], []
    for start in range(0, len(even), _ROWS):
        rows = slice(start, start + _ROWS)
        alike = even[rows] @ even[start:].T + (odd[rows] @ odd[start:].T).abs()
        values, places = alike.triu(1).topk(min(NEAREST, alike.shape[1]), dim=1)
        row, rank = (values >= WORTH).nonzero(as_tuple=True)
        first.append(start + row)
        second.append(start + places[row, rank])
    return torch.cat(first), torch.cat(second)


def _over_crops(one: Tensor, other: Tensor) -> Tensor:
    """``(P,)`` highest correlation of pairs where either of them is cropped and either is mirrored."""
    best = torch.full((len(one),), -1.0, dtype=one.dtype)
    for cropped, whole in ((one, other), (other, one)):
        signature = _signatures(whole)
        for rows, columns in _parts():
            even, odd = (_signatures(cropped, rows, columns) * signature).sum(-1)
            best = torch.maximum(best, even + odd.abs())
    return best


def _parts() -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Rows and columns that crops keep: every share of :data:`CROPS`, taken in steps from either end."""
    parts = []
    for steps, share in enumerate(CROPS):
        starts = [share * i / steps if steps else 0.0 for i in range(steps + 1)]
        kept = [(start, 1 - share + start) for start in starts]
        parts += [(rows, columns) for rows in kept for columns in kept]
    return parts
