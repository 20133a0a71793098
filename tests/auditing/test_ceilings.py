"""Ceilings of whole audits: beside what is measured, above it where a defence is broken, and none where none holds."""

import re
from dataclasses import replace

import pytest
from benchmarks.ceiling import SMALL, planted

from leakmap import LocalRule, Spec, ThreatModel
from leakmap.auditing.ceilings import NOTHING, ceiling_of
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.auditing.recipe import trials
from leakmap.ceiling.releases import Releases
from leakmap.gate.finding import REACHED, Finding
from leakmap.runs.store import Store


def with_defence(defence, **changes):
    return replace(SMALL, rule=replace(SMALL.rule, defence=defence), **changes)


@pytest.mark.parametrize("name", ["quiet", "unclipped"])
def test_a_defence_that_is_not_what_it_says_is_called_broken_and_fails_every_gate(name):
    with planted():
        plan = with_defence(name)
        found = perform(plan, prepare(plan))
    result = found.result
    assert result.ceiling.informed.hits == 6
    assert not result.ceiling.informed_swapped.above_chance
    assert result.ceiling.broken
    assert result.flags["defence_broken"] == " ".join(result.ceiling.broken)
    assert result.verdict.level in ("statistical", "partial", "visual", "exact")
    gated = Finding("exact", result)
    assert gated.code == REACHED
    assert gated.line.startswith("gate exact: defence broken (")
    if result.verdict.rule == "ceiling":
        assert "does not hide what its noise promises" in result.verdict.statement


def test_a_defence_that_keeps_its_word_stays_below_its_ceiling_and_resumes(tmp_path):
    plan = with_defence("clip_noise,clip=0.1,noise=1.0")
    found, again = (perform(plan, prepare(plan), Store(tmp_path)).result for _ in range(2))
    ceiling = found.ceiling
    assert again.ceiling == ceiling
    assert again.resumed_runs == 4 * 6 + 6
    assert (ceiling.noise, ceiling.releases, ceiling.broken) == (1.0, 1, ())
    assert ceiling.share == pytest.approx(ceiling.informed_share)
    sizes = [size for client in found.finished for size in client.galleries]
    if "mixed_line_up" not in found.flags:
        assert ceiling.share == pytest.approx(sum(map(Releases(1.0).success, sizes)) / len(sizes))
    assert "<= ceiling" in ceiling.statement
    assert "the clipped update of the client is taken for zero" in ceiling.neighbours
    page = (tmp_path / "report.html").read_text()
    assert "What no attacker can exceed" in page
    assert "noise multiplier" in page


def test_the_releases_of_dp_sgd_are_its_epochs_and_several_pictures_have_a_ceiling_each():
    rule = LocalRule("delta", mode="eval", epochs=3, batch_size=1, defence="dp_sgd,clip=0.1,noise=2.0")
    plan = replace(SMALL, rule=rule, victims=2, batch_size=2, attack=Spec("inverting_gradients", {"steps": 2}))
    found = perform(plan, prepare(plan)).result
    assert (found.ceiling.releases, found.ceiling.informed.n, found.line_up.attack.n) == (3, 2, 4)
    assert "the clipped gradient of one picture" in found.ceiling.neighbours


BATCHNORM = {"model": "resnet,blocks=1,width=4", "rule": LocalRule(defence="clip_noise")}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, f"no ceiling: {NOTHING}$"),
        ({"rule": LocalRule(defence="topk")}, f"no ceiling: {NOTHING}; topk adds no noise"),
        ({"rule": LocalRule(defence="clip_noise,noise=0")}, f"no ceiling: {NOTHING}; clip_noise"),
        (BATCHNORM, "no ceiling: the client returns buffers without noise"),
        (
            {**BATCHNORM, "threat": ThreatModel(known_pixels=0.5, public=0)},
            "no ceiling: the server was given true pixels",
        ),
        ({**BATCHNORM, "threat": ThreatModel(buffers=False, public=0)}, "no ceiling: no client has all of its runs"),
    ],
)
def test_where_a_ceiling_does_not_hold_none_is_stated(changes, why):
    plan = replace(SMALL, victims=1, attack=Spec("inverting_gradients"), **changes)
    prepared = prepare(plan)
    found = ceiling_of(plan, prepared.main, trials(plan, *prepared.digests), {}, {}, ())
    assert found.share is None
    assert not found.broken
    assert re.match(why, found.statement), found.statement
