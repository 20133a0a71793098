"""The figure of ceilings: what noise allows anybody, and what was measured beneath it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from leakmap.ceiling.releases import Releases
from leakmap.report.charts import BLUE, GREY, INK, ORANGE, STYLE, inline, label_decades
from leakmap.result.evidence import LineUpResult
from leakmap.result.part import Rate
from leakmap.result.result import Result

GREEN = "#2f7d5b"
COLOURS, MARKS = (BLUE, ORANGE, INK, GREEN), "os^D"
NOISES, SAMPLED_NOISES = 121, 25
"""Points of a curve; where rounds are sampled, each takes a fraction of a second."""


@dataclass(frozen=True)
class Measured:
    """A share of first ranks that was measured.

    Args:
        noise: Noise multiplier of the client.
        rate: The share with its interval.
        label: By whom; points of one label have one colour.
    """

    noise: float
    rate: Rate
    label: str


def measured(result: Result) -> list[Measured]:
    """The points of an audit; none without a ceiling."""
    found, own = result.ceiling, result.line_up.attack
    if found is None or found.share is None or found.noise is None:
        return []
    labelled: list[tuple[str, LineUpResult | None]] = [("attack", own), ("shown the candidates", found.informed)]
    return [Measured(found.noise, one.rank_one, label) for label, one in labelled if one is not None]


def of_result(result: Result) -> str:
    """The ceiling of an audit's line-ups against noise, with its points, as SVG text; empty without a ceiling."""
    points, found = measured(result), result.ceiling
    if not points or found is None or found.releases is None or result.line_up.attack is None:
        return ""
    # Line-ups differ in size; the curve is that of the size whose chance is their mean.
    gallery = max(2, round(1 / result.line_up.attack.chance))
    drawn = figure([gallery], Releases(points[0].noise, found.releases), points)
    return inline(drawn, "Ceiling of the share of first ranks against noise, with what was measured")


def figure(galleries: Sequence[int], releases: Releases, points: Sequence[Measured] = ()) -> Figure:
    """Ceilings against the noise multiplier, one curve for each size of line-up.

    Args:
        galleries: Sizes of line-ups.
        releases: Rounds and sampling of the curves; their noise is where the axis is centred.
        points: What was measured.
    """
    centre = [one.noise for one in points] or [releases.noise]
    noises = np.geomspace(min(centre) / 10, max(centre) * 10, NOISES if releases.sample_rate == 1 else SAMPLED_NOISES)
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(6.4, 2.9), layout="constrained")
        axes = drawn.subplots()
        for gallery, style in zip(galleries, ("-", "--", ":", "-."), strict=False):
            ceilings = [replace(releases, noise=float(noise)).success(gallery) for noise in noises]
            axes.plot(noises, ceilings, style, color=INK, linewidth=1.5, label=f"ceiling, {gallery} candidates")
            axes.axhline(1 / gallery, color=GREY, linestyle=style, linewidth=0.8)
        labels = list(dict.fromkeys(one.label for one in points))
        for place, label in enumerate(labels):
            own = [one for one in points if one.label == label]
            # Side by side, or intervals at the same noise would cover each other.
            xs = [one.noise * 1.08 ** (place - (len(labels) - 1) / 2) for one in own]
            below = [one.rate.value - one.rate.low for one in own]
            above = [one.rate.high - one.rate.value for one in own]
            axes.errorbar(
                xs,
                [one.rate.value for one in own],
                yerr=[below, above],
                fmt=MARKS[place % len(MARKS)],
                color=COLOURS[place % len(COLOURS)],
                markersize=4,
                linewidth=1.2,
                capsize=2,
                label=f"measured, {label}",
            )
        axes.set_xscale("log")
        label_decades(axes.xaxis)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("noise multiplier: standard deviation of the noise over the largest norm of what it hides")
        axes.set_ylabel("share of first ranks")
        drawn.legend(frameon=False, loc="outside upper left", ncols=2, fontsize=8)
    return drawn
