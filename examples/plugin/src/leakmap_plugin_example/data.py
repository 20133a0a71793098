"""Tensors in a file."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from leakmap.client.data import Pictures, noise, sources, square
from leakmap.errors import DataError


def _example(folder: Path) -> str:
    images = torch.from_numpy(noise(6, 24)).permute(0, 3, 1, 2).contiguous()
    save_file({"images": images, "labels": torch.arange(6) % 2}, folder / "pictures.safetensors")
    return f"plugin_data:{folder / 'pictures.safetensors'}"


@sources.add("plugin_data:", examples=(_example,))
def build(size: int | None, path: str) -> Pictures:
    """A safetensors file with ``images``, ``(N, 3, H, W)`` uint8, and ``labels``, ``(N,)`` int64 from 0 on.

    Args:
        size: Image size, None as stored.
        path: The file.
    """
    try:
        held = load_file(path)
        images, labels = held["images"], held["labels"]
        classes = tuple(map(str, range(int(labels.max()) + 1)))
    except Exception as error:
        raise DataError(f"{path!r} is no safetensors file with images and labels ({type(error).__name__}).") from error
    if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape != images.shape[:1] or labels.min() < 0:
        raise DataError(f"{path!r} has images {tuple(images.shape)} and labels {tuple(labels.shape)} that do not fit.")
    return Pictures(square(images, size), labels.long(), classes)
