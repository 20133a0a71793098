"""The page of what a fitted inverse reads, and its curves."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cases import Entry
from benchmarks.clients import chance_p, told_p
from benchmarks.markdown import measured_with, ranged, table
from leakmap.report.charts import BLUE, GREY, ORANGE, STYLE, label_decades

PAGE = Path("docs/results/learned.md")
PICTURE = Path("docs/images/learned-curves.svg")
CURVES = (("r20-m", "simulated", "simulated clients"), ("r20-p", "public", "public pictures"))
"""Beginning of the cases, what is varied, and in words; the case ``r20`` is on every curve."""
PICTURES = {
    "CIFAR-10": ("resnet", "small"),
    "Chest X-rays": ("xray",),
    "ImageNet at 224 pixels": ("mobilenet", "efficientnet"),
}
"""Heads of the tables -> what the networks of their cases begin with."""


def page(about: str, titles: Mapping[str, str], found: Mapping[str, Entry]) -> str:
    """The page.

    Args:
        about: How the cases are measured.
        titles: Of all cases; today's, so that a row keeps its meaning where those before it are not measured.
        found: Cases that are.
    """
    hours = sum(e["fit_seconds"] for e in found.values()) / 3600
    lines = [
        "# What a fitted inverse reads",
        "",
        f"    python -m benchmarks.learned --data DIR --page     # {hours:.1f} hours of one core, and the searches",
        "",
        *about.strip().split("\n"),
        "",
        "Labels are known. *Relative rank* is 0 for the true picture first and .5 by chance; *p* is how seldom chance",
        "gives as low a mean of it, by Student's t over clients. *Class mean* is the mean public picture of the",
        "victim's class: what can be said without any client. Intervals are 95 %, of shares exact over pictures.",
        "Seconds are CPU seconds of one core, of the whole fit.",
        "",
        measured_with(found.values()),
        "",
    ]
    head = (
        "client",
        "victims",
        "simulated",
        "fit, s",
        "PSNR, dB",
        "class mean",
        "NCC",
        "class mean",
        "first",
        "chance",
        "relative rank",
        "p",
    )
    lines += [
        "![First ranks and NCC by number of simulated clients and of public pictures](../images/learned-curves.svg)",
        "",
        "*A trained ResNet-20 that returns buffers, one picture a client: by the number of simulated clients (all "
        "public pictures) and of public pictures (6,000 simulated clients). The cross: public pictures are shrunk "
        "crops of ImageNet. Bars: 95 %; dashed: chance, and the mean public picture of the class.*",
        "",
    ]
    for pictures, networks in PICTURES.items():
        rows = [
            (
                titles[key],
                f"{entry['clients']} x {entry['case']['count']}",
                f"{entry['simulated']:,}",
                f"{entry['fit_seconds']:.0f}",
                f"{entry['psnr'][0]:.2f}",
                f"{entry['class_mean']['psnr'][0]:.2f}",
                ranged(entry["ncc"], ".2f"),
                f"{entry['class_mean']['ncc'][0]:.2f}",
                ranged(entry["whole"]["first"], ".1%"),
                f"{entry['whole']['chance']:.1%}",
                ranged(entry["whole"]["relative"], ".2f"),
                told_p(chance_p(entry)),
            )
            for key, entry in found.items()
            if entry["case"]["network"].startswith(networks)
        ]
        if rows:
            lines += [f"## {pictures}", "", *table(head, rows)]
    lines += [
        "## What of the pictures leaks",
        "",
        "Share of pictures that are first by one band alone, or by the whole picture without the mean of each channel.",
        "",
    ]
    bands = ("colour", "layout", "detail", "without channel means")
    lines += table(
        ("client", *bands, "chance"),
        [
            (
                titles[key],
                *(ranged(e[band]["first"], ".1%") if band in e else "" for band in bands),
                f"{e['whole']['chance']:.1%}",
            )
            for key, e in found.items()
        ],
    )
    if fine := {key: entry["fine"] for key, entry in found.items() if "fine" in entry}:
        lines += [
            "## Large pictures, compared at 64 pixels",
            "",
            "Pictures of 224 pixels are predicted at 32 pixels unless told otherwise, and above compared there.",
            "",
        ]
        lines += table(
            ("client", "NCC", "PSNR, dB", "first", "first by detail", "relative rank"),
            [
                (
                    titles[key],
                    ranged(one["ncc"], ".3f"),
                    f"{one['psnr'][0]:.2f}",
                    ranged(one["whole"]["first"], ".1%"),
                    ranged(one["detail"]["first"], ".1%"),
                    ranged(one["whole"]["relative"], ".3f"),
                )
                for key, one in fine.items()
            ],
        )
    if missing := [title for key, title in titles.items() if key not in found]:
        lines += [f"Not measured yet: {'; '.join(missing)}.", ""]
    searched = {key: entry for key, entry in found.items() if "search" in entry}
    if searched:
        lines += [
            "## Beside the search",
            "",
            "`inverting_gradients` with its defaults, on the first victims of the same clients.",
            "",
        ]
        lines += table(
            (
                "client",
                "victims",
                "NCC of the search",
                "NCC of the inverse, all victims",
                "first by the search",
                "relative rank of the search",
            ),
            [
                (
                    titles[key],
                    f"{e['search']['clients']} x {e['case']['count']}",
                    ranged(e["search"]["ncc"], ".2f"),
                    ranged(e["ncc"], ".2f"),
                    ranged(e["search"]["whole"]["first"], ".1%"),
                    ranged(e["search"]["whole"]["relative"], ".2f"),
                )
                for key, e in searched.items()
            ],
        )
    return "\n".join(lines)


def curves(found: Mapping[str, Entry]) -> Figure:
    """Share of first ranks and NCC, by how much the inverse was fitted to."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 4.4), layout="constrained")
        rows = figure.subplots(2, 2, sharex="col", sharey="row")
        for column, (start, varied, words) in enumerate(CURVES):
            own = sorted(
                (e for key, e in found.items() if key.startswith(start) or key == "r20"), key=lambda e: e[varied]
            )
            other = [e for key, e in found.items() if key == "r20-strangers"] if varied == "public" else []
            for axes, value, floor in ((rows[0][column], _first, _chance), (rows[1][column], _ncc, _mean_ncc)):
                _line(axes, [(e[varied], *value(e)) for e in own], BLUE, "o-")
                _line(axes, [(e[varied], *value(e)) for e in other], ORANGE, "x")
                axes.plot([e[varied] for e in own], [floor(e) for e in own], color=GREY, linestyle="--", linewidth=1.2)
                axes.set_xscale("log")
                axes.set_ylim(0, 1)
            label_decades(rows[1][column].xaxis)
            rows[1][column].set_xlabel(words)
        rows[0][0].set_ylabel("share of first ranks")
        rows[1][0].set_ylabel("NCC")
    return figure


def _line(axes: Axes, points: list[tuple[float, float, float, float]], colour: str, marks: str) -> None:
    """Values with their intervals."""
    if points:
        xs, ys, lows, highs = zip(*points, strict=True)
        bars = ([y - low for y, low in zip(ys, lows, strict=True)], [h - y for y, h in zip(ys, highs, strict=True)])
        axes.errorbar(xs, ys, bars, fmt=marks, color=colour, linewidth=1.4, markersize=4, capsize=2)


def _first(entry: Entry) -> tuple[float, float, float]:
    return tuple(entry["whole"]["first"])


def _chance(entry: Entry) -> float:
    return entry["whole"]["chance"]


def _ncc(entry: Entry) -> tuple[float, float, float]:
    return tuple(entry["ncc"])


def _mean_ncc(entry: Entry) -> float:
    return entry["class_mean"]["ncc"][0]
