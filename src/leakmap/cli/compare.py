"""``leakmap compare``: two audits of the same clients side by side."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

import leakmap
from leakmap.cli.options import AsJson
from leakmap.cli.terminal import COLOURS, Terminal
from leakmap.errors import BadSetting

if TYPE_CHECKING:
    from leakmap.result.compare import Comparison

Run = Annotated[Path, typer.Argument(help="Folder of an audit, or its result.json.")]


def compare(
    first: Run,
    second: Run,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table of Markdown to copy.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two audits of the same clients: what one setting changed, and whether chance explains it.

    [bold]Example[/bold]

      leakmap compare runs/without runs/with-noise
    """
    if markdown and as_json:
        raise BadSetting("--markdown and --json are two forms of the same table; give one.")
    found = leakmap.compare(*(leakmap.read_result(_file(run)) for run in (first, second)))
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2, ensure_ascii=False))
    elif markdown:
        typer.echo(found.markdown(str(first), str(second)), nl=False)
    else:
        _tell(found, str(first), str(second))


def _file(run: Path) -> Path:
    return run / "result.json" if run.is_dir() else run


def _tell(found: "Comparison", first: str, second: str) -> None:
    from leakmap.result.compare import cells

    console = Terminal(highlight=False)
    beyond = [row.name for row in found.rows if row.beyond_chance]
    told = f"Beyond chance differ: {', '.join(beyond)}." if beyond else "No difference is beyond chance."
    console.print(f"[bold]{escape(told)}[/]")
    levels = (f"[{COLOURS[level]}]{level}[/]" for level in found.levels)
    console.print(Padding(f"[dim]verdict[/] {' [dim]→[/] '.join(levels)}", (0, 0, 0, 2)))
    for name, (one, other) in {"audit": (first, second), **found.settings}.items():
        console.print(Padding(f"[dim]{escape(name)}[/] {escape(one)} [dim]→[/] {escape(other)}", (0, 0, 0, 2)))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("", "first", "second", "difference [95 %]", "p", "beyond"):
        table.add_column(heading, no_wrap=True)
    for row in found.rows:
        table.add_row(*map(escape, cells(row)), style="bold" if row.beyond_chance else "")
    console.print(table)
    for text in (f"{found.clients} clients, compared one by one.", *found.notes):
        console.print(Padding(escape(text), (0, 0, 0, 2)))
