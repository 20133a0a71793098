"""The page of a watched folder: every capture, and leakage against the round."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from leakmap.report.charts import BLUE, GREY, ORANGE, STYLE, inline, save
from leakmap.report.page import write_page
from leakmap.result.watched import RISKS, Watched
from leakmap.scoring.statistics import clopper_pearson

PANELS: tuple[tuple[Callable[[Watched], float | None], str, float, str], ...] = (
    (lambda row: row.rank_score, "line-up score", 0.5, "chance"),
    (lambda row: row.gain, "PSNR over best floor, dB", 0.0, "floor"),
)
"""What is drawn of a row, its label, and the value at which nothing leaks."""


def write_watch(folder: Path, rows: Sequence[Watched], attack: str) -> Path:
    """Writes ``watch.html`` and, once something is scored, ``leakage.png`` and ``.svg``; returns the path of the page.

    Args:
        folder: Where to write.
        rows: Of :func:`leakmap.doctor.watching.look`.
        attack: With which the captures are attacked.
    """
    scored = [row for row in rows if row.rank_score is not None]
    if scored:
        save(against_round(scored), folder, "leakage")
    return write_page(
        folder / "watch.html",
        "watch.html",
        rows=rows,
        figure=inline(against_round(scored)) if scored else "",
        attack=attack,
        counted=counted(rows),
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
    exposed = sum(level in ("visual", "exact") for level in levels)
    share = clopper_pearson(exposed, len(levels))
    many = f"{len(levels)} captures that were" if len(levels) > 1 else "1 capture that was"
    if not exposed:
        return (
            f"Of {many} scored, none is exposed: this attack exposes at most {share.high:.1%} of such captures "
            "(95 % confidence)."
        )
    return (
        f"Of {many} scored, {exposed} {'are' if exposed > 1 else 'is'} exposed ({share.low:.1%} to {share.high:.1%})."
    )


def against_round(rows: Sequence[Watched]) -> Figure:
    """Line-up score and PSNR over the best floor of every client against the round, with the mean of each round.

    Inconclusive audits are drawn hollow and left out of the means.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        panels = figure.subplots(len(PANELS), 1, sharex=True)
        for axes, (value_of, label, zero, name) in zip(panels, PANELS, strict=True):
            shown = [(row, value) for row in rows if (value := value_of(row)) is not None]
            points = [(row.round, value) for row, value in shown if row.level != "inconclusive"]
            open_ones = [(row.round, value) for row, value in shown if row.level == "inconclusive"]
            rounds = sorted({number for number, _ in points})
            means = [_mean([value for number, value in points if number == one]) for one in rounds]
            axes.axhline(zero, color=GREY, linestyle="--", linewidth=1.2, label=name)
            axes.plot([x for x, _ in points], [y for _, y in points], "o", color=BLUE, markersize=4, label="client")
            if open_ones:
                hollow = {"color": GREY, "markerfacecolor": "none", "markersize": 4, "label": "inconclusive"}
                axes.plot([x for x, _ in open_ones], [y for _, y in open_ones], "o", **hollow)
            axes.plot(rounds, means, color=ORANGE, linewidth=1.8, label="mean of the round")
            axes.set_ylabel(label)
            every = sorted({row.round for row in rows})
            axes.set_xticks(every[:: -(-len(every) // 20)])
            axes.legend(frameon=False, fontsize=8, ncols=3)
        panels[-1].set_xlabel("round")
        return figure


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
