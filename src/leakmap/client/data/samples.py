"""Real photographs that come inside scikit-image: no download."""

import numpy as np
import skimage.data
import torch
from torch import Tensor

from leakmap.client.data import Pictures, check_room, sources, square

PHOTOGRAPHS = (
    "astronaut",
    "cat",
    "coffee",
    "motorcycle",
    "immunohistochemistry",
    "hubble_deep_field",
    "camera",
    "coins",
)
ELSEWHERE = ("brick", "grass", "gravel", "page", "text", "retina", "rocket", "cell", "clock", "moon")
"""Further photographs inside scikit-image, which no client holds a tile of."""
PER_SIDE = 7
"""Tiles along the shorter side of a photograph."""
LARGE, PER_SIDE_LARGE = 128, 4
"""Image size from which tiles are larger, so that they show objects and not blown-up texture, and how many then."""
DETAIL = 20.0
"""Tiles whose grey values deviate by less than this (of 255) are left out: an empty sky identifies nothing."""


@sources.add("samples")
def samples(size: int | None) -> Pictures:
    """Square tiles of eight photographs; the class of a tile is the photograph it was cut from.

    Tiles do not overlap; from an image size of 128 on they are larger and fewer. Grey photographs are repeated to three
    channels. Without an image size, 32. Public pictures are tiles of ten other photographs; their classes are dealt in
    turn and mean nothing, as these photographs have none of the classes.
    """
    size = size or 32
    many = PER_SIDE if size < LARGE else PER_SIDE_LARGE
    held = [(label, tile) for label, name in enumerate(PHOTOGRAPHS) for tile in tiles(photograph(name), many)]
    public = [tile for name in ELSEWHERE for tile in tiles(photograph(name), many)]
    check_room(len(held) + len(public), (3, size, size))
    elsewhere = Pictures(_resized(public, size), torch.arange(len(public)) % len(PHOTOGRAPHS), PHOTOGRAPHS)
    images, labels = _resized([tile for _, tile in held], size), torch.tensor([label for label, _ in held])
    return Pictures(images, labels, PHOTOGRAPHS, elsewhere=elsewhere)


def _resized(found: list[Tensor], size: int) -> Tensor:
    return torch.stack([square(tile, size) for tile in found])


def photograph(name: str) -> Tensor:
    """One photograph as ``(3, H, W)`` uint8."""
    loaded = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    pixels = torch.from_numpy(np.ascontiguousarray(loaded))
    return (
        pixels.expand(3, *pixels.shape).contiguous() if pixels.ndim == 2 else pixels.permute(2, 0, 1)[:3].contiguous()
    )


def tiles(picture: Tensor, per_side: int = PER_SIDE) -> list[Tensor]:
    """Non-overlapping square tiles with some detail, ``per_side`` along the shorter side."""
    side = min(picture.shape[1:]) // per_side
    found = []
    for top in range(0, picture.shape[1] - side + 1, side):
        for left in range(0, picture.shape[2] - side + 1, side):
            tile = picture[:, top : top + side, left : left + side]
            if float(tile.float().mean(0).std()) >= DETAIL:
                found.append(tile)
    return found
