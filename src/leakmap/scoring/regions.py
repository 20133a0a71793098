"""Parts of pictures that are scored alone: what lies between letterbox bars, inside boxes, and around them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.problem.objects import corners, unpack
from leakmap.scoring.metrics.psnr import decibels

LEAST = 11
"""Pixels a side of what is cut out: the window of SSIM."""
SMALLEST_OBJECT = 8
"""Pixels a side below which an object has no line-up of its own."""


def cut(pictures: Tensor, area: Tensor | None) -> Tensor:
    """``(…, H, W)`` -> the part in an area ``(4,)``: top, left, bottom, right, widened to 11 pixels; all for None."""
    if area is None:
        return pictures
    top, left, bottom, right = _widened(area, *pictures.shape[-2:])
    return pictures[..., top:bottom, left:right]


def _widened(area: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    top, left, bottom, right = area.tolist()
    top, left = max(0, min(top, height - LEAST)), max(0, min(left, width - LEAST))
    return top, left, min(height, max(bottom, top + LEAST)), min(width, max(right, left + LEAST))


def fitted(picture: Tensor, area: Tensor | None, like: Tensor) -> Tensor:
    """What lies in an area of ``(C, H, W)``, brought to the size of ``like``."""
    found = cut(picture, area)
    if found.shape == like.shape:
        return found
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(found[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def pixels(y: Tensor, height: int, width: int) -> Tensor:
    """``(n, 4)`` top, left, bottom, right in whole pixels of every object of ``(M, 5)``, at least one pixel."""
    left, top, right, bottom = corners(unpack(y[None])[2]).unbind(1)
    scale = torch.tensor([height, width, height, width])
    found = (torch.stack([top, left, bottom, right], 1) * scale).round().long()
    found = torch.minimum(found.clamp(min=0), scale)
    found[:, :2] = torch.minimum(found[:, :2], scale[:2] - 1)
    found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
    return found


def inside(y: Tensor, height: int, width: int) -> Tensor:
    """``(H, W)`` whether a pixel lies in any box of ``(M, 5)``."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    for top, left, bottom, right in pixels(y, height, width).tolist():
        mask[top:bottom, left:right] = True
    return mask


def in_and_around(pictures: Tensor, originals: Tensor, y: Tensor, areas: Tensor | None) -> dict[str, tuple[float, ...]]:
    """PSNR of the pixels in boxes and of those around them, of each picture; where there are none, of all.

    Args:
        pictures: ``(N, C, H, W)`` reconstructions, matched.
        originals: ``(N, C, H, W)``.
        y: ``(N, M, 5)`` objects.
        areas: ``(N, 4)`` between letterbox bars.
    """
    found: dict[str, list[float]] = {"psnr_in_boxes": [], "psnr_around_boxes": []}
    for i, (picture, original) in enumerate(zip(pictures, originals, strict=True)):
        error = (picture.double() - original.double()).square().mean(0)
        boxed = inside(y[i], *error.shape)
        error, boxed = (cut(tensor, None if areas is None else areas[i]) for tensor in (error, boxed))
        for name, mask in (("psnr_in_boxes", boxed), ("psnr_around_boxes", ~boxed)):
            chosen = error[mask] if bool(mask.any()) else error
            found[name].append(float(decibels(chosen.mean())))
    return {name: tuple(values) for name, values in found.items()}


def large_objects(y: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """``(n,)`` classes and ``(n, 4)`` pixels of the objects of ``(M, 5)`` that are large enough for a line-up."""
    found = pixels(y, height, width)
    large = (found[:, 2:] - found[:, :2]).min(1).values >= SMALLEST_OBJECT
    return unpack(y[None])[1][large], found[large]


def crops(pictures: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
    """``(K,)`` classes and ``(C, h, w)`` crops of all large objects of ``(N, C, H, W)`` pictures, ``(N, M, 5)``."""
    kinds: list[int] = []
    found: list[Tensor] = []
    for picture, own in zip(pictures, y, strict=True):
        classes, boxes = large_objects(own, *picture.shape[-2:])
        kinds += classes.tolist()
        found += [picture[:, top:bottom, left:right] for top, left, bottom, right in boxes.tolist()]
    return torch.tensor(kinds, dtype=torch.int64), found
