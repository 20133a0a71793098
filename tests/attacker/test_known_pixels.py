"""The controlled start: an attack that begins at granted true pixels, beside floors that begin there too."""

from dataclasses import replace

import pytest
import torch

from leakmap import LocalRule, ThreatModel, attack
from leakmap.attacker.matching.starts import first_guess
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.auditing.recipe import trials
from leakmap.errors import BadSetting, NotGranted
from leakmap.plan.plan import Plan
from leakmap.registry.spec import Spec
from leakmap.runs.run import held_by, seen_by_server
from leakmap.seeds import generator
from tests.conftest import observed

EVAL = LocalRule(mode="eval")


def hinted(task, share: float):
    threat = ThreatModel("known", known_pixels=share)
    return observed("resnet,blocks=1,width=8,preact=true", task, rule=EVAL, threat=threat, count=1)


def test_a_search_that_begins_at_the_truth_stays_there(task):
    round, observation = hinted(task, 0.999)
    found = attack(observation, "inverting_gradients,start=known_pixels,tv=0,lr=1e-5,steps=50", seed=1)
    given = ~observation.known_pixels.isnan()
    error = (found.pictures - round.batch.pictures)[given].square().mean()
    assert -10 * float(error.log10()) > 60
    assert "known_pixels" in found.used


def test_without_matching_and_smoothing_the_start_does_not_move(task):
    observation = hinted(task, 0.5)[1]
    still, longer = (
        attack(observation, f"prior_only,of=inverting_gradients,start=known_pixels,tv=0,steps={steps}", seed=1)
        for steps in (1, 30)
    )
    assert torch.equal(still.pictures, longer.pictures)
    given = ~observation.known_pixels.isnan()
    assert torch.allclose(still.pictures[given], observation.known_pixels[given], atol=1e-6)
    assert not torch.allclose(still.pictures[~given], attack(observation, "prior_only,tv=0,steps=1").pictures[~given])


def test_a_hint_that_no_start_asks_for_changes_nothing(task):
    observation = hinted(task, 0.5)[1]
    for how in ("inverting_gradients,steps=3", "prior_only,of=inverting_gradients,steps=3"):
        plain = attack(replace(observation, known_pixels=None), how, seed=2)
        assert torch.equal(attack(observation, how, seed=2).pictures, plain.pictures)


def test_what_is_not_granted_is_the_noise_of_the_plain_start():
    shape = (2, 3, 4, 4)
    known = torch.full(shape, torch.nan)
    known[..., 0] = 0.25
    start = first_guess("known_pixels", shape, generator(1), known)
    assert (start[..., 0] == 0.25).all()
    assert torch.equal(start[..., 1:], first_guess("normal", shape, generator(1))[..., 1:])


def test_a_start_at_a_hint_that_is_not_granted_is_refused_in_a_sentence(task):
    observation = observed("convnet,width=8", task)[1]
    with pytest.raises(NotGranted, match="--known-pixels"):
        attack(observation, "inverting_gradients,start=known_pixels,steps=1")
    plan = Plan("convnet", "samples", attack=Spec("inverting_gradients", {"start": "known_pixels"}))
    with pytest.raises(BadSetting, match="needs known_pixels"):
        prepare(plan)


PLAN = Plan(
    "convnet,width=8",
    "samples",
    rule=EVAL,
    threat=ThreatModel("known", known_pixels=0.3),
    attack=Spec("inverting_gradients", {"start": "known_pixels", "steps": 2}),
    image_size=16,
    victims=2,
)


def test_an_audit_with_a_hint_gives_the_floors_the_same_pixels_and_is_no_evidence():
    prepared = prepare(PLAN)
    planned = trials(PLAN, *prepared.digests)
    truth = held_by(planned["attack"][1], prepared.main).pictures
    roles = ("attack", "swapped", "prior_only")
    seen = {role: seen_by_server(planned[role][1], prepared.main) for role in roles}
    given = ~seen["attack"].known_pixels.isnan()
    assert torch.equal(seen["attack"].known_pixels[given], truth[given])
    assert all(
        torch.equal(seen[role].known_pixels.nan_to_num(-1), seen["attack"].known_pixels.nan_to_num(-1))
        for role in roles
    )
    own, other = (seen[role].update.tensors for role in ("attack", "swapped"))
    assert any(not torch.equal(own[name], other[name]) for name in own)
    found = perform(PLAN, prepared)
    assert found.level == "inconclusive"
    assert "known_pixels" in found.result.flags
    assert "0.3 of the true pixels" in found.result.verdict.statement
    assert found.result.knowledge.granted.known_pixels == 0.3
    assert found.result.knowledge.attacker_used.endswith("with known pixels")
    assert set(found.result.metrics["psnr"].floors) >= {"prior_only", "swapped"}
