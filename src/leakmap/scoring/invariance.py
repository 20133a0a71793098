"""Similarity that mirroring, turning, shifting and inverting leave alone: a picture in another pose is still a leak."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.scoring.lineup import cross_correlation

LONGEST = 48
"""Pixels of the longer side in the search over poses; larger pictures are averaged down to it."""
REACH = 4
"""Shifts go up to the side divided by this, in both directions of both axes."""
FAINT = 1e-6
"""Root mean square below which a picture, or a part of it, counts as constant: the rest is rounding of float32."""
DECIMALS = 9
"""Transforms err by about 1e-13, differently for each candidate: without rounding, ties would be broken by chance."""


def invariant_ncc(pictures: Tensor, candidates: Tensor) -> Tensor:
    """The highest absolute normalized cross-correlation of every pair over mirroring, quarter turns and small shifts.

    Tried are the 8 symmetries of the square (of other pictures the 4 that keep their shape), each with all shifts of up
    to a quarter of the side along both axes. Means and norms are those of the overlap, over all channels together, so
    that every value is an NCC of its own. Pictures with a side above :data:`LONGEST` are averaged down for this search;
    the plain NCC at full size is always among what the maximum is taken over.

    Every candidate is treated alike, so the truth stays exchangeable with the distractors.

    Args:
        pictures: ``(N, C, H, W)`` reconstructions.
        candidates: ``(G, C, H, W)``.

    Returns:
        ``(N, G)`` in [0, 1]; 0 for a constant picture.
    """
    plain = cross_correlation(pictures, candidates).abs()
    small, others = _reduced(pictures), _reduced(candidates)
    poses, line_up = torch.stack(_poses(small)), _Shifted.of(others)
    best = torch.stack([line_up.best(poses[:, i]) for i in range(len(small))])
    return torch.maximum(plain, best).clamp(max=1).round(decimals=DECIMALS)


def _reduced(pictures: Tensor) -> Tensor:
    """At most :data:`LONGEST` pixels a side, averaged over areas; around 0, where sums of squares lose no digits."""
    height, width = pictures.shape[-2:]
    longest = max(height, width)
    if longest > LONGEST:
        size = [max(1, round(side * LONGEST / longest)) for side in (height, width)]
        pictures = F.interpolate(pictures.double(), size=size, mode="area")
    return pictures.double() - pictures.double().mean((1, 2, 3), keepdim=True)


def _poses(pictures: Tensor) -> list[Tensor]:
    """The pictures themselves, mirrored and turned, as far as that keeps their shape."""
    quarters = range(4) if pictures.shape[-1] == pictures.shape[-2] else (0, 2)
    turned = [pictures.rot90(quarter, (-2, -1)) for quarter in quarters]
    return [*turned, *(x.flip(-1) for x in turned)]


@dataclass(frozen=True)
class _Shifted:
    """Candidates ``(G, C, h, w)``, prepared once for all reconstructions that are shifted over them.

    Args:
        spectra: ``(G, C, F)`` Fourier transforms of the padded pictures.
        size: Padded height and width: room for the shifts in use, so that none of them wraps around.
        rows: Shifts along the height.
        columns: Shifts along the width.
        pixels: ``(rows, columns)`` values that overlap.
        mean: ``(G, rows, columns)`` of what overlaps.
        scale: ``(G, rows, columns)`` one over the norm of what overlaps, less its mean.
    """

    spectra: Tensor
    size: tuple[int, int]
    rows: Tensor
    columns: Tensor
    pixels: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, candidates: Tensor) -> "_Shifted":
        """Prepares them."""
        channels, height, width = candidates.shape[1:]
        reach = height // REACH, width // REACH
        size = height + reach[0], width + reach[1]
        rows, columns = (torch.arange(-r, r + 1) for r in reach)
        pixels = channels * (height - rows.abs())[:, None] * (width - columns.abs())
        spectra = torch.fft.rfft2(candidates, s=size).flatten(2)
        return cls(spectra, size, rows, columns, pixels, *_overlaps(candidates, rows, columns, pixels))

    def best(self, pictures: Tensor) -> Tensor:
        """The highest absolute NCC of any of ``(P, C, h, w)`` with each candidate at any shift, ``(G,)``."""
        of_pictures = torch.fft.rfft2(pictures, s=self.size).flatten(2)
        spectra = torch.einsum("pcf,gcf->pgf", of_pictures.conj(), self.spectra)
        products = torch.fft.irfft2(spectra.unflatten(-1, (self.size[0], -1)), s=self.size)
        products = products.index_select(-2, self.rows % self.size[0]).index_select(-1, self.columns % self.size[1])
        mean, scale = _overlaps(pictures, -self.rows, -self.columns, self.pixels)
        covariance = products - self.pixels * mean[:, None] * self.mean
        return (covariance * scale[:, None] * self.scale).abs().amax((0, 2, 3))


def _overlaps(pictures: Tensor, rows: Tensor, columns: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over what lies under the other picture for every shift, and 1 / norm of what differs from it."""
    values = torch.stack([pictures.sum(1), pictures.square().sum(1)])
    integral = F.pad(values.cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    height, width = pictures.shape[-2:]
    bands = integral[..., height + rows.clamp(max=0), :] - integral[..., rows.clamp(min=0), :]
    total, squares = bands[..., width + columns.clamp(max=0)] - bands[..., columns.clamp(min=0)]
    mean = total / pixels
    energy = squares - pixels * mean.square()
    constant = energy <= FAINT**2 * pixels
    return mean, torch.where(constant, 0.0, energy.clamp(min=FAINT**2).rsqrt())
