"""The figures of a study."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from leakmap.report.charts import BLUE, GREY, INK, ORANGE, STYLE
from leakmap.report.pooling import TOP, Arrangement, Axis, Cell, Ladder, Tile, level_text, tiles
from leakmap.scoring.effects import AxisLevel, Effect

RAMP = ("#eef1f5", "#f4d9a4", "#e2914a", "#b1402b", "#571233")
"""From chance to :data:`TOP` times chance: lightness falls all along, so that it reads without seeing colours too."""
DEEP = 0.55
"""Where on the ramp the writing changes from dark to light."""
COLOURS = LinearSegmentedColormap.from_list("leakage", RAMP)


def heat_map(cells: Sequence[Cell], arrangement: Arrangement) -> Figure:
    """The share of first ranks over chance in every tile; hatched: inconclusive, outlined: not above its floor."""
    rows, columns, found = tiles(cells, arrangement)
    row_names = _names(rows, arrangement.rows)
    column_names = _names(columns, arrangement.columns)
    lines = max(name.count("\n") + 1 for name in row_names)
    left = 0.3 + 0.068 * _longest(row_names)
    top = 0.2 + 0.14 * max(name.count("\n") + 1 for name in column_names)
    with matplotlib.rc_context(STYLE | {"hatch.linewidth": 0.7}):
        wide = max(2.6, len(columns) * max(0.85, 0.1 + 0.068 * _longest(column_names)))
        high = len(rows) * max(0.46, 0.14 * lines + 0.06)
        size = (left + wide + 0.2, top + high + 0.85)
        figure = Figure(figsize=size)
        axes = figure.add_axes((left / size[0], 0.8 / size[1], wide / size[0], high / size[1]))
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        for (row, column), tile in found.items():
            _draw(axes, tile, columns.index(column), rows.index(row))
        axes.set_xticks([i + 0.5 for i in range(len(columns))], column_names)
        axes.set_yticks([i + 0.5 for i in range(len(rows))], row_names)
        axes.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=8)
        axes.spines[:].set_visible(False)
        _legend(figure, size)
        return figure


def _names(places: Sequence[tuple[int, ...]], axes: Sequence[Axis]) -> list[str]:
    join = "\n" if len(places) > 1 and len(axes) > 1 else ", "
    if not axes:
        return ["all"]
    return [join.join(f"{axis.short} {axis.texts[i]}" for axis, i in zip(axes, place, strict=True)) for place in places]


def _longest(names: Sequence[str]) -> int:
    return max(len(line) for name in names for line in name.split("\n"))


def _draw(axes: Axes, tile: Tile, x: int, y: int) -> None:
    inset = 0.03
    box = (x + inset, y + inset), 1 - 2 * inset, 1 - 2 * inset
    deep = tile.depth > DEEP
    face = COLOURS(tile.depth) if tile.n else "none"
    axes.add_patch(Rectangle(*box, facecolor=face, edgecolor="none"))
    if tile.inconclusive:
        axes.add_patch(Rectangle(*box, facecolor="none", edgecolor="#ffffff88" if deep else "#9aa5b1aa", hatch="////"))
    if tile.n and not tile.above_floor:
        axes.add_patch(Rectangle(*box, facecolor="none", edgecolor=BLUE, linewidth=1.6))
    if tile.first is None:
        axes.text(x + 0.5, y + 0.5, "no result", fontsize=6.5, ha="center", va="center", color=INK)
    else:
        percent = f"{math.floor(100 * tile.first.value + 0.5)}%"
        style: Any = {"ha": "center", "va": "center", "color": "#fdfdfd" if deep else "#1d2731"}
        axes.text(x + 0.5, y + 0.4, percent, fontsize=9, **style)
        axes.text(x + 0.5, y + 0.74, f"{tile.hits} of {tile.n}", fontsize=6.5, **style)


def _legend(figure: Figure, size: tuple[float, float]) -> None:
    bar = figure.add_axes((0.15 / size[0], 0.45 / size[1], 1.7 / size[0], 0.12 / size[1]))
    bar.imshow([[i / 99 for i in range(100)]], aspect="auto", cmap=COLOURS, extent=(0, math.log10(TOP), 0, 1))
    bar.set_yticks([])
    ticks = [1, 3, 10, 30, TOP]
    bar.set_xticks([math.log10(t) for t in ticks], [f"{t}×" for t in ticks])
    bar.tick_params(length=2, labelsize=7)
    bar.spines[:].set_visible(False)
    bar.set_xlabel("first ranks over chance", fontsize=7, labelpad=1)
    figure.legend(
        handles=[
            Patch(facecolor="#eef1f5", edgecolor=GREY, hatch="////", label="inconclusive"),
            Patch(facecolor="#eef1f5", edgecolor=BLUE, linewidth=1.6, label="not above its floor"),
        ],
        loc="lower left",
        bbox_to_anchor=(2.1 / size[0], 0.02 / size[1]) if size[0] > 3.6 else (0, 0),
        frameon=False,
        fontsize=7,
    )


def effects(ranks: Sequence[Effect], gains: Sequence[Effect]) -> Figure | None:
    """Differences between levels with their intervals: in the line-up score and in PSNR over the best floor."""
    keys = list(dict.fromkeys((e.name, e.low, e.high) for e in (*ranks, *gains)))
    if not keys:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.9 + 0.24 * len(keys)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        titles = ("difference in line-up score", "difference in PSNR over the best floor, dB")
        for panel, found, colour, title in zip(panels, (ranks, gains), (BLUE, ORANGE), titles, strict=True):
            panel.axvline(0, color=GREY, linewidth=1)
            for effect in found:
                y = keys.index((effect.name, effect.low, effect.high))
                middle, low, high = effect.difference.value, effect.difference.low, effect.difference.high
                clear = not low <= 0 <= high
                if math.isfinite(low) and math.isfinite(high):
                    panel.plot([low, high], [y, y], color=colour, linewidth=1.6, alpha=1 if clear else 0.55)
                panel.plot([middle], [y], "o", color=colour, markersize=5, markerfacecolor=colour if clear else "white")
            panel.set_xlabel(title, fontsize=8)
            panel.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
            panel.tick_params(axis="y", length=0)
            panel.margins(x=0.12)
        panels[0].set_ylim(len(keys) - 0.4, -0.6)
        panels[0].set_yticks(range(len(keys)), [_compared(*key) for key in keys], fontsize=8)
        return figure


def _compared(name: str, low: AxisLevel, high: AxisLevel) -> str:
    return f"{name}: {level_text(low)} → {level_text(high)}"


def ladder_chart(found: Ladder) -> Figure | None:
    """The share of first ranks on every rung of privileges."""
    if len(found.rungs) < 2:
        return None
    lines = list(dict.fromkeys(line for rung in found.rungs for line in rung.tiles))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(4.2, 1.25 * len(found.rungs) + 1), 3.2), layout="constrained")
        axes = figure.subplots()
        for i, line in enumerate(lines):
            colour = (BLUE, ORANGE)[i % 2]
            at = [(x, rung.tiles[line]) for x, rung in enumerate(found.rungs) if line in rung.tiles]
            at = [(x, tile.first) for x, tile in at if tile.first is not None]
            if not at:
                continue
            edges = [x - 0.5 for x, _ in at] + [at[-1][0] + 0.5]
            shares = [first.value for _, first in at]
            axes.step(edges, [*shares, shares[-1]], where="post", color=colour, linewidth=1.8, label=line)
            shift = 0.09 * (i - (len(lines) - 1) / 2)
            xs = [x + shift for x, _ in at]
            lengths = [[f.value - f.low for _, f in at], [f.high - f.value for _, f in at]]
            axes.errorbar(xs, shares, lengths, fmt="o", color=colour, markersize=4, linewidth=1.2, capsize=2)
        chances = [max(tile.chance for tile in rung.tiles.values()) for rung in found.rungs]
        edges = [i - 0.5 for i in range(len(chances) + 1)]
        axes.step(
            edges, [*chances, chances[-1]], where="post", color=GREY, linestyle="--", linewidth=1.2, label="chance"
        )
        names = [f"{rung.attacker}\n" + "\n".join(rung.granted) for rung in found.rungs]
        axes.set_xticks(range(len(names)), names, fontsize=7.5)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(0, None)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_ylabel("ranked first")
        figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=3)
        return figure
