"""The command line. Each command is one call of a public function; words and exit codes are all that is added."""

import sys
from typing import Annotated, NoReturn

import typer

from leakmap.cli.audit import audit, demo, tune
from leakmap.cli.captures import attack_, capture_, doctor, facts_
from leakmap.cli.exits import INTERRUPTED, end
from leakmap.cli.inspect import inspect_
from leakmap.cli.listing import list_, schema
from leakmap.cli.study import app as study
from leakmap.cli.study import reproduce
from leakmap.cli.watch import watch
from leakmap.version import __version__

app = typer.Typer(
    name="leakmap",
    help="Can the updates that federated clients send be turned back into their pictures?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(study, name="study")
for _name, _command in (
    ("reproduce", reproduce),
    ("facts", facts_),
    ("capture", capture_),
    ("doctor", doctor),
    ("attack", attack_),
    ("watch", watch),
    ("audit", audit),
    ("tune", tune),
    ("inspect", inspect_),
    ("demo", demo),
    ("list", list_),
    ("schema", schema),
):
    app.command(_name)(_command)


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
    """The entry point: turns every error into one sentence and an exit code that no result has."""
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except BaseException as error:
        code = end(error)
    else:
        code = end(KeyboardInterrupt()) if code == INTERRUPTED else code
    sys.exit(code)
