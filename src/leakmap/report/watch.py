"""The page of a watched folder: every capture, and leakage against the round."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leakmap.report.charts import GREY, INK, STYLE, inline, save
from leakmap.report.page import today, write_page
from leakmap.result.watched import EXPOSED, RISKS, Watched, pooled_rounds
from leakmap.scoring.statistics import clopper_pearson, mean_interval
from leakmap.scoring.verdict import LEVELS, Level

PANELS: tuple[tuple[Callable[[Watched], float | None], str, float, str, tuple[float, float] | None], ...] = (
    (lambda row: row.rank_score, "line-up score", 0.5, "chance", (0, 1)),
    (lambda row: row.gain, "PSNR over best floor, dB", 0.0, "floor", None),
)
"""What is drawn of a row, its label, the value at which nothing leaks and its name, and the ends of its axis."""
COLOURS: dict[Level, str] = {
    "inconclusive": "#7b8794",
    "none_found": "#4682c4",
    "statistical": "#b98112",
    "partial": "#d2621c",
    "visual": "#d14545",
    "exact": "#c2386b",
}
"""Of verdicts in a figure: those of the page, brought to where they show on light and on dark paper."""


def write_watch(folder: Path, rows: Sequence[Watched], attack: str) -> Path:
    """Writes ``watch.html`` and, once something is scored, ``leakage.png`` and ``.svg``; returns the path of the page.

    Args:
        folder: Where to write.
        rows: Of :func:`leakmap.doctor.watching.look`.
        attack: With which the captures are attacked.
    """
    scored = [row for row in rows if row.rank_score is not None]
    shown = ""
    if scored:
        figure = against_round(scored)
        save(figure, folder, "leakage")
        shown = inline(figure, "Line-up score and PSNR over the best floor against the round")
    return write_page(
        folder / "watch.html",
        "watch.html",
        title="leakmap watch",
        rows=rows,
        figure=shown,
        attack=attack,
        date=today(),
        pooled=pooled_rounds(rows),
        answer=counted(rows) or f"Of {len(rows)} captures, none is scored yet.",
        worst=max((row.level for row in rows if row.level), key=LEVELS.index, default="inconclusive"),
        levels=[(one, n) for one in LEVELS if (n := sum(row.level == one for row in rows))],
        risks=_risks(rows),
        wrong=[(row, finding) for row in rows for finding in row.findings if finding.level == "wrong"],
    )


def _risks(rows: Sequence[Watched]) -> dict[str, list[str]]:
    """Sentences of the doctor about what leaks whatever the facts are, with the captures of which they are said."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for finding in row.findings:
            if finding.name in RISKS:
                found.setdefault(finding.sentence, []).append(row.name)
    return found


def counted(rows: Sequence[Watched]) -> str:
    """How many captures are exposed, in sentences; inconclusive audits are left out. Empty while nothing is scored."""
    levels = [row.level for row in rows if row.level not in (None, "inconclusive")]
    if not levels:
        return ""
    exposed = sum(level in EXPOSED for level in levels)
    share = clopper_pearson(exposed, len(levels))
    many = f"{len(levels)} captures that were" if len(levels) > 1 else "1 capture that was"
    if not exposed:
        return (
            f"Of {many} scored, none is exposed: this attack exposes at most {share.high:.1%} of such captures "
            "(95 % confidence)."
        )
    return (
        f"Of {many} scored, {exposed} {'are' if exposed > 1 else 'is'} exposed; of all such captures "
        f"{share.low:.1%} to {share.high:.1%} are (95 %)."
    )


def against_round(rows: Sequence[Watched]) -> Figure:
    """Line-up score and PSNR over the best floor of every client against the round, with the mean of each round.

    Means have 95 % intervals over the clients of a round, where there are several. Inconclusive audits are drawn hollow
    and left out of the means.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 5), layout="constrained")
        panels = figure.subplots(len(PANELS), 1, sharex=True)
        for axes, (value_of, label, zero, name, ends) in zip(panels, PANELS, strict=True):
            shown = [(row, value) for row in rows if (value := value_of(row)) is not None]
            axes.axhline(zero, color=GREY, linestyle="--", linewidth=1.2, label=name)
            for level in LEVELS:
                points = [(row.round, value) for row, value in shown if row.level == level]
                if points:
                    face = "none" if level == "inconclusive" else COLOURS[level]
                    style = {"color": COLOURS[level], "markerfacecolor": face, "markersize": 5, "linestyle": "none"}
                    axes.plot(*zip(*points, strict=True), marker="o", label=level.replace("_", " "), **style)
            _means(axes, [(row.round, value) for row, value in shown if row.level != "inconclusive"], ends)
            axes.set_ylabel(label)
            if ends:
                axes.set_ylim(ends[0] - 0.03, ends[1] + 0.03)
            every = sorted({row.round for row in rows})
            axes.set_xticks(every[:: -(-len(every) // 20)])
            axes.margins(x=0.06)
        panels[-1].set_xlabel("round")
        # Above both panels: a legend inside would cover points.
        handles = {
            label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, frameon=False, fontsize=8, ncols=4, loc="outside upper left")
        return figure


def _means(axes: Axes, points: Sequence[tuple[int, float]], ends: tuple[float, float] | None) -> None:
    """The mean of each round as a line, with its interval, cut at the ends of the axis."""
    low, high = ends or (-math.inf, math.inf)
    rounds = sorted({number for number, _ in points})
    found = [mean_interval([value for number, value in points if number == one]) for one in rounds]
    if not found:
        return
    below, above = (
        [one.value - max(low, one.low) if math.isfinite(one.low) else 0.0 for one in found],
        [min(high, one.high) - one.value if math.isfinite(one.high) else 0.0 for one in found],
    )
    label = "mean of the round [95 %]"
    axes.errorbar(
        rounds, [one.value for one in found], [below, above], color=INK, linewidth=1.4, capsize=2, label=label
    )
