"""The figures of a report, as SVG text."""

import io
import math
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import escape
from matplotlib.axis import Axis, XAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from leakmap.files import write_bytes
from leakmap.result.result import Result

INK, GREY, BLUE, ORANGE = "#1f2933", "#9aa5b1", "#1f6feb", "#c2571a"
MOST_POINTS, MOST_CURVES = 200, 48
"""Of more pictures only the line is drawn, of more runs only some: a page on hundreds of clients stays small."""
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "leakmap",
    "text.parse_math": False,  # labels are others' texts, and dollar signs in them are no formulas
}

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def line_up(result: Result) -> str:
    """Ranks of the true pictures: the attack, the same attack on swapped updates, and what chance would give."""
    clients = result.finished
    if not clients or result.line_up.gallery is None:
        return ""
    size = result.line_up.gallery[1]
    galleries = [size for client in clients for size in client.galleries]
    own = [rank for client in clients for rank in client.ranks]
    swapped = [rank for client in clients for rank in client.swapped_ranks]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 2.3), layout="constrained")
        axes = figure.subplots()
        for found, colour, label in (
            (own, BLUE, "this update"),
            (swapped, ORANGE, "swapped update (must be at chance)"),
        ):
            ranks = sorted(found)
            xs = [1, *ranks, size]
            ys = [0.0, *[(i + 1) / len(ranks) for i in range(len(ranks))], 1.0]
            axes.step(xs, ys, where="post", color=colour, linewidth=1.8, label=label)
            if len(ranks) <= MOST_POINTS:
                axes.plot(ranks, [(i + 1) / len(ranks) for i in range(len(ranks))], "o", color=colour, markersize=3.5)
        every = range(1, size + 1)
        chance = [sum(min(1, rank / g) for g in galleries) / len(galleries) for rank in every]
        axes.plot(every, chance, color=GREY, linestyle="--", linewidth=1.2, label="chance")
        axes.set_xscale("log")
        axes.set_xlim(0.93, size * 1.05)
        label_decades(axes.xaxis)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel(f"rank of the true picture among up to {size} candidates (1 = picked out)")
        axes.set_ylabel("share of pictures")
        # Above the axes: a curve of a leak fills the upper left, chance the lower right.
        figure.legend(frameon=False, loc="outside upper left", ncols=3, fontsize=8)
        first = sum(rank == 1 for rank in own)
        return inline(figure, f"Ranks of the true pictures: {first} of {len(own)} are first by the client's update")


def curves(result: Result) -> str:
    """The matching term along each run; of many runs some, evenly spread."""
    found = [client.curve for client in result.finished if client.curve]
    if not found:
        return ""
    found = found[:: -(-len(found) // MOST_CURVES)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 2.1), layout="constrained")
        axes = figure.subplots()
        for curve in found:
            axes.plot(
                [(i + 0.5) / len(curve) for i in range(len(curve))],
                [math.nan if value is None else value for value in curve],
                color=BLUE,
                alpha=0.55,
                linewidth=1,
            )
        axes.set_yscale("log")
        label_decades(axes.yaxis)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the iterations")
        axes.set_ylabel("matching term")
        return inline(figure, "The matching term along each run of the attack")


def label_decades(axis: Axis) -> None:
    """Ticks of a logarithmic axis whose limits stand: numbers, of every decade one or, where decades are few, three.

    The usual labels of powers are formulas, which these figures do not read (:data:`STYLE`).
    """
    low, high = axis.get_view_interval()
    few = math.log10(high / low) < (3 if isinstance(axis, XAxis) else 1.5)
    # Of less than a decade the locator of three falls back to even steps, as a decade then holds none or one.
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.set_major_formatter(lambda value, _: number(value))
    axis.set_minor_formatter(NullFormatter())


def number(value: float) -> str:
    """A positive number as a label: 0.05, 20000, 2·10⁻⁶."""
    if 1e-4 <= value < 1e6:
        return f"{value:.6g}"
    digits, _, power = f"{value:.5e}".partition("e")
    digits = digits.rstrip("0").rstrip(".")
    raised = f"10{str(int(power)).translate(RAISED)}"
    return raised if digits == "1" else f"{digits}·{raised}"


def inline(figure: Figure, title: str = "") -> str:
    """A figure as SVG text for a page: transparent, its ink and paper those of the page, light or dark.

    Args:
        figure: The figure.
        title: What it shows, for those who do not see it.
    """
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_alpha(0)
    text = _svg(figure)
    for colour, name in ((INK, "ink"), ("#ffffff", "paper")):
        text = text.replace(colour, f"var(--{name}, {colour})")
    text = text[text.index("<svg") :]
    if not title:
        return text
    head, _, rest = text.partition(">")
    return f'{head} role="img">\n <title>{escape(title)}</title>{rest}'


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes a figure as ``NAME.svg`` and ``NAME.png``."""
    return [write(figure, folder / f"{name}{suffix}") for suffix in (".svg", ".png")]


def write(figure: Figure, path: Path) -> Path:
    """Writes a figure to a file that ends in ``.svg``, or as PNG (200 dots per inch)."""
    write_bytes(path, _svg(figure).encode() if path.suffix == ".svg" else _png(figure))
    return path


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(STYLE):  # ticks are made while a figure is drawn
        figure.savefig(picture, format="png", dpi=200)
    return picture.getvalue()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()
