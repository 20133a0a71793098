"""``leakmap ceiling``: what the noise of a defence allows anybody, without an attack."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from leakmap.cli.options import AsJson
from leakmap.cli.terminal import Terminal
from leakmap.errors import BadSetting

if TYPE_CHECKING:
    from leakmap.ceiling.table import CeilingTable


def ceiling_(
    noise: Annotated[
        float | None, typer.Option(min=0, help="Standard deviation of the noise in each entry, over --clip.")
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of what the noise hides; 1 by default.")] = None,
    defence: Annotated[
        str | None, typer.Option(help="NAME[,key=value…] of a defence, in place of --noise and --clip.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Releases that hold it, each with fresh noise.")] = 1,
    sample_rate: Annotated[
        float, typer.Option(help="Probability of being part of a release, unseen; below 1 it needs leakmap[dp].")
    ] = 1.0,
    summed: Annotated[int, typer.Option(min=1, help="Updates with such noise of which only the sum is seen.")] = 1,
    gallery: Annotated[list[int] | None, typer.Option(help="Candidates of a line-up; repeatable.")] = None,
    numbers: Annotated[int, typer.Option(min=1, help="Numbers of a picture.")] = 3 * 32 * 32,
    variance: Annotated[float, typer.Option(help="Of each number, of pictures in [0, 1].")] = 1 / 12,
    plot: Annotated[Path | None, typer.Option(help="FILE.svg or FILE.png: ceilings against noise.")] = None,
    result: Annotated[
        list[Path] | None, typer.Option(help="result.json of an audit whose shares are plotted; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what no attacker can exceed, from the noise alone; attacks nothing.

    [bold]Examples[/bold]

      leakmap ceiling --noise 1.0 --clip 1.0 --rounds 50 --sample-rate 0.01 --gallery 100

      leakmap ceiling --defence flower_local_dp,clipping_norm=1,sensitivity=1,epsilon=1,delta=1e-5

      leakmap ceiling --noise 1.0 --gallery 24 --plot ceiling.svg --result runs/mine/result.json
    """
    from leakmap.ceiling.releases import Releases
    from leakmap.ceiling.table import table
    from leakmap.files import finite

    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise BadSetting(f"--plot takes a file that ends in .svg or .png; got {str(plot)!r}.")
    if result and plot is None:
        raise BadSetting("--result adds points to a plot; say where with --plot FILE.svg.")
    noise, clip = _mechanism(noise, clip, defence)
    if plot is not None and not noise:
        raise BadSetting("A plot over noise needs some: give --noise above 0.")
    # Independent noise of several adds up, while a contribution is in one of the updates.
    releases = Releases(noise * math.sqrt(summed), rounds, sample_rate)
    found = table(releases, gallery or [], clip, numbers, variance)
    if plot is not None:
        from leakmap.report import ceiling_chart, charts
        from leakmap.result.result import read_result

        points = [point for path in result or () for point in ceiling_chart.measured(read_result(path))]
        charts.write(ceiling_chart.figure([row.gallery for row in found.rows[:4]], releases, points), plot)
    if as_json:
        typer.echo(json.dumps(finite({**asdict(found), "accountant": found.accountant}), indent=2, allow_nan=False))
        return
    _show(found, Terminal(highlight=False))
    if plot is not None:
        Terminal().print(f"\nPlot: {escape(str(plot))}", soft_wrap=True)


def _mechanism(noise: float | None, clip: float | None, defence: str | None) -> tuple[float, float]:
    """Noise multiplier and clipping norm."""
    if (noise is None) == (defence is None) or (defence is not None and clip is not None):
        raise BadSetting("Give either --noise, with --clip where you want its unit, or --defence NAME,key=value.")
    if defence is None:
        if clip is not None and not (clip > 0 and math.isfinite(clip)):
            raise BadSetting(f"--clip is a positive norm; got {clip}.")
        return noise or 0.0, clip or 1.0
    from leakmap.defences import defence_of

    gaussian = defence_of(defence).gaussian
    if gaussian is None or not gaussian.noise:
        raise BadSetting(
            f"There is no ceiling for {defence}: it adds no noise that is calibrated to what it hides, so nothing "
            "bounds what another attack may find. Measure with leakmap audit."
        )
    return gaussian.noise, gaussian.clip


def _show(found: "CeilingTable", console: Terminal) -> None:
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("candidates", "chance", "ceiling", "times chance"):
        rows.add_column(heading)
    for row in found.rows:
        rows.add_row(str(row.gallery), f"{row.chance:.2%}", f"{row.ceiling:.2%}", f"{row.ceiling / row.chance:.3g}")
    console.print(rows)
    releases = found.releases
    sampled = f", each with probability {releases.sample_rate:g}" if releases.sample_rate < 1 else ""
    psnr = "none" if found.psnr is None else f"{found.psnr:.2f} dB"
    for line in (
        "No attacker names the true candidate more often than this, on average, if all are equally likely before.",
        f"noise: {found.deviation:g} in each entry, {releases.noise:g} times the largest norm {found.clip:g}, in "
        f"{releases.rounds} release{'s' if releases.rounds > 1 else ''}{sampled}",
        "neighbours: what the noise hides is taken for zero (added or removed); for a picture or a client, as the "
        "noise was made for",
        f"accountant: {found.accountant}; epsilon {found.epsilon:.3g} at delta {found.delta:g}",
        f"PSNR of a mean picture error, if pixels were independent with variance {found.variance:.3g}: at most {psnr} "
        f"({found.numbers} numbers); who knows what pictures look like may do better",
    ):
        console.print(line)
