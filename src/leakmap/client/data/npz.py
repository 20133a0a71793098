"""Arrays in a NumPy archive."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from leakmap.capturing.files import read_npz
from leakmap.client.data import MOST_CLASSES, Pictures, check_room, eight_bits, noise, sources, square, to_channels
from leakmap.errors import DataError
from leakmap.memory import check_fits, free_memory

LIMIT = 8 * 2**30
_LAYOUT = (
    "expected test_images and test_labels (and train_images, train_labels), or images and labels: uint8, uint16 or "
    "floats, (N, H, W, C) or (N, H, W), with 1 or 3 channels, and classes (N,) from 0 on; for other tasks labels (N,) "
    "or (N, K) of numbers, or (N, H, W) of whole ones"
)


def _example(folder: Path) -> str:
    pictures, labels = noise(8, 24), np.arange(8) % 2
    arrays = {"test_images": pictures[:5], "test_labels": labels[:5]}
    np.savez(folder / "pictures.npz", train_images=pictures[5:], train_labels=labels[5:], **arrays)
    return f"npz:{folder / 'pictures.npz'}"


@sources.add("npz:", examples=(_example,))
def npz(
    size: int | None, path: str, *, channels: Literal[1, 3] | None = None, low: float = 0.0, high: float | None = None
) -> Pictures:
    """An archive with ``test_images``/``test_labels`` and, as the spare set, ``train_images``/``train_labels``.

    Instead of the former, ``images``/``labels`` may stand alone. Images are uint8, uint16 or floats, ``(N, H, W, C)``
    or ``(N, H, W)``, of which ``low`` stands for black and ``high`` for white. Labels are classes ``(N,)`` or
    ``(N, 1)``, for other targets (``--target``) numbers ``(N,)`` or ``(N, K)``, or classes of pixels ``(N, H, W)``;
    ``class_names`` is optional. Pickled arrays are refused.

    Args:
        size: Image size, None as stored.
        path: The file.
        channels: 1 or 3 to convert.
        low: Value that stands for 0, such as -1024 of a CT in Hounsfield units.
        high: Value that stands for 1; None for 255 of uint8, 65535 of uint16, 1 of floats.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"There is no file {file}.")
    check_fits(file.stat().st_size, f"{file} takes", "save fewer pictures in it")
    try:
        arrays = read_npz(file, min(LIMIT, free_memory() or LIMIT))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{file} cannot be read as an npz archive: {reason[:200]}.") from None
    main = "test_" if "test_images" in arrays else ""
    if f"{main}images" not in arrays or f"{main}labels" not in arrays:
        raise DataError(f"{file} holds {reprlib.repr(sorted(arrays))}; {_LAYOUT}.")
    return arranged(file, arrays, size, channels, low, high)


def arranged(
    file: Path,
    arrays: Mapping[str, np.ndarray],
    size: int | None,
    channels: Literal[1, 3] | None,
    low: float,
    high: float | None,
) -> Pictures:
    """The pictures of arrays that are called as :func:`npz` takes them.

    Args:
        file: Where they come from, for messages.
        arrays: ``images`` and ``labels``, or the same of ``test_`` and, if there are spare ones, ``train_``.
        size: Image size, None as stored.
        channels: 1 or 3 to convert.
        low: Value that stands for 0.
        high: Value that stands for 1; None as of the type.

    Raises:
        DataError: they are no pictures with labels.
    """
    main = "test_" if "test_images" in arrays else ""
    spare = "train_" if main and {"train_images", "train_labels"} <= set(arrays) else None
    prefixes = [main] if spare is None else [main, spare]
    for prefix in prefixes:
        _check(file, prefix, arrays)
    classed = all(is_classes(arrays[f"{prefix}labels"], len(arrays[f"{prefix}images"])) for prefix in prefixes)
    highest = max(int(arrays[f"{prefix}labels"].max()) for prefix in prefixes) if classed else 0
    if highest >= MOST_CLASSES:
        raise DataError(f"{file} has labels up to {highest}; {_LAYOUT}.")
    names = arrays.get("class_names")
    if names is not None and (names.ndim != 1 or len(names) > MOST_CLASSES):
        raise DataError(f"{file} has class_names {names.dtype} {names.shape}; expected a list of names.")
    classes = tuple(str(n) for n in names) if names is not None else tuple(str(c) for c in range(highest + 1))
    if len(classes) <= highest:
        raise DataError(f"{file} has labels up to {highest} but only {len(classes)} class_names.")

    def read(prefix: str, spare: Pictures | None = None) -> Pictures:
        images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
        stacked = images if images.ndim == 4 else images[..., None]
        plain = images.dtype == np.uint8 and low == 0 and high in (None, 255)
        shape = (channels or stacked.shape[3], *((size, size) if size else stacked.shape[1:3]))
        check_room(len(stacked), shape, 1 if plain else 4)
        tensor = torch.from_numpy(stacked) if plain else _scaled(file, stacked, low, high)
        tensor = square(to_channels(tensor.permute(0, 3, 1, 2), channels), size).contiguous()
        shown, exact = (tensor, None) if plain else (eight_bits(tensor), tensor)
        if classed:
            y = torch.from_numpy(labels.reshape(-1).astype(np.int64))
            return Pictures(shown, y, classes, spare, exact=exact)
        values = torch.from_numpy(labels.astype(np.float64 if labels.dtype.kind == "f" else np.int64))
        y = torch.zeros(len(tensor), dtype=torch.int64)
        return Pictures(shown, y, classes, spare, values=values, exact=exact)

    found = read(main, None if spare is None else read(spare))
    if found.spare is not None and found.spare.images.shape[1:] != found.images.shape[1:]:
        shapes = f"{tuple(found.images.shape[1:])} and {tuple(found.spare.images.shape[1:])}"
        raise DataError(f"{file} has test and train pictures of different shapes {shapes}: give --image-size.")
    return found


def is_classes(labels: Any, count: int) -> bool:
    """Whether labels are one class from 0 on for each picture, as far as shape and type tell."""
    return tuple(labels.shape) in ((count,), (count, 1)) and labels.dtype.kind in "iu" and labels.min() >= 0


def _scaled(file: Path, images: np.ndarray, low: float, high: float | None) -> torch.Tensor:
    """Values as float32 in [0, 1], from a range that says what stands for 0 and 1."""
    top = high if high is not None else 1.0 if images.dtype.kind == "f" else float(np.iinfo(images.dtype).max)
    least, most = float(images.min()), float(images.max())
    if not (np.isfinite([least, most]).all() and low < top and low <= least and most <= top):
        raise DataError(
            f"{file} has images of {images.dtype} from {least:g} to {most:g}; expected {low:g} to {top:g}. Say which "
            "values stand for 0 and 1, as npz:FILE,low=-1024,high=3071; mean and std of the facts "
            "are of pictures in [0, 1]."
        )
    return torch.from_numpy(((images.astype(np.float64) - low) / (top - low)).astype(np.float32))


def _check(file: Path, prefix: str, arrays: Mapping[str, Any]) -> None:
    images, labels = np.asarray(arrays[f"{prefix}images"]), np.asarray(arrays[f"{prefix}labels"])
    pictures = (
        (images.dtype in (np.uint8, np.uint16) or images.dtype.kind == "f")
        and images.ndim in (3, 4)
        and images.shape[3:] in ((), (1,), (3,))
    )
    numbers = labels.dtype.kind in "iufb" and labels.dtype.itemsize <= 8 and 1 <= labels.ndim <= 3
    if not pictures or not images.size or not numbers or len(labels) != len(images) or not labels.size:
        got = f"{prefix}images {images.dtype} {images.shape} and {prefix}labels {labels.dtype} {labels.shape}"
        raise DataError(f"{file} has {got}; {_LAYOUT}.")
