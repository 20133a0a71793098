import re
from pathlib import Path

from leakmap.inspection import advise, read_traits
from leakmap.inspection.claims import CLAIMS
from leakmap.inspection.reference import (
    Effect,
    Entry,
    Measured,
    Reference,
    distance,
    features,
    helps,
    nearest,
    notes,
    raises,
    shipped,
    told,
    words_of,
)
from leakmap.models.network import build_network

AT_CHANCE, READ = (0.5, 0.45, 0.55), (0.1, 0.05, 0.15)


def cell(relative=READ, p=1e-9):
    share = (0.4, 0.3, 0.5)
    bands = {"colour": share, "layout": (0.02, 0.0, 0.05), "detail": share}
    return Measured("eval", "inference mode, 1 picture", "linear", 100, share, 0.012, relative, p, share, 0.2, bands)


def traits_of(model, task):
    return read_traits(build_network(task, model))


def reference(entries=(), effects=()):
    return Reference("python -m benchmarks.atlas", "", "2026-11-29", tuple(entries), tuple(effects))


def test_the_nearest_network_has_the_most_similar_traits(task):
    models = ("convnet,width=8", "resnet,blocks=1,width=8,preact=true", "resnet,blocks=1,width=8", "mlp")
    entries = tuple(Entry(model, features(traits_of(model, task)), (cell(),)) for model in models)
    found = nearest(traits_of("resnet,blocks=1,width=16,preact=true", task), reference(entries), count=2)
    assert [entry.model for entry in found] == ["resnet,blocks=1,width=8,preact=true", "resnet,blocks=1,width=8"]
    assert all(distance(entry.features, entry.features) == 0 for entry in entries)


def test_twice_as_wide_is_one_apart(task):
    narrow, wide = (features(traits_of(f"convnet,width={width}", task)) for width in (8, 16))
    assert distance(narrow, wide) == 1


def test_the_notes_name_what_differs_and_what_was_read(task, monkeypatch):
    entry = Entry("convnet,width=8", features(traits_of("convnet,width=8", task)), (cell(),) * 6)
    monkeypatch.setattr("leakmap.inspection.reference.shipped", lambda: reference([entry]))
    text = " ".join(" ".join(notes(traits_of("convnet,width=16", task))).split())
    assert "convnet,width=8 differs in width" in text
    assert "linear puts 40% [30%, 50%] of the pictures first (chance 1%)" in text
    assert "above chance by colour, detail" in text
    assert "2 more clients" in text


def test_a_client_at_chance_is_told_so():
    assert told(cell(AT_CHANCE, p=0.4)).endswith("nothing above chance by 100 clients")


def test_a_change_is_told_by_its_intervals():
    effect = lambda before, after: Effect("depth", "3-3-3", "inference mode", before, after)  # noqa: E731
    assert effect(READ, AT_CHANCE).change == "less"
    assert effect(AT_CHANCE, READ).change == "more"
    assert effect(READ, (0.2, 0.1, 0.3)).change == "as much"
    assert words_of([effect(READ, AT_CHANCE)]) == "in inference mode, less is read with 3-3-3 (0.10 -> 0.50)"
    assert words_of([effect(READ, READ)]) == "1 comparison shows no difference (3-3-3)"
    assert helps([effect(READ, AT_CHANCE), effect(READ, READ)]) == ["3-3-3"]
    assert not helps([effect(READ, AT_CHANCE), effect(AT_CHANCE, READ)])
    assert raises([effect(AT_CHANCE, READ)])
    assert not raises([effect(AT_CHANCE, READ), effect(READ, AT_CHANCE)])


def test_advice_to_change_needs_a_measurement_that_supports_it(task, monkeypatch):
    traits = traits_of("resnet,blocks=1,width=8", task)

    def change(*effects):
        monkeypatch.setattr("leakmap.inspection.advice.shipped", lambda: reference(effects=effects))
        return next(advice for advice in advise(traits) if advice.trait == "depth").change

    assert change() == ""
    assert change(Effect("depth", "3-3-3", "inference mode", READ, AT_CHANCE)) == "More layers (inference mode)."
    assert change(Effect("depth", "3-3-3", "inference mode", AT_CHANCE, READ)) == ""


def test_claims_are_quoted_as_their_page_has_them():
    page = (Path(__file__).parents[2] / "docs/results/paper.md").read_text()
    outcomes = dict(re.findall(r"^\| (C\d+) \|.*?\| \*\*([a-z ]+)\*\* \|", page, re.MULTILINE))
    assert {number: outcomes[number] for number in CLAIMS} == {n: claim.outcome for n, claim in CLAIMS.items()}


def test_the_shipped_map_holds_networks_with_clients():
    found = shipped()
    assert found is not None
    assert found.entries
    assert all(entry.cells and set(entry.features) == set(found.entries[0].features) for entry in found.entries)
