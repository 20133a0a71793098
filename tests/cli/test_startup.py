"""What answers at once: the version, help of every command, and a shell that completes a word."""

import os
import subprocess
import sys

import pytest

from leakmap.cli.main import JOURNEY, command

PROGRAM = """
import contextlib, io, sys
import leakmap
assert not {"pydantic", "typer", "leakmap.errors"} & set(sys.modules), "import leakmap"
from typer.main import get_command
from leakmap.cli.main import app
def ask(command, words):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        app([*words, "--help"], standalone_mode=False)
    assert f"Usage: leakmap {' '.join(words)}".strip() in " ".join(shown.getvalue().split()), words
    found = {module.partition(".")[0] for module in sys.modules}
    heavy = found & {"torch", "numpy", "scipy", "matplotlib", "skimage", "timm", "torchvision", "optuna", "jinja2"}
    assert not heavy, f"leakmap {' '.join(words)} --help imports {sorted(heavy)}"
    for name, inner in getattr(command, "commands", {}).items():
        ask(inner, [*words, name])
    return 1
sys.argv = ["leakmap"]
with contextlib.suppress(SystemExit):
    app(["--version"])
ask(get_command(app), [])
"""


def test_version_and_help_of_every_command_import_nothing_that_computes():
    ran = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("leakmap ")


def test_the_help_lists_the_commands_in_the_order_of_a_journey(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["leakmap", "--help"])
    with pytest.raises(SystemExit):
        sys.exit(command())
    shown = capsys.readouterr().out
    headings = [name for panel, commands in JOURNEY for name in (f"─ {panel} ─", *(f"│ {one} " for one in commands))]
    places = [shown.find(name) for name in headings]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["audit", "--modl", "x"], "No such option '--modl'. Did you mean --model? Try 'leakmap audit --help'."),
        (["adit"], "No such command 'adit'. Did you mean audit? Try 'leakmap --help'."),
        (["study", "run", "--out"], "Option '--out' requires an argument. Try 'leakmap study run --help'."),
        (["study", "rum"], "No such command 'rum'. Did you mean run? Try 'leakmap study --help'."),
        (["study", "run"], "Missing argument 'STUDY'. Try 'leakmap study run --help'."),
    ],
)
def test_a_mistake_names_the_command_it_was_made_in_and_one_suggestion(words, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["leakmap", *words])
    with pytest.raises(SystemExit) as stop:
        sys.exit(command())
    assert (stop.value.code, capsys.readouterr().err) == (3, f"Error: {expected}\n")


@pytest.mark.parametrize(
    ("asked", "typed", "answer"),
    [
        ({"_LEAKMAP_COMPLETE": "complete_bash", "COMP_WORDS": "leakmap au", "COMP_CWORD": "1"}, [], "audit"),
        ({"_LEAKMAP_COMPLETE": "complete_bash", "COMP_WORDS": "leakmap audit --mod", "COMP_CWORD": "2"}, [], "--model"),
        ({}, ["--show-completion", "bash"], "_LEAKMAP_COMPLETE=complete_bash"),
    ],
    ids=["a command", "an option", "the script"],
)
def test_a_shell_is_answered_and_told_that_all_is_well(asked, typed, answer):
    how = {
        "capture_output": True,
        "text": True,
        "env": os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"} | asked,
    }
    ran = subprocess.run([sys.executable, "-c", "from leakmap.cli.main import main; main()", *typed], **how)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert answer in ran.stdout
