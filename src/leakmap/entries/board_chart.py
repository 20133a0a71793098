"""The figure of the board: how often each entry's pictures were picked out of a line-up, beside chance."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from leakmap.entries.entry import Board, Entry
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
    groups = [(text, [one for one in entries if one.board == key and _shown(one)]) for key, text in headings.items()]
    lines = [line for text, members in groups if members for line in (text, *members)]
    if not lines:
        return None
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(7.2, 0.95 + 0.24 * len(lines)), layout="constrained")
        axes = drawn.subplots()
        labelled: set[str] = set()
        for y, line in enumerate(lines):
            if isinstance(line, Entry):
                found = line.figure("line_up_attack")
                assert found is not None and found.value is not None
                low, high = (found.value if end is None else end for end in (found.low, found.high))
                name = line.level.replace("_", " ")
                axes.errorbar(
                    [found.value],
                    [y],
                    xerr=[[found.value - low], [high - found.value]],
                    fmt="o",
                    color=COLOURS[line.level],
                    markersize=5,
                    linewidth=1.6,
                    capsize=2,
                    label="" if name in labelled else name,
                )
                labelled.add(name)
                if found.reference is not None:
                    label = "" if "chance" in labelled else "chance"
                    axes.plot([found.reference], [y], "|", color=INK, markersize=11, label=label)
                    labelled.add("chance")
        axes.set_yticks(range(len(lines)), [_label(line) for line in lines], fontsize=8)
        for tick, line in zip(axes.get_yticklabels(), lines, strict=True):
            tick.set_fontweight("normal" if isinstance(line, Entry) else "bold")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
        axes.set_xlabel("share of pictures that are first in their line-up [95 %]")
        drawn.legend(frameon=False, loc="outside upper left", ncols=6, fontsize=8)
        return drawn


def _shown(entry: Entry) -> bool:
    found = entry.figure("line_up_attack")
    return found is not None and found.value is not None


def _label(line: Entry | str) -> str:
    text = line.title if isinstance(line, Entry) else line
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
