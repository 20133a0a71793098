"""Audits of clients whose pictures are labelled with something else than one class."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import leakmap
from leakmap import Facts, LocalRule, Plan, RuleFacts, ThreatModel, audit, build_network
from leakmap.auditing.prepare import prepare
from leakmap.cli.main import app
from leakmap.client.data import Pictures, load_pictures
from leakmap.client.targets import labelled, outputs_of
from leakmap.doctor.replay import replay
from leakmap.errors import BadSetting, DataError, ModelError
from leakmap.registry.spec import Spec

EVAL = LocalRule(mode="eval")
KNOWN = ThreatModel(labels="known")


@pytest.fixture(scope="module")
def images():
    return load_pictures("samples", 16).images[:150]


def flat(outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 24), nn.ReLU(), nn.Linear(24, outputs))


def drawn(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("target", "outputs", "labels", "loss", "told"),
    [
        ("binary", 1, (drawn(150) > 0.5).long(), None, "right in 100%"),
        ("binary", 1, (drawn(150) > 0.5).long(), lambda o, y: F.binary_cross_entropy_with_logits(o[:, 0], y), "100%"),
        ("multilabel", 6, (drawn(150, 6) > 0.5).long(), None, "right in 100%"),
        ("regression", 1, 100 * drawn(150), None, "right in 100%"),
        ("regression", 1, 100 * drawn(150), lambda o, y: ((o[:, 0] - y / 100) ** 2).mean(), "not read"),
    ],
    ids=["binary", "binary, own loss", "multilabel", "regression", "regression, own loss"],
)
def test_data_model_and_loss_tell_the_target_and_its_control_leaks(target, outputs, labels, loss, told, images):
    seen = []

    def noted(outputs, y):
        seen.append(y)
        return loss(outputs, y)

    found = audit(flat(outputs), images, labels, client=EVAL, attack="linear", victims=2, loss=loss and noted).result
    assert found.plan.target == "auto"
    assert found.verdict.level == "exact"
    assert told in found.labels.statement
    assert not {"failed_runs", "control_failed"} & found.flags.keys()
    if target == "regression":
        held = {round(float(c.classes[0]), 1) for c in found.clients}
        assert held <= {round(float(f"{v:.4g}"), 1) for v in labels.tolist()}, "98.7 stays 98.7"
    assert all(y.is_floating_point() for y in seen)
    if target != "binary":  # line-ups need no class where there is none
        assert all(size == 100 for c in found.clients for size in c.galleries) or len(images) < 100 * 1.5


def test_pixels_and_searched_labels_and_refusals_before_any_run(images, tmp_path):
    torch.manual_seed(0)
    masks = (images[:, 0] > 128).long()
    segments = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 1, 1))

    def dice(outputs, y):
        p = outputs[:, 0].sigmoid()
        return 1 - 2 * (p * y).sum() / (p.sum() + y.sum() + 1)

    search = "inverting_gradients,steps=15"
    common = {"client": EVAL, "attack": search, "victims": 2}
    found = audit(segments, images, masks, loss=dice, threat=KNOWN, **common).result
    assert "failed_runs" not in found.flags
    assert found.clients[0].classes == ("0, 1",)
    values = 100 * drawn(150)
    own = lambda o, y: (o[:, 0] - y / 100).abs().mean()  # noqa: E731
    searched = audit(flat(1), images, values, loss=own, **common | {"attack": "dlg,steps=1"}).result
    assert "failed_runs" not in searched.flags
    for model, labels, more, words in (
        (segments, masks, {}, "inverting_gradients,steps=15 cannot attack such clients: .*--labels known"),
        (segments, masks, {"attack": "dlg,steps=1"}, "labels of pixels cannot be searched"),
        (flat(1), values, {"loss": own}, "another derivative at those of '3'; grant the labels"),
        (flat(1), values, {"threat": ThreatModel(labels="counts")}, "no classes to count"),
    ):
        with pytest.raises(BadSetting, match=words):
            audit(model, images, labels, out=tmp_path / "runs", **common | more)
        assert not (tmp_path / "runs" / "plan.json").exists()


def test_what_a_suite_lacks_is_said_before_any_run(tmp_path, monkeypatch):
    """A loss whose derivative no label rule reads: what needs no labels may still answer."""
    (tmp_path / "lacking.py").write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 8))\n"
        "def loss(outputs, y): return nn.functional.multi_margin_loss(outputs, y)\n"
    )
    monkeypatch.chdir(tmp_path)
    attack = Spec.parse("strongest_v1,steps=1")
    plan = Plan("lacking.py:build", loss="lacking.py:loss", image_size=16, victims=1, attack=attack, rule=EVAL)
    told: list[str] = []

    def foretold(expected):
        told.append(expected.without)
        raise KeyboardInterrupt

    for threat in (ThreatModel(), KNOWN):
        with pytest.raises(KeyboardInterrupt):
            leakmap.run_plan(replace(plan, threat=threat), foretold=foretold)
    assert "--labels known" in told[0]
    assert told[1] == ""


def test_classes_given_as_numbers_are_counted_over_all_sets():
    def of(labels, **others):
        values = torch.tensor(labels)
        count = len(values)
        images = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
        return Pictures(images, torch.zeros(count, dtype=torch.int64), ("picture",), values=values, **others)

    for others in ({"spare": of([0.0, 4.0])}, {"elsewhere": of([4.0])}, {"spare": of([1.0]), "elsewhere": of([4.0])}):
        found = labelled(of([0.0, 1.0, 2.0], **others), "class", "these")
        assert outputs_of(found, "class") == 5
        assert {one.classes for one in (found, found.spare, found.elsewhere) if one} == {tuple("01234")}


@pytest.mark.parametrize(
    ("labels", "target", "words"),
    [
        (3 * drawn(150), "class", r"float32; the target class takes \(N,\) classes from 0 on"),
        (torch.full((150,), float("nan")), "auto", "takes finite numbers"),
        (torch.arange(150) % 3, "binary", "labels up to 2; the target binary takes 0 and 1"),
        (torch.zeros(150, 4, 4), "auto", r"the target pixels takes classes from 0 on, \(N, 16, 16\)"),
        (-torch.arange(150), "class", "classes from 0 on"),
    ],
)
def test_labels_that_are_none_of_the_target_are_refused_not_cut(labels, target, words, images):
    with pytest.raises(DataError, match=words):
        audit(flat(1), images, labels, target=target)


NETS = """
import torch
from torch import nn
def build(): return nn.Sequential(nn.Flatten(), nn.Linear(768, 24), nn.Sigmoid(), nn.Linear(24, 1))
def loss(out, y): return nn.functional.binary_cross_entropy_with_logits(out.squeeze(1), y.float())
"""


def test_a_binary_client_is_captured_replayed_attacked_and_audited(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    pictures, labels = images.permute(0, 2, 3, 1).numpy(), np.arange(150) % 2
    np.savez("truth.npz", images=pictures[:2], labels=labels[:2, None])
    np.savez("others.npz", images=pictures[2:], labels=labels[2:, None])
    run, code = CliRunner(), ["--model", "nets.py:build", "--loss", "nets.py:loss"]
    told = run.invoke(app, ["facts", "nets.py:build", "--shape", "3,16,16", "--loss", "nets.py:loss"])
    assert 'target = "binary"' in told.output
    assert "classes = 1 " in told.output
    refused = run.invoke(app, ["facts", "nets.py:build", "--shape", "3,16,16"])
    assert "--target binary or --target regression" in " ".join(str(refused.exception or refused.output).split())
    (tmp_path / "facts.toml").write_text(re.sub(r"# count = ", "count = 2", told.output))
    facts = leakmap.read_facts("facts.toml")
    network = build_network(facts.task, "nets.py:build")
    before = network.module()
    batch = leakmap.Batch(images[:2].float() / 255, torch.tensor([0, 1]))
    sent = leakmap.simulate(network, facts.rule.rule("delta"), batch)
    after = {name: before.state_dict()[name] + change for name, change in sent.update.tensors.items()}
    observation = leakmap.capture(before, after, facts, code=network.code, file="o.safetensors")
    assert replay(observation, batch).exact
    wrong = leakmap.Batch(batch.pictures, torch.tensor([0.2, 0.7]))
    with pytest.raises(DataError, match="expected torch.int64"):
        replay(observation, wrong)
    assert leakmap.attack(observation, "linear").y.sort().values.tolist() == [0, 1]
    words = ["audit", "--observation", "o.safetensors", "--truth", "npz:truth.npz", "--others", "npz:others.npz"]
    done = run.invoke(app, [*words, *code, "--attack", "linear", "--out", "runs", "--workers", "0"])
    assert done.exit_code == 0, done.output
    result = leakmap.read_result("runs/result.json")
    assert (result.plan.target, result.plan.classes) == ("binary", 1)
    assert "failed_runs" not in result.flags
    assert result.labels.right == 1
    with pytest.raises(BadSetting, match="leave out --target"):
        leakmap.audit_captured(Plan("", target="binary"), ["o.safetensors"], ["npz:truth.npz"], "npz:others.npz")
    with pytest.raises(ModelError, match="One output for each picture is --target binary"):
        prepare(Plan("nets.py:build", "npz:others.npz", victims=2, target="class"))
    with pytest.raises(BadSetting, match="one output"):
        _ = Facts(model="m", shape=(3, 16, 16), classes=2, mean=(0,) * 3, std=(1,) * 3, target="binary").task
    assert RuleFacts().rule("delta")
