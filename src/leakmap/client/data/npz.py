"""Arrays in a NumPy archive."""

import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from leakmap.client.data import Pictures, sources, square, to_channels
from leakmap.errors import DataError

LIMIT = 8 * 2**30
_LAYOUT = (
    "expected test_images and test_labels (and train_images, train_labels), or images and labels: uint8 (N, H, W, C) "
    "or (N, H, W), and whole numbers (N,)"
)


@sources.add("npz:")
def npz(size: int | None, path: str, *, channels: Literal[1, 3] | None = None) -> Pictures:
    """An archive with ``test_images``/``test_labels`` and, as the spare set, ``train_images``/``train_labels``.

    Instead of the former, ``images``/``labels`` may stand alone. Images are uint8, ``(N, H, W, C)`` or ``(N, H, W)``;
    labels ``(N,)`` or ``(N, 1)``; ``class_names`` is optional. Pickled arrays are refused.

    Args:
        size: Image size, None as stored.
        path: The file.
        channels: 1 or 3 to convert.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"There is no file {file}.")
    if (found := file.stat().st_size) > LIMIT:
        raise DataError(f"{file} has {found} bytes; at most {LIMIT} are read.")
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > LIMIT:
            raise DataError(f"{file} unpacks to {unpacked} bytes; at most {LIMIT} are read.")
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read as an npz archive: {str(error).splitlines()[0].rstrip('.')}.") from None
    main = "test_" if "test_images" in arrays else ""
    if f"{main}images" not in arrays or f"{main}labels" not in arrays:
        raise DataError(f"{file} holds {', '.join(sorted(arrays)) or 'nothing'}; {_LAYOUT}.")
    spare = "train_" if main and {"train_images", "train_labels"} <= set(arrays) else None
    highest = max(int(np.max(arrays[f"{p}labels"], initial=0)) for p in (main, spare) if p is not None)
    names = arrays.get("class_names")
    classes = tuple(str(n) for n in names) if names is not None else tuple(str(c) for c in range(highest + 1))
    if len(classes) <= highest:
        raise DataError(f"{file} has labels up to {highest} but only {len(classes)} class_names.")

    def read(prefix: str, spare: Pictures | None = None) -> Pictures:
        images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"].reshape(-1)
        fits = images.dtype == np.uint8 and images.ndim in (3, 4) and np.issubdtype(labels.dtype, np.integer)
        if not fits or len(images) != len(labels) or (len(labels) and labels.min() < 0):
            got = f"{prefix}images {images.dtype} {images.shape} and {prefix}labels {labels.dtype} {labels.shape}"
            raise DataError(f"{file} has {got}; {_LAYOUT}.")
        tensor = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2)
        tensor = square(to_channels(tensor, channels), size).contiguous()
        return Pictures(tensor, torch.from_numpy(labels.astype(np.int64)), classes, spare)

    return read(main, None if spare is None else read(spare))
