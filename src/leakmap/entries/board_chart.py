"""The figure of the board: how often each entry's pictures were picked out of a line-up, beside chance."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from leakmap.entries.entry import Board, Entry
from leakmap.evidence.evidence import Quantity
from leakmap.report.charts import GREY, INK, STYLE
from leakmap.report.watch import COLOURS

LONGEST = 48
"""Characters of a title in the figure; the table has all of them."""


def figure(entries: Sequence[Entry], headings: Mapping[Board, str]) -> Figure | None:
    """Shares of first ranks with their intervals, an entry a line, below the heading of its threat model.

    Args:
        entries: What to draw; those without a line-up are left out.
        headings: Of the threat models, in their order.
    """
    found_of = [(entry, entry.figure("line_up_attack")) for entry in entries]
    shares = [(entry, found) for entry, found in found_of if found and found.value is not None]
    lines: list[tuple[str, Entry | None, Quantity | None]] = []
    for board, heading in headings.items():
        members = [(entry.title, entry, found) for entry, found in shares if entry.board == board]
        lines += [(heading, None, None), *members] if members else []
    if not lines:
        return None
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(7.2, 0.95 + 0.24 * len(lines)), layout="constrained")
        axes = drawn.subplots()
        for y, (_, entry, found) in enumerate(lines):
            if entry is None or found is None or found.value is None:
                continue
            low, high = (found.value if end is None else end for end in (found.low, found.high))
            axes.errorbar(
                [found.value],
                [y],
                xerr=[[found.value - low], [high - found.value]],
                fmt="o",
                color=COLOURS[entry.level],
                markersize=5,
                linewidth=1.6,
                capsize=2,
                label=entry.level.replace("_", " "),
            )
            if found.reference is not None:
                axes.plot([found.reference], [y], "|", color=INK, markersize=11, label="chance")
        axes.set_yticks(range(len(lines)), [_short(text) for text, _, _ in lines], fontsize=8)
        for tick, (_, entry, _) in zip(axes.get_yticklabels(), lines, strict=True):
            tick.set_fontweight("bold" if entry is None else "normal")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
        axes.set_xlabel("share of pictures that are first in their line-up [95 %]")
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        drawn.legend(once.values(), once, frameon=False, loc="outside upper left", ncols=6, fontsize=8)
        return drawn


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
