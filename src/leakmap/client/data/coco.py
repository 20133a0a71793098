"""Pictures with objects, in the YOLO folder layout or with COCO's ``instances_SPLIT.json``."""

import json
import math
import re
import reprlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal, TypeGuard, TypeVar

import numpy as np
import torch
import yaml
from PIL import ExifTags, Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from leakmap.client.data import SMALLEST, Pictures, sources
from leakmap.client.data.folder import ENDINGS, read_picture
from leakmap.errors import DataError
from leakmap.objects import GRID, VALUES, pack

GREY = 114
"""Of the bars beside a picture that is not square, as in the letterbox of the YOLO family."""
ROUNDING = 1e-3
"""How far a box of a label file may stick out, in parts of the picture; a box of a json file may by one pixel."""
LONGEST_JSON = 2**30
LONGEST_TEXT = 2**20
LONGEST_NAME = 250
LONGEST_SIDE = 10**6
MOST_FILES = 10**6
MOST_CLASSES = 10**4

_LISTS = ("images", "annotations", "categories")
_KEPT = {*_LISTS, "id", "name", "file_name", "width", "height", "image_id", "category_id", "bbox", "iscrowd"}
"""What is read of a json file: the outlines of objects, most of its bytes, are let go as they are parsed."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Annotated:
    """A picture that is not read yet.

    Args:
        places: Where its file may be; the first that exists is it.
        objects: ``(n, 5)`` float64: class, then centre, width and height in [0, 1].
        shape: Height and width that the boxes were given for; None: any.
    """

    places: tuple[Path, ...]
    objects: Tensor
    shape: tuple[int, int] | None = None


@sources.add("coco:")
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
    layouts = _layouts(root)
    if layout != "auto":
        layouts = {name: [layout] for name, found in layouts.items() if layout in found}
    splits = _splits(root, sorted(layouts), split, spare)
    found = [(_yolo if layouts[name][0] == "yolo" else _json)(root, name) for name in splits]
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


def _layouts(root: Path) -> dict[str, list[str]]:
    """The layouts in which each split is there, the preferred one first."""
    found: dict[str, list[str]] = {}
    for child in _listed(root / "labels"):
        if child.is_dir():
            found.setdefault(child.name, []).append("yolo")
    for child in _listed(root / "annotations"):
        if match := re.fullmatch(r"instances_(.+)\.json", child.name):
            found.setdefault(match[1], []).append("json")
    return found


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


def _chosen(pictures: list[_Annotated], most: int, empty: bool, where: str) -> list[_Annotated]:
    kept = [picture for picture in pictures if empty or len(picture.objects)]
    if not kept:
        raise DataError(f"{where} has {len(pictures)} pictures, none with objects; empty=true takes those without.")
    return kept if len(kept) <= most else [kept[i] for i in np.linspace(0, len(kept) - 1, most).astype(int)]


def _numbers(pictures: list[_Annotated]) -> tuple[str, ...]:
    """Classes without names, up to the highest that occurs."""
    highest = max((int(picture.objects[:, 0].max()) for picture in pictures if len(picture.objects)), default=0)
    return tuple(map(str, range(highest + 1)))


def _read(pictures: Sequence[_Annotated], size: int, rows: int, classes: tuple[str, ...]) -> Pictures:
    """The pictures, letterboxed, with ``rows`` rows for the objects of each."""
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


def _image(picture: _Annotated) -> Tensor:
    file = next((place for place in picture.places if _is_file(place)), None)
    if file is None:
        raise DataError(f"{picture.places[0]} has annotations, but there is no such file.")
    image = read_picture(file)
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
    with Image.open(file) as picture:
        try:
            return picture.format != "PNG" and picture.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
        except Exception:
            return False


def _yolo(root: Path, split: str) -> tuple[tuple[str, ...] | None, list[_Annotated]]:
    """Names of the classes, None without ``data.yaml``, and the pictures in the order of their names."""
    names = root / "data.yaml"
    classes = _names(names) if names.exists() else None
    pictures = [file for file in _listed(root / "images" / split) if file.suffix.lower() in ENDINGS]
    labels = {file.stem: file for file in _listed(root / "labels" / split) if file.suffix == ".txt"}
    if lonely := sorted(labels.keys() - {file.stem for file in pictures} - {"classes"}):
        raise DataError(f"{labels[lonely[0]]} has no picture {lonely[0]}.jpg or .png in {root / 'images' / split}.")
    known = MOST_CLASSES if classes is None else len(classes)
    objects = [_labelled(labels[file.stem], known) if file.stem in labels else _tensor([]) for file in pictures]
    return classes, [_Annotated((file,), found) for file, found in zip(pictures, objects, strict=True)]


def _labelled(file: Path, classes: int) -> Tensor:
    """The objects of a label file."""
    objects: list[list[float]] = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        words, where = line.split(), f"{file}, line {number},"
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) != VALUES or not all(map(math.isfinite, values)):
            raise DataError(f"{where} is {reprlib.repr(line)}; expected five numbers: class cx cy width height.")
        kind, x, y, width, height = values
        if not (kind.is_integer() and 0 <= kind < classes):
            raise DataError(f"{where} has class {reprlib.repr(words[0])}; expected one from 0 to {classes - 1}.")
        if min(width, height) <= 0:
            raise DataError(f"{where} has a box {width:g} wide and {height:g} high; expected more than 0.")
        objects.append([kind, *_clipped((x - width / 2, y - height / 2, width, height), (1, 1), ROUNDING, where)])
    return _tensor(objects)


def _json(root: Path, split: str) -> tuple[tuple[str, ...], list[_Annotated]]:
    """Names of the classes in the order of their ids, and the pictures in the order of their names."""
    file = root / "annotations" / f"instances_{split}.json"
    data = _parsed(file)
    kinds: dict[int, str] = {}
    for entry, where in _entries(data, "categories", file):
        number = _new(kinds, entry, where)
        kinds[number] = _field(entry, "name", str, where)
    classes = _checked([kinds[number] for number in sorted(kinds)], file)
    ranks = {number: rank for rank, number in enumerate(sorted(kinds))}

    pictures: dict[int, tuple[str, int, int]] = {}
    for entry, where in _entries(data, "images", file):
        number, name = _new(pictures, entry, where), _field(entry, "file_name", str, where)
        width, height = _field(entry, "width", int, where), _field(entry, "height", int, where)
        if not (0 < width <= LONGEST_SIDE and 0 < height <= LONGEST_SIDE):
            got = reprlib.repr((width, height))
            raise DataError(f"{where} has width and height {got}; expected 1 to {LONGEST_SIDE} pixels.")
        if _escapes(name):
            raise DataError(
                f"{where} has the file name {reprlib.repr(name)}; expected one inside the folder, without .."
            )
        pictures[number] = name, width, height

    objects: dict[int, list[list[float]]] = {number: [] for number in pictures}
    for entry, where in _entries(data, "annotations", file):
        number, kind = _field(entry, "image_id", int, where), _field(entry, "category_id", int, where)
        if number not in pictures:
            raise DataError(f"{where} is of image {reprlib.repr(number)}, which is not among the images.")
        if kind not in ranks:
            raise DataError(f"{where} has category {reprlib.repr(kind)}, which is not among the categories.")
        box, crowd = entry.get("bbox"), entry.get("iscrowd", 0)
        if not _is_box(box) or crowd not in (0, 1):
            got = f"bbox {reprlib.repr(box)} and iscrowd {reprlib.repr(crowd)}"
            raise DataError(f"{where} has {got}; expected left, top, width and height in pixels, and 0 or 1.")
        if min(box[2:]) < 0:
            raise DataError(f"{where} has a box {box[2]:g} wide and {box[3]:g} high; expected none below 0.")
        if not crowd and min(box[2:]) > 0:
            objects[number].append([ranks[kind], *_clipped(box, pictures[number][1:], 1, where)])

    folders = (root / "images" / split, root / split, root)
    return classes, [
        _Annotated(tuple(folder / name for folder in folders), _tensor(objects[number]), (height, width))
        for number, (name, width, height) in sorted(pictures.items(), key=lambda item: item[1][0])
    ]


def _parsed(file: Path) -> Any:
    def kept(entry: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in entry.items() if key in _KEPT}

    try:
        return json.loads(_bytes(file, LONGEST_JSON), object_hook=kept)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {str(error).splitlines()[0].rstrip('.')}.") from None


def _entries(data: Any, name: str, file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The entries of one of the lists in a json file, and where each is, for messages."""
    found = data.get(name) if isinstance(data, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{file} has no list {name!r}; expected lists of {', '.join(_LISTS)}.")
    for i, entry in enumerate(found):
        where = f"{file}, {name}[{i}],"
        if not isinstance(entry, dict):
            raise DataError(f"{where} is {reprlib.repr(entry)}; expected an object in braces.")
        yield entry, where


def _field(entry: dict[str, Any], name: str, kind: type[T], where: str) -> T:
    value = entry.get(name)
    if type(value) is not kind:
        wanted = "a whole number" if kind is int else "text"
        raise DataError(f"{where} has {reprlib.repr(value)} for {name!r}; expected {wanted}.")
    return value


def _new(known: Container[int], entry: dict[str, Any], where: str) -> int:
    number = _field(entry, "id", int, where)
    if number in known:
        raise DataError(f"{where} has the id {reprlib.repr(number)}, which an earlier one has; expected each id once.")
    return number


def _is_box(box: Any) -> TypeGuard[list[float]]:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(type(number) in (int, float) and abs(number) <= LONGEST_SIDE for number in box)
    )


def _escapes(name: str) -> bool:
    """Whether a file name may lead out of the folder on any system, or is none that can be shown."""
    path = PureWindowsPath(name)
    inside = path.parts and not path.anchor and ".." not in path.parts
    return not inside or len(name) > LONGEST_NAME or not name.isprintable()


def _clipped(box: Sequence[float], extent: Sequence[int], rounding: float, where: str) -> list[float]:
    """Left, top, width and height of a box -> centre, width and height in [0, 1] of what is inside the picture.

    Args:
        box: In the unit of ``extent``.
        extent: Width and height of the picture.
        rounding: How far the box may stick out.
        where: For the message.
    """
    centre: list[float] = []
    lengths: list[float] = []
    for start, length, end in zip(box[:2], box[2:], extent, strict=True):
        low, high = max(start, 0), min(start + length, end)
        if start < -rounding or start + length > end + rounding or low >= high:
            right, bottom = box[0] + box[2], box[1] + box[3]
            raise DataError(
                f"{where} has a box from {box[0]:g} to {right:g} across and from {box[1]:g} to {bottom:g} down; "
                f"expected it inside the picture, which ends at {extent[0]} and {extent[1]}."
            )
        centre.append((low + high) / 2 / end)
        lengths.append((high - low) / end)
    return centre + lengths


def _names(file: Path) -> tuple[str, ...]:
    """The ``names`` of a ``data.yaml``: a list, or numbered from 0."""
    try:
        found = yaml.load(_text(file), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{file} cannot be read as YAML: {str(error).splitlines()[0].rstrip('.')}.") from None
    names: Any = found.get("names") if isinstance(found, dict) else None
    if isinstance(names, dict):
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file} has no 'names' that can be read; expected [cat, dog], or lines '0: cat' from 0 on.")
    return _checked(names, file)


def _checked(names: list[str], file: Path) -> tuple[str, ...]:
    if not 0 < len(names) <= MOST_CLASSES:
        raise DataError(f"{file} has {len(names)} classes; expected 1 to {MOST_CLASSES}.")
    for name in names:
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise DataError(
                f"{file} names a class {reprlib.repr(name)}; expected 1 to {LONGEST_NAME} characters that print."
            )
    return tuple(names)


def _tensor(objects: list[list[float]]) -> Tensor:
    return torch.tensor(objects, dtype=torch.float64).reshape(len(objects), VALUES)


def _text(file: Path) -> str:
    try:
        return _bytes(file, LONGEST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file} is not text in UTF-8.") from None


def _bytes(file: Path, most: int) -> bytes:
    try:
        if not file.is_file():
            raise DataError(f"{file} is not a file.")
        if (found := file.stat().st_size) > most:
            raise DataError(f"{file} has {found} bytes; at most {most} are read.")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files; nothing if there is no such folder."""
    if not folder.is_dir():
        return []
    try:
        found = [child for child in folder.iterdir() if not child.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None
    if len(found) > MOST_FILES:
        raise DataError(f"{folder} holds {len(found)} files; at most {MOST_FILES} are read.")
    return sorted(found)
