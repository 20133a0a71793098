"""The command line. Each command is one call of a public function; words and exit codes are all that is added."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import click
import typer
from typer.core import TyperGroup

from leakmap.cli.audit import audit, demo, tune
from leakmap.cli.bundle import bundle
from leakmap.cli.captures import attack_, capture_, doctor, facts_
from leakmap.cli.ceiling import ceiling_
from leakmap.cli.compare import compare
from leakmap.cli.data import app as data
from leakmap.cli.entry import app as entry
from leakmap.cli.exits import INTERRUPTED, end, one_line_each
from leakmap.cli.guard import guarded
from leakmap.cli.inspect import inspect_
from leakmap.cli.listing import list_, schema
from leakmap.cli.parsing import Command
from leakmap.cli.study import app as study
from leakmap.cli.study import reproduce
from leakmap.cli.watch import watch
from leakmap.version import __version__

JOURNEY: tuple[tuple[str, dict[str, Callable[..., None] | typer.Typer]], ...] = (
    ("Start here", {"demo": demo, "inspect": inspect_, "list": list_}),
    ("Simulated clients", {"audit": audit, "tune": tune, "compare": compare, "ceiling": ceiling_}),
    ("Real updates", {"facts": facts_, "capture": capture_, "doctor": doctor, "attack": attack_, "watch": watch}),
    ("Many audits", {"study": study, "reproduce": reproduce}),
    ("For the record", {"bundle": bundle, "entry": entry, "data": data}),
    ("For programs", {"schema": schema}),
)
"""The commands, under the headings of ``leakmap --help``, in the order in which one needs them.

Their modules import what computes when they are called, so that help and completion do not wait for it.
"""


class _InOrder(TyperGroup):
    """Lists the commands in the order of the journey; typer has groups such as ``study`` first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for _, commands in JOURNEY for name in commands]

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except SystemExit as done:  # --show-completion and --install-completion of typer end Python
            raise typer.Exit(int(done.code or 0)) from None


app = typer.Typer(
    name="leakmap",
    cls=_InOrder,
    help="Can the updates that federated clients send be turned back into their pictures?",
    no_args_is_help=True,
    suggest_commands=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for _panel, _commands in JOURNEY:
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, name=_name, rich_help_panel=_panel)
        else:
            app.command(_name, cls=Command, rich_help_panel=_panel)(_command)


COMPLETION = "_LEAKMAP_COMPLETE"
"""The variable by which a shell asks what a word may become."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"leakmap {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Can the updates that federated clients send be turned back into their pictures?"""


def main() -> NoReturn:
    """The entry point: :func:`command` in a process that another one waits for."""
    if COMPLETION in os.environ:
        app(prog_name="leakmap")  # typer answers the shell and ends Python
    one_line_each()
    sys.exit(guarded(command))


def command() -> int:
    """What was typed; every error becomes one sentence and an exit code that no result has.

    Returns:
        The exit code.
    """
    try:
        code = app(prog_name="leakmap", standalone_mode=False) or 0
        sys.stdout.flush()
    except BaseException as error:
        return end(error)
    return end(KeyboardInterrupt()) if code == INTERRUPTED else code
