from dataclasses import replace

from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.inspection import read_traits
from leakmap.inspection.reference import Entry, Measured, Reference, distance, features, measured, nearest, notes
from leakmap.models.network import build_network
from leakmap.plan.plan import Plan
from leakmap.registry.spec import Spec
from leakmap.threat import ThreatModel

CELL = Measured("eval", "1 picture of 16 px", "exact", 8, 8, 0.025, 0.63, 1.0, 12.0)


def traits_of(model, task):
    return read_traits(build_network(task, model))


def test_the_nearest_network_has_the_most_similar_traits(task):
    models = ("convnet,width=8", "resnet,blocks=1,width=8,preact=true", "resnet,blocks=1,width=8", "mlp")
    entries = tuple(Entry(model, features(traits_of(model, task)), (CELL,)) for model in models)
    reference = Reference("leakmap study run map.toml", {}, "2026-11-20", entries)
    found = nearest(traits_of("resnet,blocks=1,width=16,preact=true", task), reference, count=2)
    assert [entry.model for entry in found] == ["resnet,blocks=1,width=8,preact=true", "resnet,blocks=1,width=8"]
    assert all(distance(entry.features, entry.features) == 0 for entry in entries)


def test_twice_as_wide_is_one_apart(task):
    narrow, wide = (features(traits_of(f"convnet,width={width}", task)) for width in (8, 16))
    assert distance(narrow, wide) == 1


def test_the_notes_name_what_differs(task, monkeypatch):
    entry = Entry("convnet,width=8", features(traits_of("convnet,width=8", task)), (CELL,))
    reference = Reference("leakmap study run map.toml", {}, "2026-11-20", (entry,))
    monkeypatch.setattr("leakmap.inspection.reference.shipped", lambda: reference)
    text = "\n".join(notes(traits_of("convnet,width=16", task)))
    assert "convnet,width=8  differs in width" in text
    assert "first in 8 of 8 line-ups (chance 2.5%), exact" in text


def test_an_audit_becomes_a_cell():
    plan = Plan("mlp,hidden=16", "samples", image_size=16, victims=1, attack=Spec("inverting_gradients", {"steps": 1}))
    found = perform(replace(plan, threat=ThreatModel("known")), prepare(plan))
    cell = measured(found.result)
    assert cell.setting == "1 picture of 16 px, labels known, random weights, inverting_gradients,steps=1"
    assert (cell.mode, cell.n) == ("train", 1)
