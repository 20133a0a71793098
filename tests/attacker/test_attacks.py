"""What single attacks can do where the answer is known, and the choices that they make."""

import math
from dataclasses import replace

import pytest
import torch

from leakmap import LocalRule, Plan, Spec, ThreatModel, Update, attack, attacks, build_network, observe, simulate
from leakmap.attacker.matching.context import SearchContext
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.restarts import Run, choose
from leakmap.attacker.protocol import Cost, free_to_fit, nothing_to_fit, nothing_to_restore, trying_shows
from leakmap.errors import BadSetting, NonFinite, NotApplicable
from leakmap.plan.plan import check
from tests.conftest import batch_of, matching_term, observed


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("share", ["gradient", "delta"])
def test_a_linear_layers_input_is_recovered_to_1e_6(mode, share, task):
    for seed in range(5):
        rule = LocalRule(share=share, mode=mode, lr=1.0)
        round, observation = observed("mlp,hidden=32", task, rule=rule, count=1, seed=seed)
        found = attack(observation, "linear")
        assert (found.pictures - round.batch.pictures).abs().max() < 1e-6


def test_the_closed_form_says_why_it_does_not_apply(task):
    _, observation = observed("convnet,width=8", task)
    with pytest.raises(NotApplicable, match="does not begin with one"):
        attack(observation, "linear")


def test_the_iterate_returned_is_the_one_whose_term_was_lowest(task):
    """Not the one after it: evaluating the objective anew gives exactly what was reported."""
    _, observation = observed("convnet,width=8", task, count=1)
    found = attack(
        observation, GradientMatching(steps=30, descent=Descent(1.0, schedule="constant", sign="none")), seed=0
    )
    again = matching_term(SearchContext(observation, LocalRule(), found.y, 0), task.normalize(found.pictures))
    assert again == pytest.approx(found.objective, rel=1e-3, abs=1e-6)
    assert found.objective == min(found.curve)
    assert found.objective < found.curve[-1] or found.curve.index(min(found.curve)) == len(found.curve) - 1


def test_restarts_are_chosen_by_the_matching_term_and_ties_by_total_variation():
    def run(objective, tv):
        return Run(torch.zeros(1), torch.zeros(1), objective, (), tv)

    assert choose([run(0.5, 1.0), run(0.2, 9.0), run(0.3, 0.1)]) == 1
    assert choose([run(0.200, 9.0), run(0.201, 1.0)]) == 1
    assert choose([run(math.nan, 1.0), run(math.nan, 0.5)]) == 0


def test_more_restarts_never_match_worse(task):
    _, observation = observed("convnet,width=8", task, count=1)
    one, three = (attack(observation, f"inverting_gradients,steps=20,restarts={n}", seed=2) for n in (1, 3))
    assert three.objective <= one.objective * 1.01


def test_prior_only_does_not_depend_on_the_update(task):
    first = observed("convnet,width=8", task, count=1)[1]
    doubled = Update("gradient", {name: -2 * t for name, t in first.update.tensors.items()})
    second = replace(first, update=doubled, labels=torch.tensor([0]), label_counts=None)
    spec = "prior_only,of=inverting_gradients,steps=20,tv=0.1"
    assert torch.equal(attack(first, spec, seed=1).pictures, attack(second, spec, seed=1).pictures)


def test_leaving_the_finite_numbers_is_an_error_and_not_a_result(task):
    _, observation = observed("convnet,width=8", task)
    broken = GradientMatching(steps=3, priors=(lambda x: x.sum() * math.nan,))
    with pytest.raises(NonFinite, match="iteration 0"):
        attack(observation, broken)


@pytest.mark.parametrize(("ends", "told"), [(55, {}), (10**6, {"plateau at iteration": "101"})])
def test_a_search_that_leaves_the_finite_numbers_begins_anew_at_its_best_pictures(ends, told, task):
    _, observation = observed("convnet,width=8", task)
    calls = iter(range(10**6))
    lapse = GradientMatching(steps=120, priors=(lambda x: x.sum() * (math.nan if 8 <= next(calls) < ends else 0),))
    found = attack(observation, lapse)
    assert {"back at the best pictures at iteration": "50", **told}.items() <= (found.notes or {}).items()
    assert ("plateau at iteration" in (found.notes or {})) == bool(told)
    assert math.isfinite(found.objective)


def test_a_leaking_network_is_inverted(task):
    """A published behaviour, small: cosine matching recovers a single picture from a shallow wide network."""
    network = build_network(task, "convnet,width=32")
    batch = batch_of(1, task)
    observation = observe(simulate(network, LocalRule(mode="eval"), batch), ThreatModel())
    found = attack(observation, "inverting_gradients,steps=200", seed=0)
    error = (found.pictures - batch.pictures).square().mean()
    assert -10 * float(error.log10()) > 20


def test_a_rule_that_is_not_granted_is_assumed_and_said(task):
    _, observation = observed("convnet,width=8", task, threat=ThreatModel(rule=False))
    found = attack(observation, "inverting_gradients,steps=2")
    assert "train" in found.notes["assumed"]


def test_an_attack_without_a_floor_of_its_own_is_refused(task, monkeypatch):
    class Floorless:
        needs, leaky_model, cost, fits = frozenset({"count"}), "convnet", Cost(), ""
        why_not, fit_cost, fit, restored = trying_shows, free_to_fit, nothing_to_fit, nothing_to_restore

        def __call__(self, observation, seed, tick):
            raise AssertionError("it must not run")

    with pytest.raises(BadSetting, match=r"Floorless has no blind;.* nothing that it finds could be judged"):
        attack(observed("convnet,width=8", task)[1], Floorless())
    monkeypatch.setattr(attacks, "_entries", dict(attacks._entries))
    attacks.add("floorless")(Floorless)
    for spec in ("floorless", "prior_only,of=floorless"):
        with pytest.raises(BadSetting, match="Floorless has no blind"):
            check(Plan("convnet", "samples", attack=Spec.parse(spec)))
