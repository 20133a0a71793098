"""An array of pictures and one of labels."""

from pathlib import Path
from typing import Literal

import numpy as np

from leakmap.capturing.files import read_npy
from leakmap.client.data import Pictures, noise, sources
from leakmap.client.data.npz import LIMIT, arranged
from leakmap.errors import DataError
from leakmap.memory import free_memory


def _example(folder: Path) -> str:
    np.save(folder / "x.npy", noise(8, 24))
    np.save(folder / "y.npy", np.arange(8) % 2)
    return f"npy:{folder / 'x.npy'},labels={folder / 'y.npy'}"


@sources.add("npy:", examples=(_example,))
def npy(
    size: int | None,
    path: str,
    *,
    labels: str = "",
    channels: Literal[1, 3] | None = None,
    low: float = 0.0,
    high: float | None = None,
) -> Pictures:
    """Two files as ``np.save`` writes them, of pictures and of what they are labelled with, as ``npz:`` takes both.

    Arrays of Python objects are pickles, and refused.

    Args:
        size: Image size, None as stored.
        path: The file with the pictures.
        labels: The file with their labels; never left out.
        channels: 1 or 3 to convert.
        low: Value that stands for 0, such as -1024 of a CT in Hounsfield units.
        high: Value that stands for 1; None for 255 of uint8, 65535 of uint16, 1 of floats.
    """
    files = {"images": Path(path).expanduser(), "labels": Path(labels).expanduser()}
    arrays = {}
    for name, file in files.items():
        if not file.is_file():
            said = f"There is no file {file}." if name == "images" or labels else f"{path} comes without labels."
            raise DataError(f"{said} Give both files: npy:PICTURES.npy,labels=LABELS.npy.")
        try:
            arrays[name] = read_npy(file, min(LIMIT, free_memory() or LIMIT))
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise DataError(f"{file} cannot be read as an array of NumPy's: {reason[:200]}.") from None
    return arranged(files["images"], arrays, size, channels, low, high)
