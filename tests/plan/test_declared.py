"""What is declared once reaches every place that writes or reads it."""

import inspect
import json
import shlex
import tomllib
from copy import copy
from dataclasses import fields, make_dataclass, replace
from types import SimpleNamespace
from typing import Annotated, get_type_hints

import pytest
import torch
import typer
from pydantic import ValidationError

import leakmap
from leakmap import LocalRule, Observation, Spec, ThreatModel, Update, build_network
from leakmap.attacker.attacks import attacks
from leakmap.attacker.protocol import CLOSED_FORM
from leakmap.capturing.facts import as_toml, facts_of, read_facts
from leakmap.capturing.flower import _RULE
from leakmap.cli.main import app
from leakmap.cli.options import options, typed_plan
from leakmap.errors import BadSetting
from leakmap.models.network import IN_MEMORY
from leakmap.plan.command import command
from leakmap.plan.plan import CLIENT, FITTED, SEARCHED, Captured, Plan
from leakmap.plan.written import plan_of, settings, values_of
from leakmap.registry.declared import Declared, built, check, entries, file_model, leaves
from leakmap.study.file import parse_study, tables

USUAL = Plan("mlp", rule=LocalRule("delta", epochs=2), batch_size=8)
OTHER = {
    "model": "convnet,width=8",
    "data": "scenes",
    "rule.share": "gradient",
    "rule.mode": "eval",
    "rule.epochs": 3,
    "rule.batch_size": 5,
    "rule.lr": 1e-07,
    "rule.schedule": "step,size=2,gamma=0.5",
    "rule.momentum": 0.9,
    "rule.nesterov": True,
    "rule.weight_decay": 0.0005,
    "rule.proximal": 0.01,
    "rule.clip_norm": 0.5,
    "rule.optimizer": "adam",
    "rule.dropout": 0.25,
    "rule.accumulate": 2,
    "rule.shuffle": True,
    "rule.drop_last": True,
    "rule.defence": "topk,keep=0.1",
    "threat.labels": "counts",
    "threat.count": False,
    "threat.rule": False,
    "threat.buffers": False,
    "threat.public": 5,
    "threat.known_pixels": 0.3,
    "attack": Spec("inverting_gradients", {"steps": 3, "tv": 0.5}),
    "weights": "my nets/a.pt",
    "train_epochs": 2,
    "calibrate": True,
    "image_size": 16,
    "victims": 3,
    "batch_size": 6,
    "classes": 20,
    "normalization": "imagenet",
    "loss": "cross_entropy,label_smoothing=0.1",
    "target": "binary",
    "output": "logits",
    "seed": 7,
    "null": True,
    "metrics": ("psnr", "lpips,net=alex"),
    "gallery": 50,
}
"""Path of every field that people write -> another value than the usual."""


def changed(path, value):
    usual = {"rule.epochs": 1} if value == "gradient" else {"rule.momentum": 0.9} if path == "rule.nesterov" else {}
    held = {leaf.path: _at(USUAL, leaf.path) for leaf in leaves(Plan)}
    return built(Plan, {**held, **usual, path: value})


def _at(plan, path):
    for name in path.split("."):
        plan = getattr(plan, name)
    return plan


def typed(line):
    """The plan of a command line, and whatever else was typed."""
    words = shlex.split(line)[2:]
    found = dict(typer.main.get_command(app).commands["audit"].make_context("audit", words).params)
    return typed_plan(found), found


def as_study(plan):
    """A study file of one cell."""
    held, values = {"study": {}}, values_of(plan)
    for entry in settings():
        value = values[entry.path]
        if entry.declared.table and value not in (None, entry.default):
            told = str(value) if isinstance(value, Spec) else value
            held.setdefault(entry.declared.table, {})[entry.key] = told
    parts = [[f"[{name}]" if name != "study" else ""] for name in held]
    for part, table in zip(parts, held.values(), strict=True):
        part += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(line for part in parts for line in part)


@pytest.mark.parametrize("path", [leaf.path for leaf in leaves(Plan) if leaf.path not in ("tuned", "captured")])
def test_every_field_survives_the_printed_command_a_study_file_an_observation_and_a_file_of_facts(path, task, tmp_path):
    plan = changed(path, OTHER[path])
    assert plan != USUAL
    assert typed(command(plan))[0] == plan
    (cell,) = parse_study(tomllib.loads(as_study(plan))).cells
    assert cell.plan == plan

    captured = replace(plan, captured=Captured(("a b", "c"), ("npz:a", "npz:c"), "folder:o"))
    again, rest = typed(command(captured))
    assert [str(file) for file in rest["observation"]] == ["a b", "c"]
    assert (list(rest["truth"]), rest["others"]) == (["npz:a", "npz:c"], "folder:o")
    kept = {"threat", "attack", "study"}
    for entry in settings():
        usual = "" if entry.path == "model" else entry.default
        value = values_of(plan)[entry.path] if entry.declared.table in kept else usual
        assert values_of(again)[entry.path] == value or not entry.declared.table

    network = build_network(task, "mlp,hidden=2")
    update = {name: torch.zeros_like(network.weights[name]) for name, _ in network.module().named_parameters()}
    observation = Observation(network, Update(plan.rule.share, update), rule=plan.rule)
    assert Observation.from_bytes(observation.to_bytes()).rule == plan.rule
    (tmp_path / "facts.toml").write_text(as_toml(facts_of(observation)), encoding="ascii")  # from any console
    assert read_facts(tmp_path / "facts.toml").rule.rule(plan.rule.share) == plan.rule


def test_usual_values_are_not_printed():
    assert command(Plan("mlp")) == "leakmap audit --model mlp"
    assert typed(command(replace(USUAL, rule=LocalRule("delta", batch_size=4))))[0].rule.batch_size == 4
    assert "--local-steps 2" in command(replace(USUAL, rule=LocalRule("delta", batch_size=4)))


def test_the_usual_number_of_clients_follows_from_what_the_attack_costs(monkeypatch):
    monkeypatch.setattr(attacks, "_entries", dict(attacks._entries))
    attacks.add("fitted_once")(lambda: SimpleNamespace(fits="a mean picture", cost=CLOSED_FORM))
    study = 'model = "mlp"\nattack = ["linear", "fitted_once"]'
    for plans in (
        [typed(f"leakmap audit --model mlp --attack {name}")[0] for name in ("linear", "fitted_once")],
        [cell.plan for cell in parse_study(tomllib.loads(study)).cells],
    ):
        assert [plan.victims for plan in plans] == [SEARCHED, FITTED] == [36, 200]
        assert not any("--victims" in command(plan) for plan in plans)
        for plan, others in zip(plans, (FITTED, SEARCHED), strict=True):
            line = command(replace(plan, victims=others))
            assert f"--victims {others}" in line
            assert typed(line)[0].victims == others


def test_the_local_steps_and_the_pictures_of_one_are_not_both_given():
    with pytest.raises(BadSetting, match="give one"):
        plan_of({"model": "mlp", "rule.share": "delta", "rule.local_steps": 2, "rule.batch_size": 3, "batch_size": 6})


@pytest.mark.parametrize(
    "path", ["rule.mode", "threat.public", "attack", "classes", "normalization", "target", "output", "null", "seed"]
)
def test_the_printed_call_of_an_audit_in_memory_repeats_it(path):
    plan = replace(changed(path, OTHER[path]), model=IN_MEMORY, data=IN_MEMORY)
    names = {one.__name__: one for one in (LocalRule, ThreatModel)} | dict.fromkeys(("model", "images", "labels"))
    names["leakmap"] = SimpleNamespace(audit=lambda model, images, labels, **given: given)
    exec(f"given = {command(plan)}", names)
    given = names["given"]
    inspect.signature(leakmap.audit).bind(None, None, None, **given)
    outer = path.partition(".")[0]
    told = {"rule": "client"}.get(outer, outer)
    assert Spec.parse(given[told]) == plan.attack if path == "attack" else given[told] == getattr(plan, outer)


def test_a_configuration_tells_the_facts_under_the_names_that_are_declared():
    assert {"lr", "learning_rate", "local_epochs", "batch_size", "weight_decay", "proximal_mu"} <= _RULE.keys()
    told = {"lr", "epochs", "batch_size", "momentum", "nesterov", "weight_decay", "proximal"}
    assert set(_RULE.values()) == told


def with_fields(of, *more, **other):
    """A copy of a dataclass with further fields, and with other annotations of those that it has."""
    hints = get_type_hints(of, include_extras=True) | other
    own = [(one.name, hints[one.name], copy(one)) for one in fields(of)]
    return make_dataclass(f"Wider{of.__name__}", [*own, *more], frozen=True)


def test_one_more_field_of_the_rule_is_one_declaration():
    declared = Declared("Epochs without gain.", least=1, limit=9)
    rule = with_fields(LocalRule, ("patience", Annotated[int, declared], 3))
    plan = with_fields(Plan, rule=Annotated[rule, Declared(panel=CLIENT, table="client")])

    option = options(plan)["rule.patience"]
    (how,) = option.annotation.__metadata__
    assert (option.name, option.default, how.help, how.rich_help_panel) == ("patience", 3, declared.help, CLIENT)
    assert "patience" in tables(plan)["client"]
    assert built(plan, {"model": "mlp", "rule.patience": 5}).rule.patience == 5
    with pytest.raises(BadSetting, match=r"^A rule's patience must be at least 1 and at most 9; got 0\.$"):
        check(rule(patience=0), "A rule's")

    strict, lax = file_model(rule, strict=True), file_model(rule, strict=False)
    whole = {entry.name: entry.default for entry in entries(rule)}
    assert strict.model_validate(whole).model_dump() == whole
    assert lax.model_validate({}).model_dump() == whole
    for wrong in ({"patience": 10}, {"patience": 0}, {"patience": "3"}, {"patience": None}):
        with pytest.raises(ValidationError, match="patience"):
            strict.model_validate(whole | wrong)
    with pytest.raises(ValidationError, match="patience"):
        strict.model_validate({name: value for name, value in whole.items() if name != "patience"})

    with pytest.raises(TypeError, match="patience is not declared"):
        entries(with_fields(LocalRule, ("patience", int, 3)))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LocalRule(share="weights"), "A local rule's share must be 'gradient' or 'delta'; got 'weights'."),
        (lambda: LocalRule(optimizer="x"), "A local rule's optimizer must be 'sgd', 'adam' or 'adamw'; got 'x'."),
        (lambda: LocalRule(lr=float("nan")), "A local rule's lr must be positive; got nan."),
        (lambda: LocalRule(batch_size=0), "A local rule's batch_size must be at least 1, or None for all; got 0."),
        (lambda: LocalRule(dropout=1.0), "A local rule's dropout must be in [0, 1), or None; got 1.0."),
        (lambda: ThreatModel(public=-1), "A threat model's public must be 'auto', or at least 0 pictures; got -1."),
        (
            lambda: ThreatModel(public="all"),
            "A threat model's public must be 'auto', or at least 0 pictures; got 'all'.",
        ),
        (lambda: Plan("mlp", gallery=5), "gallery must be at least 20; got 5."),
    ],
)
def test_a_value_out_of_bounds_is_refused_in_one_sentence(make, sentence):
    with pytest.raises(BadSetting) as error:
        make()
    assert str(error.value) == sentence
