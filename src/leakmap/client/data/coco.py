"""Pictures with objects, in the YOLO folder layout or with COCO's ``instances_SPLIT.json``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import ExifTags, Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from leakmap.client.annotations import BoxedPicture, layouts_of, read_json, read_yolo
from leakmap.client.data import SMALLEST, Pictures, check_room, noise, sources
from leakmap.client.data.folder import FORMATS, read_picture
from leakmap.errors import DataError
from leakmap.problem.objects import GRID, pack

GREY = 114
"""Of the bars beside a picture that is not square, as in the letterbox of the YOLO family."""


def _example(folder: Path) -> str:
    for number, picture in enumerate(noise(4, 24)):
        place = Path(("val", "train")[number % 2], str(number))
        for kind in ("images", "labels"):
            (folder / kind / place.parent).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[: 16 + number]).save(folder / "images" / f"{place}.png")
        (folder / "labels" / f"{place}.txt").write_text(f"{number % 2} 0.5 0.5 0.5 0.5", encoding="utf-8")
    return f"coco:{folder}"


@sources.add("coco:", examples=(_example,), objects=True)
def coco(
    size: int | None,
    path: str,
    *,
    split: str | None = None,
    spare: str | None = None,
    layout: Literal["auto", "json", "yolo"] = "auto",
    most: Annotated[int, Field(ge=1)] = 5000,
    most_objects: Annotated[int, Field(ge=1, le=1000)] = 64,
    empty: bool = False,
) -> Pictures:
    """Pictures with objects, for detectors: images/ beside YOLO's labels/ or COCO's annotations/instances_SPLIT.json.

    YOLO: ``images/SPLIT/X.jpg`` or ``.png``, ``labels/SPLIT/X.txt`` with ``class cx cy width height`` on each line, and
    the names of the classes in ``data.yaml``, without which they are numbered. COCO: pictures in ``images/SPLIT``,
    ``SPLIT`` or the folder itself; classes in the order of their ids; crowds are left out, and boxes of no width or no
    height, of which COCO 2017 has two. Boxes that stick out by rounding are clipped. Pictures are letterboxed, see
    :func:`letterbox`; those so elongated that fewer than 16 pixels across would remain are left out.

    Args:
        size: Height and width of the square; needed.
        path: The folder.
        split: The split of the clients; None: the first that begins with val, else with test, else the only one.
        spare: The split of public pictures and of training; None: the first other one that begins with train, if any.
        layout: ``auto`` takes ``labels/SPLIT`` where that exists, else the json file.
        most: At most this many pictures of each split are read, spread evenly over the sorted list.
        most_objects: A picture with more objects is refused.
        empty: Keep pictures without objects.

    Raises:
        DataError: something is missing, is not as described, or names a file outside the folder.

    Source: Lin et al., Microsoft COCO, ECCV 2014, arXiv:1405.0312.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    if size is None:
        raise DataError(f"Detectors take squares of one size, which pictures in {root} need not be: give --image-size.")
    layouts = layouts_of(root)
    if layout != "auto":
        layouts = {name: [layout] for name, found in layouts.items() if layout in found}
    splits = _splits(root, sorted(layouts), split, spare)
    found = [(read_yolo if layouts[name][0] == "yolo" else read_json)(root, name) for name in splits]
    if len({classes for classes, _ in found}) > 1:
        raise DataError(f"The splits {' and '.join(splits)} of {root} differ in the names of their classes.")
    chosen = [
        _chosen(pictures, most, empty, f"The split {name} of {root}")
        for name, (_, pictures) in zip(splits, found, strict=True)
    ]
    fullest = max((picture for pictures in chosen for picture in pictures), key=lambda picture: len(picture.objects))
    if len(fullest.objects) > most_objects:
        raise DataError(
            f"{fullest.places[0]} has {len(fullest.objects)} objects, more than {most_objects}; raise most_objects."
        )
    classes = found[0][0] or _numbers([picture for _, pictures in found for picture in pictures])
    clients, *others = [_read(pictures, size, max(1, len(fullest.objects)), classes) for pictures in chosen]
    return replace(clients, spare=others[0]) if others else clients


def letterbox(image: Tensor, size: int) -> tuple[Tensor, tuple[int, int, int, int]]:
    """A picture made square without cutting: its longer side becomes ``size``, and grey bars fill the rest.

    Args:
        image: ``(C, H, W)`` uint8.
        size: Height and width of the square.

    Returns:
        ``(C, size, size)`` uint8, and top, left, bottom and right of the picture in it, the last two exclusive.
    """
    longest = max(image.shape[1:])
    height, width = (max(1, round(side * size / longest)) for side in image.shape[1:])
    top, left = (size - height) // 2, (size - width) // 2
    resized = F.interpolate(image[None].float(), size=(height, width), mode="bilinear", antialias=True)[0]
    square = torch.full((len(image), size, size), GREY, dtype=torch.uint8)
    square[:, top : top + height, left : left + width] = resized.round().clamp(0, 255).to(torch.uint8)
    return square, (top, left, top + height, left + width)


def _splits(root: Path, names: list[str], split: str | None, spare: str | None) -> list[str]:
    """The split of the clients and, if there is one, the spare one."""
    if not names:
        raise DataError(
            f"{root} has no split in the layout that is asked for; expected folders images/SPLIT and labels/SPLIT, or "
            "annotations/instances_SPLIT.json and images/SPLIT."
        )
    for wanted in (split, spare):
        if wanted is not None and wanted not in names:
            raise DataError(f"{root} has no split {wanted!r}; there are {', '.join(names)}.")
    free = [name for name in names if name != spare]
    held = [name for prefix in ("val", "test") for name in free if name.lower().startswith(prefix)]
    split = split or next(iter(held), free[0] if len(free) == 1 else None)
    if split is None:
        raise DataError(f"Which of the splits {', '.join(names)} of {root} the clients have is unclear: give split.")
    if split == spare:
        raise DataError(f"The split {split!r} of {root} cannot be both split and spare; give two different ones.")
    spare = spare or next((name for name in free if name != split and name.lower().startswith("train")), None)
    return [split] if spare is None else [split, spare]


def _chosen(pictures: list[BoxedPicture], most: int, empty: bool, where: str) -> list[BoxedPicture]:
    kept = [picture for picture in pictures if empty or len(picture.objects)]
    if not kept:
        raise DataError(f"{where} has {len(pictures)} pictures, none with objects; empty=true takes those without.")
    return kept if len(kept) <= most else [kept[i] for i in np.linspace(0, len(kept) - 1, most).astype(int)]


def _numbers(pictures: list[BoxedPicture]) -> tuple[str, ...]:
    """Classes without names, up to the highest that occurs."""
    highest = max((int(picture.objects[:, 0].max()) for picture in pictures if len(picture.objects)), default=0)
    return tuple(map(str, range(highest + 1)))


def _read(pictures: Sequence[BoxedPicture], size: int, rows: int, classes: tuple[str, ...]) -> Pictures:
    """The pictures, letterboxed, with ``rows`` rows for the objects of each."""
    check_room(len(pictures), (3, size, size))
    images: list[Tensor] = []
    objects: list[Tensor] = []
    areas: list[tuple[int, int, int, int]] = []
    for picture in pictures:
        image, area = letterbox(_image(picture), size)
        top, left, bottom, right = area
        height, width = bottom - top, right - left
        if min(height, width) < SMALLEST:
            continue
        scale = torch.tensor([1, width / size, height / size, width / size, height / size], dtype=torch.float64)
        offset = torch.tensor([0, left / size, top / size, 0, 0], dtype=torch.float64)
        moved = picture.objects * scale + offset
        moved[:, 3:].clamp_(min=1 / GRID)
        images.append(image)
        objects.append(moved)
        areas.append(area)
    if not images:
        raise DataError(
            f"{pictures[0].places[0]} and all {len(pictures)} pictures of its split are so elongated that in squares "
            f"of {size} fewer than {SMALLEST} pixels across would remain; give a larger image size."
        )
    labels = torch.zeros(len(images), dtype=torch.int64)
    return Pictures(torch.stack(images), labels, classes, objects=pack(objects, rows), areas=torch.tensor(areas))


def _image(picture: BoxedPicture) -> Tensor:
    file = next((place for place in picture.places if _is_file(place)), None)
    if file is None:
        raise DataError(f"{picture.places[0]} has annotations, but there is no such file.")
    image = read_picture(file)
    if image.is_floating_point():
        raise DataError(f"{file} has more than 8 bits a channel; save it with 8 bits a channel.")
    if picture.shape not in (None, tuple(image.shape[1:])):
        shapes = ["{} high and {} wide".format(*shape) for shape in (image.shape[1:], picture.shape)]
        raise DataError(f"{file} is {shapes[0]}, but its boxes were given for a picture {shapes[1]}.")
    if _is_turned(file):
        raise DataError(
            f"{file} is stored turned (EXIF orientation), and tools differ on which way round its boxes are meant; "
            "save it upright."
        )
    return image


def _is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:
        return False


def _is_turned(file: Path) -> bool:
    """Whether viewers turn the picture before they show it; not if its EXIF block cannot be read."""
    with Image.open(file, formats=FORMATS) as picture:
        try:
            return picture.format != "PNG" and picture.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
        except Exception:
            return False
