"""Boxes in files: YOLO's folder layout, and COCO's ``instances_SPLIT.json``. Whatever is in them is checked."""

import json
import math
import re
import reprlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, TypeGuard, TypeVar

import torch
import yaml
from torch import Tensor

from leakmap.client.data.folder import ENDINGS
from leakmap.errors import DataError
from leakmap.problem.objects import VALUES

ROUNDING = 1e-3
"""How far a box of a label file may stick out, in parts of the picture; a box of a json file may by one pixel."""
LONGEST_JSON = 2**30
LONGEST_TEXT = 2**20
LONGEST_YAML = 2**18
LONGEST_NAME = 250
LONGEST_SIDE = 10**6
MOST_FILES = 10**6
MOST_CLASSES = 10**4

_LISTS = ("images", "annotations", "categories")
_KEPT = {*_LISTS, "id", "name", "file_name", "width", "height", "image_id", "category_id", "bbox", "iscrowd"}
"""What is read of a json file: the outlines of objects, most of its bytes, are let go as they are parsed."""

T = TypeVar("T")


@dataclass(frozen=True)
class BoxedPicture:
    """A picture with boxes that is not read yet.

    Args:
        places: Where its file may be; the first that exists is it.
        objects: ``(n, 5)`` float64: class, then centre, width and height in [0, 1].
        shape: Height and width that the boxes were given for; None: any.
    """

    places: tuple[Path, ...]
    objects: Tensor
    shape: tuple[int, int] | None = None


def layouts_of(root: Path) -> dict[str, list[str]]:
    """The layouts in which each split is there, the preferred one first."""
    found: dict[str, list[str]] = {}
    for child in _listed(root / "labels"):
        if child.is_dir():
            found.setdefault(child.name, []).append("yolo")
    for child in _listed(root / "annotations"):
        if match := re.fullmatch(r"instances_(.+)\.json", child.name):
            found.setdefault(match[1], []).append("json")
    return found


def read_yolo(root: Path, split: str) -> tuple[tuple[str, ...] | None, list[BoxedPicture]]:
    """Names of the classes, None without ``data.yaml``, and the pictures in the order of their names."""
    names = root / "data.yaml"
    classes = _names(names) if names.exists() else None
    pictures = [file for file in _listed(root / "images" / split) if file.suffix.lower() in ENDINGS]
    labels = {file.stem: file for file in _listed(root / "labels" / split) if file.suffix == ".txt"}
    if lonely := sorted(labels.keys() - {file.stem for file in pictures} - {"classes"}):
        raise DataError(f"{labels[lonely[0]]} has no picture {lonely[0]}.jpg or .png in {root / 'images' / split}.")
    known = MOST_CLASSES if classes is None else len(classes)
    objects = [_labelled(labels[file.stem], known) if file.stem in labels else _tensor([]) for file in pictures]
    return classes, [BoxedPicture((file,), found) for file, found in zip(pictures, objects, strict=True)]


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


def read_json(root: Path, split: str) -> tuple[tuple[str, ...], list[BoxedPicture]]:
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
        BoxedPicture(tuple(folder / name for folder in folders), _tensor(objects[number]), (height, width))
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
        found = yaml.load(_text(file, LONGEST_YAML), Loader=yaml.BaseLoader)
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


def _text(file: Path, most: int = LONGEST_TEXT) -> str:
    try:
        return _bytes(file, most).decode("utf-8-sig")
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
