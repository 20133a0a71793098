"""Defaults of an audit from a file beside the code."""

import sys
from pathlib import Path

import pytest
import typer

from leakmap.cli.main import app, command
from leakmap.errors import BadSetting

AUDIT = typer.main.get_command(app).commands["audit"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(*words: str, own: str = "", shared: str = "") -> dict:
    for name, text in (("leakmap.toml", own), ("pyproject.toml", shared)):
        if text:
            Path(name).write_text(text)
    return AUDIT.make_context("audit", list(words)).params


def test_the_command_line_wins_and_the_file_is_named(capsys):
    own = 'model = "mlp"\nvictims = 9\nbatch-size = 2\nmetric = ["lpips"]\nbuffers = false\npublic = 30\n'
    own += 'lr = 1\ngate = "partial"\n'
    found = read("--victims", "12", own=own, shared='[tool.leakmap]\nmodel = "vit"\n')
    told = ("model", "victims", "batch_size", "metric", "buffers", "public", "lr", "gate")
    assert [found[name] for name in told] == ["mlp", 12, 2, ("lpips",), False, 30, 1.0, "partial"]
    assert "Defaults of leakmap.toml: model, victims, batch-size" in capsys.readouterr().err
    Path("leakmap.toml").unlink()
    assert read()["model"] == "vit"
    assert "Defaults of pyproject.toml: model." in capsys.readouterr().err
    assert read("--config", "none")["model"] is None
    Path("other.toml").write_text('model = "resnet"\n')
    assert read("--config", "other.toml")["model"] == "resnet"
    assert read(shared="[tool.other]\nx = 1\n")["model"] is None
    assert read(shared="tool = 3\n")["model"] is None


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ("modell = 'mlp'", "no option 'modell' of audit; did you mean model?"),
        ("json = true", "no option 'json'"),
        ("config = 'x'", "no option 'config'"),
        ("victims = '9'", "victims = '9' is no value of --victims; expected a whole number"),
        ("victims = true", "expected a whole number"),
        ("victims = 9.5", "expected a whole number"),
        ("model = 3", "expected text"),
        ("model = {name = 'mlp'}", "expected text"),
        ("model = 1979-05-27", "expected text"),
        ("null = 'yes'", "expected true or false"),
        ("metric = 'lpips'", "expected a list, each text"),
        ("workers = -1", "workers: -1 is not in the range"),
        ("model = ", "cannot be read as TOML"),
        ("model = 'nets.py:build'", "type --config leakmap.toml"),
        ("attack = 'modern,loss=own.py:f'", "may run code"),
        ("ray = 'ray://elsewhere:10001'", "may run code"),
        ("out = '../elsewhere'", "lies outside this folder"),
        ("junit = '/tmp/x.xml'", "lies outside this folder"),
        ("x" * 2**20 + " = 1", "at most"),
        (".".join(["a"] * 5000) + " = 1", "more than 40 parts"),
    ],
)
def test_a_wrong_file_is_one_sentence(own, words):
    with pytest.raises(BadSetting) as said:
        read(own=own)
    assert words in str(said.value)
    assert str(said.value).startswith("leakmap.toml")


def test_a_file_that_was_typed_may_name_code_and_must_be_there():
    Path("leakmap.toml").write_text("model = 'nets.py:build'\nout = '/tmp/x'\n")
    assert read("--config", "leakmap.toml")["model"] == "nets.py:build"
    for file, words in (("absent.toml", "no file of defaults"), ("pyproject.toml", "no table")):
        Path("pyproject.toml").write_text("[project]\n")
        with pytest.raises(BadSetting, match=words):
            read("--config", file)


def test_defaults_reach_an_audit(monkeypatch, capsys):
    Path("leakmap.toml").write_text(
        "model = 'mlp,hidden=16'\nattack = 'linear'\nimage-size = 16\nvictims = 9\nworkers = 0\nout = 'here'\n"
        "gate = 'partial'\njunit = 'reports/junit.xml'\nsarif = 'reports/leakmap.sarif'\n"
        "markdown = 'reports/leakmap.md'\n"
    )
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(Path("summary.md").resolve()))

    def ended(*words):
        monkeypatch.setattr(sys, "argv", ["leakmap", "audit", *words])
        with pytest.raises(SystemExit) as stop:
            sys.exit(command())
        return stop.value.code, capsys.readouterr().err

    code, err = ended()
    assert code == 1
    assert "gate partial: reached (exact): 9 of 9 clients" in err
    assert {path.name for path in Path("reports").iterdir()} == {"junit.xml", "leakmap.sarif", "leakmap.md"}
    assert Path("summary.md").read_text().endswith(Path("reports/leakmap.md").read_text())
    code, err = ended("--baseline", "here/result.json")
    assert code == 0
    assert "not worse than here/result.json (exact there, exact here)" in err
    assert "another kind" in ended("--baseline", "here/result.json", "--labels", "known")[1]
    code, err = ended("--config", "none", "--model", "mlp", "--junit", "x.xml")
    assert code == 3
    assert "give --gate LEVEL" in err
