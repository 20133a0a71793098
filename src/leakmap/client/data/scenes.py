"""Pictures with objects that come inside scikit-image: no download."""

import torch
from torch import Tensor

from leakmap.client.data import Pictures, check_room, sources, square
from leakmap.client.data.samples import PHOTOGRAPHS, photograph, tiles
from leakmap.problem.objects import pack
from leakmap.seeds import generator

OBJECTS = 2
"""Of each scene."""
SIDES = (0.3, 0.55)
"""Of an object, in sides of the scene."""


@sources.add("scenes", objects=True)
def scenes(size: int | None) -> Pictures:
    """Tiles of eight photographs with tiles of other photographs pasted in: objects whose boxes are exact.

    The class of an object is the photograph that it was cut from. Every tile is used once. The two objects of a scene
    lie in opposite quarters, so that they hardly hide each other. Without an image size, 64.
    """
    size = size or 64
    source = generator(0, "scenes")
    found = [(label, tile) for label, name in enumerate(PHOTOGRAPHS) for tile in tiles(photograph(name))]
    check_room(len(found), (3, size, size))
    order = torch.randperm(len(found), generator=source).tolist()
    images: list[Tensor] = []
    objects: list[Tensor] = []
    for first in range(0, len(order) - OBJECTS, 1 + OBJECTS):
        _, ground = found[order[first]]
        scene = square(ground, size).clone()
        rows: list[list[float]] = []
        for number, place in enumerate(order[first + 1 : first + 1 + OBJECTS]):
            label, tile = found[place]
            drawn = torch.rand(3, generator=source).tolist()
            side = round(size * (SIDES[0] + (SIDES[1] - SIDES[0]) * drawn[0]))
            left, top = (round((number + draw) / OBJECTS * (size - side)) for draw in drawn[1:])
            scene[:, top : top + side, left : left + side] = square(tile, side)
            rows.append([label, *((2 * corner + side) / 2 / size for corner in (left, top)), side / size, side / size])
        images.append(scene)
        objects.append(torch.tensor(rows))
    labels = torch.zeros(len(images), dtype=torch.int64)
    return Pictures(torch.stack(images), labels, PHOTOGRAPHS, objects=pack(objects))
