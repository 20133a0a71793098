"""Pictures as images, and values as a notebook shows them: small, escaped, without anything from elsewhere."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image
from torch import Tensor

SIDE, MOST = 96, 12
"""Side of a picture in a notebook, in pixels of its page, and how many of them are shown."""


def drawn(picture: Tensor, side: int) -> Image.Image:
    """A picture ``(C, H, W)`` in [0, 1], made smaller where it is larger than ``side``."""
    pixels = (picture.cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if max(image.size) > side:
        image.thumbnail((side, side))
    return image


def uri(image: Image.Image, lossless: bool = True) -> str:
    """An image as an address that holds it: PNG, or with slight loss WebP of quality 85."""
    buffer = io.BytesIO()
    kind, options = ("PNG", {}) if lossless else ("WEBP", {"quality": 85})
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def card(title: str, facts: Mapping[str, object], pictures: Mapping[str, Sequence[Tensor]] | None = None) -> str:
    """A value as HTML for a notebook.

    Args:
        title: What it is.
        facts: Name -> what is said; empty ones are left out.
        pictures: Name -> pictures ``(C, H, W)`` in [0, 1], each name in a row of its own, of at most :data:`MOST`.
    """
    lines = [f"<b>{escape(title)}</b>", "<table>"]
    for name, fact in facts.items():
        if str(fact):
            lines.append(f'<tr><th style="text-align:left">{escape(name)}</th><td>{escape(str(fact))}</td></tr>')
    for name, row in (pictures or {}).items():
        images = "".join(
            f'<img src="{uri(drawn(one, SIDE))}" width="{SIDE}" alt="{escape(name)}" style="margin:1px" /> '
            for one in row[:MOST]
        )
        more = f" and {len(row) - MOST} more" if len(row) > MOST else ""
        lines.append(f'<tr><th style="text-align:left">{escape(name)}</th><td>{images}{more}</td></tr>')
    return "\n".join([*lines, "</table>"])
