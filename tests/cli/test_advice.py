"""Advice in messages can be followed: every option that one names exists, and whatever is advised names its option."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import leakmap
from leakmap import LocalRule, Observation, ThreatModel, build_network, observe, simulate
from leakmap.capturing.facts import as_toml, facts_of
from leakmap.cli.main import app
from leakmap.errors import BadSetting
from tests.conftest import batch_of

SOURCE = Path(leakmap.__file__).parent
OURS = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])")
ADVISED = {
    r"\b(?:grant|give) (?:the |them|their )?labels": "--labels",
    r"leave (?:the )?buffers out|buffers out of the capture": "--no-buffers",
    r"\bgrant (?:at least|public|\d)": "--public",
    r"\bgrant (?:count|the number)": "--count",
}
"""What a message may advise -> the option that it then names."""


OF_PIP = {"--force-reinstall", "--index-url"}


def messages(path: Path) -> list[str]:
    """The texts of a module but its docstrings, what they interpolate as ``{name}``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    inner = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    inner |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    found = []
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else f"{{{ast.unparse(p.value)}}}" for p in node.values]
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            found.append(node.value)
    return found


def options(command) -> set[str]:
    own = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    return own.union({"--help"}, *(options(one) for one in getattr(command, "commands", {}).values()))


def test_every_option_that_a_message_names_exists_and_whatever_is_advised_names_one():
    known, said, silent = options(typer.main.get_command(app)), {}, []
    for path in SOURCE.rglob("*.py"):
        for text in messages(path):
            said |= dict.fromkeys(OURS.findall(text), path.name)
            silent += [text for pattern, flag in ADVISED.items() if re.search(pattern, text, re.I) and flag not in text]
    assert {"--labels", "--no-buffers", "--public", "--count"} <= said.keys()
    assert {flag: where for flag, where in said.items() if flag not in known | OF_PIP} == {}
    assert silent == []


@pytest.fixture
def folder(tmp_path, task):
    """A user's loss, and what its client sent with returned buffers, without labels."""
    (tmp_path / "own.py").write_text("def loss(outputs, y):\n    return (outputs[:, 0] - y).square().mean()\n")
    network = build_network(task, "convnet,width=4,depth=2,norm=batch", loss=lambda o, y: (o[:, 0] - y).square().mean())
    round = simulate(network, LocalRule(), batch_of(2, task))
    o = observe(round, ThreatModel(public=0))
    facts = as_toml(facts_of(o)).replace('loss = "cross_entropy"', f'loss = "{tmp_path / "own.py"}:loss"')
    (tmp_path / "facts.toml").write_text(facts)
    np.savez(tmp_path / "before.npz", **{name: t.numpy() for name, t in network.weights.items()})
    after = {**network.weights, **round.buffers}
    after |= {name: network.weights[name] - 0.01 * t for name, t in round.update.tensors.items()}
    np.savez(tmp_path / "after.npz", **{name: t.numpy() for name, t in after.items()})
    return tmp_path


def test_labels_of_an_own_loss_are_asked_for_before_any_work_and_can_be_given(folder, task):
    def run(*words: str):
        return CliRunner().invoke(app, [str(word) for word in words])

    own = f"{folder / 'own.py'}:loss"
    made = ["capture", "--before", folder / "before.npz", "--after", folder / "after.npz", "--loss", own]
    made += ["--facts", folder / "facts.toml", "--out", folder / "o.safetensors"]
    assert run(*made).exit_code == 0
    assert Observation.from_file(folder / "o.safetensors").buffers is not None
    search = ["attack", folder / "o.safetensors", "--loss", own, "--out", folder / "a"]
    search += ["--attack", "inverting_gradients", "--steps", 2, "--json"]
    refused = run(*search)
    assert isinstance(refused.exception, BadSetting)
    assert "--labels 3,0" in str(refused.exception)
    assert not (folder / "a").exists()
    assert isinstance(run(*search, "--labels", "0,x").exception, BadSetting)
    found = run(*search, "--labels", "0,1", "--no-buffers")
    assert found.exit_code == 0, found.output
    assert '"labels": [\n    0,\n    1\n  ]' in found.output
    assert '"buffers"' not in found.output
    assert run(*made, "--no-buffers").exit_code == 0
    assert Observation.from_file(folder / "o.safetensors").buffers is None


def test_the_output_that_a_refusal_names_can_be_said_to_every_command_that_takes_a_model(tmp_path, monkeypatch):
    (tmp_path / "pair.py").write_text(
        "from torch import nn\n"
        "class Pair(nn.Sequential):\n    def forward(self, x): return super().forward(x), x\n"
        "def build(): return Pair(nn.Flatten(), nn.Linear(768, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("inspect", "audit", "tune", "facts"):
        assert "--output" in options(typer.main.get_command(app).commands[name])
    told = ["inspect", "pair.py:build", "--classes", "4", "--image-size", "16"]
    assert "--output 0" in str(CliRunner().invoke(app, told).exception)
    assert CliRunner().invoke(app, [*told, "--output", "0"]).exit_code == 0
