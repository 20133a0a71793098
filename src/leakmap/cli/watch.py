"""``leakmap watch``: a folder of captures, audited as they arrive."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

import leakmap
from leakmap.cli.options import AsJson, Model, OwnLoss
from leakmap.cli.runners import Device, Workers, runner_of
from leakmap.cli.terminal import COLOURS, Terminal, progress_bar
from leakmap.plan.written import plan_of

if TYPE_CHECKING:
    from leakmap.result.watched import Watched


def watch(
    folder: Annotated[
        Path, typer.Argument(help="Folder in which captures arrive, as round-0001/client-0.safetensors.")
    ],
    truth: Annotated[
        Path | None, typer.Option(help="Folder with the clients' pictures: client-0.npz, or a folder client-0.")
    ] = None,
    others: Annotated[str | None, typer.Option(help="Pictures of the same kind that no client held.")] = None,
    how: Annotated[
        str, typer.Option("--attack", help="NAME[,key=value…] or path/to/file.py:function.")
    ] = "inverting_gradients",
    labels: Annotated[
        Literal["unknown", "counts", "known"], typer.Option(help="What the server knows of the labels.")
    ] = "unknown",
    buffers: Annotated[bool, typer.Option(help="Use the BatchNorm buffers that came back.")] = True,
    model: Model = None,
    loss: OwnLoss = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results; the same folder continues.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once, then stop.")] = False,
    alarm: Annotated[
        bool,
        typer.Option("--alarm", help="End with exit code 1 once a picture is exposed or all captures together leak."),
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="JUnit file to write after each look.")] = None,
    bundles: Annotated[
        Path | None, typer.Option(help="Folder for an evidence bundle, without pictures, of each alarm's capture.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 0,
    workers: Workers = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Audit a folder of captures as they arrive, and draw leakage against the round. The same command continues.

    [bold]Example[/bold]

      leakmap watch captures --truth pictures --others folder:PUBLIC --once
    """
    from leakmap.doctor.watching import PAUSE
    from leakmap.evidence.bundle import make_bundle
    from leakmap.gate.rounds import write_rounds_junit
    from leakmap.result.watched import Alarm, Watched, pooled_rounds, watch_json

    told = {"model": model or "", "attack": how, "threat.labels": labels, "threat.buffers": buffers, "seed": seed}
    plan = plan_of(told if loss is None else {**told, "loss": loss})
    results = out or Path("runs") / f"watch-{folder.resolve().name}"
    own = leakmap.Watch(folder, results, plan, truth, others, runner_of(workers, device))
    told_of: set[Alarm] = set()

    def seen(rows: list[Watched]) -> bool:
        if junit is not None:
            write_rounds_junit(rows, junit)
        alarms = pooled_rounds(rows).alarms
        reports = {row.name: row.report for row in rows}
        for one in alarms:
            if one not in told_of:
                told_of.add(one)
                Terminal(stderr=True, highlight=False, markup=False).print(f"alarm: {one.sentence}", soft_wrap=True)
            made = None if bundles is None else bundles / one.capture.replace("/", "-")
            if made is not None and not made.exists() and (report := reports[one.capture]) is not None:
                make_bundle((results / report).parent, made, pictures=False)
        return alarm and bool(alarms)

    with progress_bar() as progress:
        rows = leakmap.look(own, progress, again=None if once else PAUSE, seen=seen)
    if as_json:
        typer.echo(watch_json(rows), nl=False)
    else:
        _tell(rows)
        Terminal().print(f"\nReport: {escape(str(results / 'watch.html'))}", soft_wrap=True)
    raise typer.Exit(1 if alarm and told_of else 0)


def _tell(rows: "Sequence[Watched]") -> None:
    from leakmap.report.page import number
    from leakmap.result.watched import RISKS, pooled_rounds

    console = Terminal()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("capture", "verdict", "line-up score", "over best floor"):
        table.add_column(heading)
    told: dict[str, list[str]] = {}
    for row in rows:
        colour = COLOURS.get(row.level or "", "dim")
        gain = "–" if row.gain is None else f"{row.gain:+.1f} dB"
        table.add_row(escape(row.name), f"[{colour}]{row.level or '–'}[/]", number(row.rank_score), gain)
        for finding in row.findings:
            if finding.level == "wrong" or finding.name in RISKS:
                told.setdefault(f"{finding.name}: {finding.sentence}", []).append(row.name)
        if row.note:
            told.setdefault(row.note, []).append(row.name)
    console.print(table)
    found = pooled_rounds(rows)
    if found.captures:
        console.print(
            f"\nTogether: {found.captures} captures, evidence {found.evidence:.3g} (p {found.p:.2g} however often one "
            "looks; an alarm from 20 on)."
        )
    for text, names in told.items():
        where = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        console.print(Padding(f"[dim]{escape(where)}[/] {escape(text)}", (0, 0, 0, 2)), highlight=False)
