"""``leakmap watch``: a folder of captures, audited as they arrive."""

import json
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

    told = {"model": model or "", "attack": how, "threat.labels": labels, "threat.buffers": buffers, "seed": seed}
    plan = plan_of(told if loss is None else {**told, "loss": loss})
    results = out or Path("runs") / f"watch-{folder.resolve().name}"
    own = leakmap.Watch(folder, results, plan, truth, others, runner_of(workers, device))
    with progress_bar() as progress:
        rows = leakmap.look(own, progress, again=None if once else PAUSE)
    if as_json:
        typer.echo(json.dumps([row.model_dump(mode="json") for row in rows], indent=2, ensure_ascii=False))
    else:
        _tell(rows)
        Terminal().print(f"\nReport: {escape(str(results / 'watch.html'))}", soft_wrap=True)


def _tell(rows: "Sequence[Watched]") -> None:
    from leakmap.report.page import number
    from leakmap.result.watched import RISKS

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
    for text, names in told.items():
        where = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        console.print(Padding(f"[dim]{escape(where)}[/] {escape(text)}", (0, 0, 0, 2)), highlight=False)
