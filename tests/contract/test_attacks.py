"""Every registered attack keeps the same contract; adding one needs no line here."""

import functools
import inspect
import math
from dataclasses import replace

import pytest
import torch

from leakmap import LocalRule, Spec, Task, ThreatModel, attack, attacks
from leakmap.attacker.attack import fit
from leakmap.attacker.protocol import Cost, FitCost, checked
from leakmap.errors import NotApplicable, NotGranted
from leakmap.threat import known_before
from tests.conftest import observed

FACTS = ("count", "labels", "label_counts", "buffers", "rule", "public")


def quick(name: str) -> Spec:
    takes = attacks.settings(name)
    has_steps = "steps" in takes or any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(attacks.constructor(name)).parameters.values()
    )
    few = {
        "learned_inverse": {"clients": 20},
        "learned_start": {"clients": 20},
        "last_batch": {"clients": 20},
        "strongest": {"learned_inverse.clients": 20, "last_batch.clients": 20},
    }
    return Spec(name, ({"steps": 3} if has_steps else {}) | few.get(name, {}))


@pytest.fixture(params=attacks.names())
def name(request) -> str:
    return request.param


def everything_granted(name, task, count=2):
    """Of two examples, or of one where the attack reads no more."""
    count = min(count, most_examples(name))
    return observed(attacks.build(quick(name)).leaky_model, task, threat=ThreatModel("known", public=4), count=count)[1]


@functools.cache
def most_examples(name) -> int:
    model, task = attacks.build(quick(name)).leaky_model, Task((3, 16, 16), 4, (0.5,) * 3, (0.25,) * 3)
    try:
        attack(observed(model, task, threat=ThreatModel("known", public=4))[1], quick(name))
    except NotApplicable:
        return 1
    return 2


def test_by_name_fitted_before_and_restored_it_gives_the_same_sound_result(name, task):
    observation, how = everything_granted(name, task), attacks.build(quick(name))
    before = observation.digest()
    setting = known_before(
        observation.network, LocalRule(), observation.count, ThreatModel("known", public=4), observation.public
    )
    first, second = (fit(how, setting, 5, lambda fraction: None) for _ in range(2))
    assert set(first.state) == set(second.state)
    assert all(torch.equal(tensor, second.state[key]) for key, tensor in first.state.items())
    assert bool(first.state) == bool(how.fits)
    ways = (str(quick(name)), first, how.restored(setting, first.state))
    found, *others = (attack(observation, way, seed=5) for way in ways)
    assert found.pictures.shape == (observation.count, *task.shape)
    assert found.y.shape == (observation.count,)
    assert torch.isfinite(found.pictures).all()
    assert 0 <= found.pictures.min() <= found.pictures.max() <= 1
    assert how.needs <= found.used <= set(FACTS)
    assert all(torch.equal(found.pictures, other.pictures) for other in others)
    assert observation.digest() == before
    assert all(torch.equal(tensor, second.state[key]) for key, tensor in first.state.items()), "left as it was fitted"
    assert isinstance(how.fit_cost(setting), FitCost)


def test_it_has_all_that_an_attack_must_have(name, task):
    how = checked(attacks.build(quick(name)))
    assert isinstance(how.cost, Cost)
    assert checked(how.blind()).cost.total == 0
    assert isinstance(how.why_not(everything_granted(name, task)), str)


def test_works_with_everything_outside_its_needs_withheld(name, task):
    needs = attacks.build(quick(name)).needs
    withheld = {fact: None for fact in FACTS if fact not in needs}
    observation = replace(everything_granted(name, task, count=1), **withheld)
    assert attack(observation, quick(name), seed=1).pictures.shape == (1, *task.shape)


def test_raises_not_granted_without_a_need(name, task):
    observation = everything_granted(name, task)
    for need in attacks.build(quick(name)).needs:
        dependent = {"labels": None, "label_counts": None} if need == "count" else {}
        with pytest.raises(NotGranted, match=need):
            attack(replace(observation, **{need: None}, **dependent), quick(name))


def test_its_floor_sees_nothing_of_the_client(name, task):
    """Update, buffers and, where they are not granted, labels of another client change nothing."""
    model = "resnet,blocks=1,width=8,preact=true"
    own, other = (observed(model, task, threat=ThreatModel(public=4), count=2, seed=seed)[1] for seed in (0, 5))
    other = replace(own, update=other.update, buffers=other.buffers)
    floor = Spec("prior_only", {"of": name} | quick(name).params) if name != "prior_only" else quick(name)
    first, second = (attack(observation, floor, seed=1) for observation in (own, other))
    assert torch.equal(first.pictures, second.pictures)


def test_the_docstring_says_when_it_applies_and_names_its_source(name):
    text = attacks.constructor(name).__doc__ or ""
    assert "Applies:" in text
    assert "Source:" in text


def test_every_default_lies_well_inside_the_range_of_its_rehearsal(name):
    """At least an eighth of the range away from either end."""
    for setting, mark in attacks.tunables(name).items():
        default = attacks.settings(name)[setting].default
        if mark.choices:
            assert default in mark.choices
        else:
            low, value, high = (math.log(v) if mark.log else v for v in (mark.low, default, mark.high))
            assert 1 / 8 <= (value - low) / (high - low) <= 7 / 8
