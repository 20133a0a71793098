"""The command line. Each command is one call of a public function; words and exit codes are all that is added."""

import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from leakmap.cli.audit import audit, demo, tune
from leakmap.cli.captures import attack_, capture_, doctor, facts_
from leakmap.cli.inspect import inspect_
from leakmap.cli.listing import list_, schema
from leakmap.cli.study import app as study
from leakmap.cli.study import reproduce
from leakmap.cli.watch import watch
from leakmap.errors import LeakmapError
from leakmap.version import __version__

BAD_INPUT, INTERRUPTED = 3, 130

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
    """The entry point: turns every error of ours into one sentence and exit code 3."""
    try:
        code = app(standalone_mode=False)
    except (LeakmapError, OSError) as error:
        _say(f"Error: {error}")
        code = BAD_INPUT
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        show = getattr(error, "format_message", None)
        if show is None:
            raise
        _say(f"Error: {show()} Try 'leakmap audit --help'.")
        code = BAD_INPUT
    if code == INTERRUPTED:
        _say("Interrupted. What is finished is kept; the same command continues.")
    sys.exit(code or 0)


def _say(text: str) -> None:
    Console(stderr=True, highlight=False, markup=False).print(text, soft_wrap=True)
