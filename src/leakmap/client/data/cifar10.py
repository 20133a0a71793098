"""CIFAR-10 as its authors distribute it."""

import importlib
from pathlib import Path

import numpy as np
import torch

from leakmap.client.data import Pictures, sources, square
from leakmap.errors import DataError

FOLDER = "cifar-10-batches-py"
LARGEST = 2**25
"""Bytes; the authors' files have 31.0 million at most, and torchvision reads one of any size to the end for its sum."""


def _example(folder: Path) -> str:
    """The authors' files where they lie under ``data``: files of one's own would not have the published sums."""
    if not (Path("data") / FOLDER).is_dir():
        raise DataError(f"An example of cifar10 takes the authors' files in data/{FOLDER}; they are absent.")
    return "cifar10:data"


@sources.add("cifar10:", examples=(_example,))
def cifar10(size: int | None, path: str, *, download: bool = False) -> Pictures:
    """The 10,000 test pictures, and the 50,000 training pictures as the spare set.

    torchvision reads the authors' files, and only if their MD5 sums are the published ones.

    Args:
        size: Image size; None keeps 32.
        path: The folder that holds (or shall hold) ``cifar-10-batches-py``.
        download: Fetch the data set from the network; never done unasked.
    """

    def read(train: bool, spare: Pictures | None = None) -> Pictures:
        try:
            for file in (Path(path) / FOLDER).glob("*"):
                if file.is_file() and (length := file.stat().st_size) > LARGEST:
                    raise OSError(f"{file.name} has {length} bytes, which no file of the authors has")
            data = importlib.import_module("torchvision.datasets").CIFAR10(path, train=train, download=download)
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise DataError(
                f"cifar10:{path} cannot be read ({reason}): point to the folder that holds {FOLDER}, "
                "or add download=true."
            ) from None
        images = torch.from_numpy(np.ascontiguousarray(data.data)).permute(0, 3, 1, 2)
        labels = torch.tensor(data.targets)
        return Pictures(square(images, size).contiguous(), labels, tuple(data.classes), spare)

    return read(False, read(True))
