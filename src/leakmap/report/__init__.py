"""The report: one self-contained HTML file, from results and pictures alone."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image
from torch import Tensor

from leakmap.report import charts

PICTURE_ROWS = 16
"""Clients whose pictures are shown, evenly spread; all of them stay in the table."""
SHOWN_SIDE = 224
FLOOR_NAMES = {
    "prior_only": "prior only",
    "swapped": "swapped update",
    "mean_picture": "mean picture",
    "nearest_public": "nearest public picture",
}


@dataclass(frozen=True)
class Section:
    """One audit in a report.

    Args:
        result: The content of result.json.
        rows: Named pictures of each finished client.
        title: Heading; by default the model and the mode.
    """

    result: Mapping[str, Any]
    rows: Sequence[Mapping[str, Tensor]]
    title: str = ""


def write(path: Path, sections: Sequence[Section], title: str = "leakmap audit", introduction: str = "") -> Path:
    """Writes a report under a temporary name and renames it; returns its path."""
    environment = Environment(
        loader=PackageLoader("leakmap", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, interval=_interval, share=_share)
    html = environment.get_template("template.html").render(
        title=title, introduction=introduction, sections=[_view(section) for section in sections]
    )
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(path)
    return path


def _view(section: Section) -> dict[str, Any]:
    result = section.result
    rule = result["plan"]["rule"]
    mode = "training" if rule["mode"] == "train" else "inference"
    pictures = [
        {
            "client": client,
            "names": list(row),
            "uris": [_uri(row[name][place]) for name in row],
            "caption": caption,
        }
        for client, row, place, caption in _chosen(result, section.rows)
    ]
    return {
        "title": section.title or f"{result['plan']['model']}, {mode} mode",
        "result": result,
        "pictures": pictures,
        "shown_of": sum(len(row["original"]) for row in section.rows),
        "floor_names": FLOOR_NAMES,
        "others": _others(result),
        "line_up_chart": charts.line_up(result),
        "curve_chart": charts.curves(result),
    }


def _others(result: Mapping[str, Any]) -> str:
    low, high = result["line_up"]["gallery"] or (1, 1)
    return str(low - 1) if low == high else f"{low - 1} to {high - 1}"


def _chosen(result: Mapping[str, Any], rows: Sequence[Mapping[str, Tensor]]) -> list[tuple[int, Any, int, str]]:
    finished = [client for client in result["clients"] if "scores" in client]
    everything = [
        (client["client"], row, place, f"rank {client['ranks'][place]:g} of {client['galleries'][place]}, "
         f"{client['scores']['psnr'][place]:.1f} dB, SSIM {client['scores']['ssim'][place]:.2f}")
        for client, row in zip(finished, rows, strict=True)
        for place in range(len(row["original"]))
    ]  # fmt: skip
    if len(everything) <= PICTURE_ROWS:
        return everything
    return [everything[i] for i in np.linspace(0, len(everything) - 1, PICTURE_ROWS).astype(int)]


def _uri(picture: Tensor) -> str:
    pixels = (picture.cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if max(image.size) > SHOWN_SIDE:
        image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def _interval(value: Mapping[str, float | None] | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    low, high = value["low"], value["high"]
    middle = _number(value["value"], digits)
    return (
        f"{middle} [{_number(low, digits)}, {_number(high, digits)}]" if low is not None else f"{middle} (one client)"
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
