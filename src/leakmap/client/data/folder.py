"""A folder of pictures, one sub-folder a class."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from leakmap.client.data import Pictures, check_room, eight_bits, noise, sources, square, to_channels
from leakmap.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
"""What is read, whatever a file is called: others start programs, as EPS does Ghostscript."""
MOST_PIXELS = 2**26


def _example(folder: Path) -> str:
    for number, picture in enumerate(noise(4, 24)):
        directory = folder / ("cat", "dog")[number % 2]
        directory.mkdir(exist_ok=True)
        Image.fromarray(picture).save(directory / f"{number}.png")
    return f"folder:{folder}"


@sources.add("folder:", examples=(_example,))
def folder(
    size: int | None, path: str, *, channels: Literal[1, 3] = 3, most: Annotated[int, Field(ge=1)] = 5000
) -> Pictures:
    """PNG and JPEG files in class folders, ``DIR/cat/1.png``; classes are numbered in the order of their names.

    Grey files become RGB, as in torchvision's ImageFolder; ``channels=1`` keeps one channel. Grey files of 16 bits are
    read as such. Hidden files, such as the ``._1.png`` of macOS, are left out.

    Args:
        size: Image size; None only where all files have the same size.
        path: The folder.
        channels: 3 for RGB, 1 for grey.
        most: At most this many files are read, spread evenly over the sorted list.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    classes = sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in ENDINGS and not file.name.startswith(".") and not file.is_dir()
    ]
    if len(classes) < 2 or not files:
        raise DataError(
            f"{root} holds {len(classes)} class folders with {len(files)} PNG or JPEG files; "
            "expected one sub-folder per class, at least two: DIR/CLASS/FILE.png."
        )
    if len(files) > most:
        files = [files[i] for i in np.linspace(0, len(files) - 1, most).astype(int)]
    images: list[Tensor] = []
    room = 0
    for file, _ in files:
        images.append(square(read_picture(file), size))
        if images[-1].element_size() > room:
            room = images[-1].element_size()
            check_room(len(files), images[-1].shape, room)
        if images[-1].shape != images[0].shape:
            sizes = " and ".join(f"{one.shape[1]}x{one.shape[2]}" for one in (images[0], images[-1]))
            raise DataError(f"{root} has pictures of different sizes ({sizes}, in {file}): give --image-size.")
    if any(image.is_floating_point() for image in images):
        images = [image if image.is_floating_point() else image.float() / 255 for image in images]
    stacked = to_channels(torch.stack(images), channels)
    labels = torch.tensor([label for _, label in files])
    if stacked.is_floating_point():
        return Pictures(eight_bits(stacked), labels, tuple(classes), exact=stacked)
    return Pictures(stacked, labels, tuple(classes))


def read_picture(file: Path) -> Tensor:
    """A PNG or JPEG file as ``(3, H, W)`` uint8, one of 16 bits a pixel as float32 in [0, 1].

    Raises:
        DataError: it is no picture, or too large a one.
    """
    if not file.is_file():
        raise DataError(f"{file} is no file that can be read, but a folder, a pipe or a link to nowhere; remove it.")
    try:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise DataError(f"{file} has {picture.width}x{picture.height} pixels; at most {MOST_PIXELS} are read.")
            if picture.mode.startswith("I"):
                grey = np.array(picture).astype(np.float32) / 65535
                return torch.from_numpy(grey).expand(3, -1, -1)
            pixels = np.array(picture.convert("RGB"))
    except DataError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{file} cannot be read as a picture: {reason}.") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)
