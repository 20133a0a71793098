"""``leakmap data``: where the pictures of published tables come from."""

from pathlib import Path
from typing import Annotated

import typer

from leakmap.cli.exits import WRONG
from leakmap.cli.parsing import Command
from leakmap.cli.terminal import Terminal
from leakmap.errors import BadSetting

app = typer.Typer(
    help="Obtain and check the pictures that published tables were measured on.",
    no_args_is_help=True,
    suggest_commands=False,
    rich_markup_mode="rich",
)


@app.callback()
def data() -> None:
    """Obtain and check the pictures that published tables were measured on."""


@app.command(cls=Command)
def recipe(
    name: Annotated[str, typer.Argument(help="Of a recipe; without one all are listed.", show_default=False)] = "",
    check: Annotated[Path | None, typer.Option(metavar="DIR", help="Check the files in this folder.")] = None,
    make: Annotated[Path | None, typer.Option(metavar="FILE", help="Make the recipe's file.")] = None,
    origin: Annotated[Path, typer.Option("--from", metavar="DIR", help="Out of what lies here.")] = Path(),
) -> None:
    """Print how to obtain pictures, or check the files. Nothing is downloaded.

    [bold]Examples[/bold]

      leakmap data recipe cifar10

      leakmap data recipe cifar10 --check downloads

    Exit codes: 0 done; with --check 1 a file is missing or another one; 3 wrong input.
    """
    from leakmap.client import recipes

    if not name and (check or make):
        raise BadSetting(f"Name the recipe: {', '.join(recipes.RECIPES)}.")
    if not name:
        for one in recipes.RECIPES.values():
            typer.echo(f"{one.name:24} {one.what}")
        return
    found = recipes.recipe_of(name)
    if make is not None:
        recipes.make(found, origin, make)
        check = make.parent
    if check is None:
        typer.echo(found.what)
        for step in found.steps:
            typer.echo(f"    {step}")
        for file in found.files:
            typer.echo(f"{'sha256' if file.kind == 'array' else file.kind} {file.digest}  {file.name}")
        typer.echo(f"In an audit: --data {found.source}")
        return
    console, bad = Terminal(highlight=False), 0
    for one in recipes.verify(found, check):
        console.print(f"[{'green' if one.state == 'right' else 'red'}]{one.state}[/] {one.name}", soft_wrap=True)
        bad += one.state != "right"
    raise typer.Exit(WRONG if bad else 0)
