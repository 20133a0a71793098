"""``leakmap entry``: make, check, board."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from leakmap.cli.exits import WRONG
from leakmap.cli.parsing import Command
from leakmap.cli.terminal import COLOURS, Terminal, progress_bar
from leakmap.errors import BadSetting, plain

app = typer.Typer(
    help="Make an entry that others can cite and check, check one, and print the board of them.",
    no_args_is_help=True,
    suggest_commands=False,
    rich_markup_mode="rich",
)


@app.command(cls=Command)
def make(
    run: Annotated[Path, typer.Argument(help="The folder of an audit that finished.")],
    out: Annotated[Path, typer.Option(help="FILE.json; the reconstructions come beside it as FILE.safetensors.")],
    title: Annotated[str, typer.Option(help="What was audited; by default the architecture.")] = "",
    by: Annotated[str, typer.Option(help="Who you are, as the entry shall say.")] = "",
    claims: Annotated[
        list[str] | None, typer.Option("--claim", metavar="KEY=VALUE", help="What others stated; repeatable.")
    ] = None,
    source: Annotated[str, typer.Option(help="Where they stated it.")] = "",
) -> None:
    """Make an entry of an audit: its figures, and the reconstructions that they come from.

    [bold]Examples[/bold]

      leakmap entry make runs/mine --out entries/convnet-eval.json --by "Ada Example"

      leakmap entry make runs/mine --out mine.json --claim psnr=21.5 --source "Doe et al. 2026, table 2"
    """
    from leakmap.entries.entry import Claimed
    from leakmap.entries.make import make_entry

    if bool(claims) != bool(source):
        raise BadSetting("--claim says what others stated and --source where; give both or none.")
    said = [Claimed(key=key, value=value, source=source) for key, value in map(_claim, claims or ())]
    entry = make_entry(run, out, title=title, by=by, claimed=said)
    console = Terminal(highlight=False)
    console.print(f"[reverse {COLOURS[entry.level]}] {entry.level} [/] {escape(plain(entry.title))}")
    size = entry.reconstructions.bytes / 1000
    console.print(f"Entry: {escape(str(out))} with {size:.0f} kB of reconstructions beside it", soft_wrap=True)
    console.print("Both files hold pictures or what tells of them: publish an entry of public pictures only.")


@app.command(cls=Command)
def check(
    file: Annotated[Path, typer.Argument(help="The entry, with its reconstructions beside it.")],
    data: Annotated[str | None, typer.Option(help="Where its pictures lie here, such as cifar10:DIR.")] = None,
    weights: Annotated[str | None, typer.Option(help="Where its file of weights lies here.")] = None,
    rerun: Annotated[int, typer.Option(min=0, help="Attack so many of its clients again, drawn by lot.")] = 0,
) -> None:
    """Score the reconstructions of an entry again, and say in what it differs.

    Exit codes: 0 all is as it says; 1 something is not; 3 it cannot be read, or its files were changed.
    """
    from leakmap.entries.check import check_entry

    with progress_bar() as progress:
        found = check_entry(file, data=data, weights=weights, rerun=rerun, progress=progress)
    console = Terminal(highlight=False)
    for problem in found.problems[:20]:
        console.print(f"[red]wrong[/] {escape(plain(problem))}")
    if len(found.problems) > 20:
        console.print(f"and {len(found.problems) - 20} more")
    for note in found.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    if not found.problems:
        told = f"All {found.figures} figures and records come from the attached reconstructions."
        console.print(f"[green]right[/] {told}")
        if found.rerun:
            clients = ", ".join(str(client + 1) for client in found.rerun)
            console.print(f"[green]right[/] The attack came to the same pictures again on client {clients}.")
        else:
            console.print("Whether the attack makes these reconstructions, --rerun N shows on N clients.")
    raise typer.Exit(WRONG if found.problems else 0)


@app.command(cls=Command)
def board(
    folder: Annotated[Path, typer.Argument(help="The folder with the entries.")] = Path("entries"),
    out: Annotated[
        Path | None, typer.Option(help="FILE.md to write, with images/board.svg beside it; else it is printed.")
    ] = None,
) -> None:
    """Print or write the board: a page with every entry in the table of its threat model, and a plot of them all."""
    from leakmap.entries.board import board_page, write_board
    from leakmap.entries.entry import read_entries

    if out is None:
        typer.echo(board_page(read_entries(folder), folder.as_posix()), nl=False)
        return
    for path in write_board(folder, out):
        Terminal().print(escape(str(path)), soft_wrap=True)


def _claim(text: str) -> tuple[str, float]:
    key, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return key, float(value)
    except ValueError:
        raise BadSetting(f"A claim is KEY=VALUE with a number, such as psnr=21.5; got {text!r}.") from None
