"""Pictures in a page: which are shown, and as what."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from leakmap.result.parts import FinishedClient
from leakmap.result.result import Result

PICTURE_ROWS = 16
"""Clients whose pictures are shown, evenly spread; all of them stay in the numbers."""
SHOWN_SIDE = 224


def chosen(result: Result, rows: Sequence[Mapping[str, Tensor]]) -> list[tuple[int, Any, int, str]]:
    """Client, its row of pictures, place in that row and caption of every picture shown.

    Args:
        result: Of the audit.
        rows: Named pictures of each finished client.
    """
    everything = [
        (client.client, row, place, _caption(client, place))
        for client, row in zip(result.finished, rows, strict=True)
        for place in range(len(row["original"]))
    ]
    if len(everything) <= PICTURE_ROWS:
        return everything
    return [everything[i] for i in np.linspace(0, len(everything) - 1, PICTURE_ROWS).astype(int)]


def _caption(client: FinishedClient, place: int) -> str:
    psnr, ssim = client.scores["psnr"][place], client.scores["ssim"][place]
    told = [f"rank {client.ranks[place]:g} of {client.galleries[place]}"]
    told += [f"{psnr:.1f} dB"] if psnr is not None else []
    told += [f"SSIM {ssim:.2f}"] if ssim is not None else []
    return ", ".join(told)


def drawn(picture: Tensor, side: int) -> Image.Image:
    """A picture ``(C, H, W)`` in [0, 1], made smaller where it is larger than ``side``."""
    pixels = (picture.cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if max(image.size) > side:
        image.thumbnail((side, side))
    return image


def uri(picture: Tensor) -> str:
    """A picture ``(C, H, W)`` in [0, 1] as the address of an image."""
    buffer = io.BytesIO()
    drawn(picture, SHOWN_SIDE).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def sheet(rows: Sequence[Sequence[Tensor]], side: int, lossless: bool) -> bytes:
    """A table of equally large pictures as one WebP image, so that all of them are decoded at once, and only on demand.

    Args:
        rows: Pictures ``(C, H, W)`` in [0, 1].
        side: Larger ones are made smaller.
        lossless: Otherwise quality 85.
    """
    tiles = [[drawn(picture, side) for picture in row] for row in rows]
    width, height = tiles[0][0].size
    whole = Image.new("RGB", (width * len(tiles[0]), height * len(tiles)))
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            whole.paste(tile, (j * width, i * height))
    buffer = io.BytesIO()
    whole.save(buffer, "WEBP", lossless=lossless, quality=60 if lossless else 85, method=2)
    return buffer.getvalue()
