"""Files in the formats that readers take, from values."""

import io
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image


def checkpoint(value: object, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(arrays: dict[str, Any]) -> bytes:
    return zipped([(f"{name}.npy", npy(array)) for name, array in arrays.items()])


def npz_list(arrays: Sequence[Any]) -> bytes:
    return npz({f"arr_{i}": array for i, array in enumerate(arrays)})


def zipped(entries: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore", UserWarning)
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def unzipped(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def picture(image: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    return buffer.getvalue()
