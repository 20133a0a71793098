"""Pictures in a page: which are shown, and as what."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from leakmap.drawing import drawn, uri
from leakmap.result.clients import FinishedClient
from leakmap.result.result import Result

EXPOSED_ROWS = 64
"""Exposed pictures that are shown, the worst first."""
PICTURE_ROWS = 17
"""Other pictures that are shown, evenly spread from the best to the worst; all of them stay in the numbers. An odd
number, so that the median is among them."""
SHOWN_SIDE, SMALL_SIDE = 224, 84
"""Largest side of a picture in a page of few pictures, and of very many."""
LOSSLESS, PIXELS = 1_500_000, 5_000_000
"""Of all pictures of an audit together, up to which they are stored without loss, and up to the largest side."""


NAMES = ("original", "reconstruction", "prior only", "swapped update", "mean picture", "nearest public")
"""Pictures of a row in the order in which they are shown; a floor that came to no reconstruction has none."""
TOLD = {
    "original": "what the client held",
    "reconstruction": "recovered from its update",
    "prior only": "without any update",
    "swapped update": "from another update",
    "mean picture": "mean known picture",
    "nearest public": "nearest known picture",
}
"""The same for readers."""
SMOOTH_SIDE = 128
"""Smaller pictures are enlarged with sharp pixels, so that nothing is made up between them."""


@dataclass(frozen=True)
class Shown:
    """A picture that is shown.

    Args:
        client: The number of its client, from 0.
        row: Named pictures of this client.
        place: In that row.
        caption: Its numbers.
        exposed: Whether it is exposed.
    """

    client: int
    row: Mapping[str, Tensor]
    place: int
    caption: str
    exposed: bool

    def picture(self, name: str) -> Tensor | None:
        """One picture ``(C, H, W)``; None where the floor of this name came to no reconstruction."""
        return self.row[name][self.place] if name in self.row else None


def names_of(shown: Sequence[Shown]) -> list[str]:
    """Names of the pictures that at least one of them has, in the order in which they are shown."""
    return [name for name in NAMES if any(name in one.row for one in shown)]


def chosen(result: Result, rows: Sequence[Mapping[str, Tensor]], most_exposed: int = EXPOSED_ROWS) -> list[Shown]:
    """The pictures that are shown: the exposed ones first, the worst of them first of all, then some of the others.

    The others go by their ranks, and by PSNR where these are the same.

    Args:
        result: Of the audit.
        rows: Named pictures of each finished client; none where a report is to be without pictures.
        most_exposed: How many exposed ones are shown at most.
    """
    if not rows:
        return []
    found = result.exposure.found if result.exposure else ()
    by_level = {(one.client, one.picture): one.level for one in found}
    every = {
        (client.client, place): Shown(
            client.client,
            row,
            place,
            _caption(client, place, by_level.get((client.client, place), "")),
            (client.client, place) in by_level,
        )
        for client, row in zip(result.finished, rows, strict=True)
        for place in range(len(row["original"]))
    }
    quality = {client.client: client.scores["psnr"] for client in result.finished}
    ranks = {client.client: client.ranks for client in result.finished}
    others = sorted(
        (one for one in every.values() if not one.exposed), key=lambda o: -_psnr(quality[o.client][o.place])
    )
    if len(others) > PICTURE_ROWS:
        others = [others[i] for i in np.linspace(0, len(others) - 1, PICTURE_ROWS).round().astype(int)]
    others.sort(key=lambda one: ranks[one.client][one.place])
    return [every[at] for at in by_level][:most_exposed] + others


def told_chosen(result: Result, shown: Sequence[Shown], pictures: int) -> str:
    """Which pictures are shown, in sentences; empty where nothing is exposed and all are shown."""
    exposed_ones = len(result.exposure.found) if result.exposure else 0
    told = []
    if exposed_ones:
        first = sum(one.exposed for one in shown)
        left = f"; {exposed_ones - first} more are exposed" if exposed_ones > first else ""
        told += [f"Exposed pictures come first, the worst at the top{left}."]
    others, shown_others = pictures - exposed_ones, sum(not one.exposed for one in shown)
    if others > shown_others:
        told += [
            f"Of the {others} {'others' if exposed_ones else 'pictures'}, {shown_others} are shown, taken evenly from "
            "the best to the worst by PSNR, the median among them."
        ]
    return " ".join(told)


def _psnr(value: float | None) -> float:
    """A PSNR; None stands for one that is infinite."""
    return math.inf if value is None else value


def _caption(client: FinishedClient, place: int, level: str) -> str:
    psnr, ssim = client.scores["psnr"][place], client.scores["ssim"][place]
    told = [f"exposed ({level})"] if level else []
    told += [f"rank {client.ranks[place]:g} of {client.galleries[place]}"]
    if client.pose_ranks and client.pose_ranks[place] < client.ranks[place]:
        told += [f"{client.pose_ranks[place]:g} in any pose"]
    told += [f"{psnr:.1f} dB"] if psnr is not None else []
    told += [f"SSIM {ssim:.2f}"] if ssim is not None else []
    return ", ".join(told)


def uris(pictures: Sequence[Tensor | None]) -> list[str]:
    """Pictures ``(C, H, W)`` in [0, 1] as addresses of images; empty for none.

    Many large ones are stored with slight loss (WebP, quality 85), and very many are made smaller, so that a page on
    hundreds of clients stays small.
    """
    side = SHOWN_SIDE
    there = [picture for picture in pictures if picture is not None]
    most = sum(min(1, side / max(picture.shape[1:])) ** 2 * picture[0].numel() for picture in there)
    if most > PIXELS:
        side = max(SMALL_SIDE, math.isqrt(PIXELS // len(there)))
    return ["" if picture is None else uri(drawn(picture, side), lossless=most <= LOSSLESS) for picture in pictures]


def sheet(rows: Sequence[Sequence[Tensor | None]], side: int, lossless: bool) -> bytes:
    """A table of equally large pictures as one WebP image, so that all of them are decoded at once, and only on demand.

    Args:
        rows: Pictures ``(C, H, W)`` in [0, 1], the first of each there; the place of None stays empty.
        side: Larger ones are made smaller.
        lossless: Otherwise quality 85.
    """
    tiles = [[None if picture is None else drawn(picture, side) for picture in row] for row in rows]
    width, height = next(tile.size for tile in tiles[0] if tile)
    whole = Image.new("RGB", (width * len(tiles[0]), height * len(tiles)))
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            if tile:
                whole.paste(tile, (j * width, i * height))
    buffer = io.BytesIO()
    whole.save(buffer, "WEBP", lossless=lossless, quality=60 if lossless else 85, method=2)
    return buffer.getvalue()
