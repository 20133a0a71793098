"""Objects in pictures, as one integer tensor.

The targets of a detector are ``(N, M, 5)`` int64: for each of N pictures up to M objects, each a class and a box
``(cx, cy, width, height)`` in units of ``1 / GRID`` of the picture's width and height. Rows of class -1 are empty.
Whole numbers, as classes are: what is searched by gradient is floating, what is given is not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

GRID = 2**16
VALUES = 5
"""Numbers of an object: its class and its box."""
EMPTY = -1


def pack(objects: Sequence[Tensor], most: int | None = None) -> Tensor:
    """Targets from a list of objects for each picture.

    Args:
        objects: For each picture ``(n, 5)``: class, then centre, width and height in [0, 1].
        most: Rows of each picture; None: as many as the fullest picture has, at least 1.

    Raises:
        ValueError: a picture has more objects.
    """
    most = max([1, *map(len, objects)]) if most is None else most
    y = torch.zeros(len(objects), most, VALUES, dtype=torch.int64)
    y[..., 0] = EMPTY
    for row, found in zip(y, objects, strict=True):
        if len(found) > most:
            raise ValueError(f"a picture has {len(found)} objects, more than {most}")
        row[: len(found), 0] = found[:, 0].long()
        row[: len(found), 1:] = (found[:, 1:].double() * GRID).round().long()
    return y


def unpack(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(n,)`` number of the picture, ``(n,)`` class and ``(n, 4)`` box in [0, 1] of every object of ``(N, M, 5)``."""
    picture, row = (y[..., 0] != EMPTY).nonzero(as_tuple=True)
    found = y[picture, row]
    return picture, found[:, 0], found[:, 1:].to(torch.get_default_dtype()) / GRID


def holds_objects(y: Tensor) -> bool:
    """Whether targets are objects: a picture has more than 5 pixels a side, so classes of pixels are none."""
    return y.ndim == 3 and y.shape[-1] == VALUES and not y.is_floating_point()


def corners(boxes: Tensor) -> Tensor:
    """``(n, 4)`` centre, width and height -> left, top, right, bottom."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([centre - half, centre + half], 1)
