"""The suite: what it runs, what it leaves out, and how it chooses."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from leakmap import LocalRule, Spec, ThreatModel, attack
from leakmap.attacker.attacks import strongest as module
from leakmap.attacker.attacks.strongest import MEMBERS
from leakmap.attacker.matching.context import SearchContext
from leakmap.attacker.matching.residual import buffer_residual, update_residual
from leakmap.attacker.protocol import CLOSED_FORM, free_to_fit, nothing_to_fit, nothing_to_restore, trying_shows
from leakmap.attacker.reconstruction import Reconstruction
from leakmap.attacker.suite import Strongest
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.errors import BadSetting, LeakmapError, NonFinite, NotApplicable
from leakmap.plan.plan import Plan
from tests.conftest import matching_term, observed, pictures

BATCHNORM = "resnet,blocks=1-1,width=8,dropout=0.3"


def reached(found):
    return {attempt.name: attempt for attempt in found.attempts}


def test_it_runs_what_the_knowledge_allows_and_says_why_not_the_rest(task):
    _, everything = observed(BATCHNORM, task, threat=ThreatModel("known", public=4))
    ran = {name for name, a in reached(attack(everything, "strongest_v1,steps=2")).items() if a.pictures is not None}
    assert ran == {"inverting_gradients", "recovered_statistics", "proxy_statistics", "dropout_inversion"}
    nothing = ThreatModel("known", buffers=False, public=0)
    _, little = observed(BATCHNORM, task, threat=nothing, rule=LocalRule(mode="eval"))
    notes = {name: a.note for name, a in reached(attack(little, "strongest_v1,steps=2")).items()}
    assert notes["inverting_gradients"] == ""
    assert "not granted" in notes["recovered_statistics"]
    assert "public" in notes["proxy_statistics"]
    assert "dropout" in notes["dropout_inversion"]
    assert "convolution" in notes["linear"]
    rule = LocalRule("delta", epochs=2, batch_size=2, shuffle=True)
    _, local = observed("convnet,width=4", task, rule=rule, threat=ThreatModel("known"), count=4)
    assert reached(attack(local, "strongest_v1,steps=2"))["dimitrov"].pictures is not None


def test_a_counter_that_no_client_can_have_stops_only_the_member_that_reads_it(task):
    _, observation = observed("convnet,width=4,norm=batch", task, threat=ThreatModel("known"))
    buffers = {
        name: tensor - 5 if name.endswith("num_batches_tracked") else tensor
        for name, tensor in (observation.buffers or {}).items()
    }
    found = reached(attack(replace(observation, buffers=buffers), "strongest_v1,steps=2"))
    assert found["inverting_gradients"].pictures is not None
    assert "num_batches_tracked" in found["recovered_statistics"].note
    assert not found["recovered_statistics"].failed


def test_every_member_reaches_what_it_reaches_alone_and_the_lowest_term_wins(task):
    _, observation = observed(BATCHNORM, task, threat=ThreatModel("known", public=4))
    found = attack(observation, "strongest_v1,steps=4", seed=3)
    ran = {name: a for name, a in reached(found).items() if a.pictures is not None}
    for name, attempt in ran.items():
        alone = attack(observation, f"{name},steps=4", seed=3)
        assert torch.equal(alone.pictures, attempt.pictures.clamp(0, 1))
    winner = min(ran, key=lambda name: ran[name].term)
    assert found.notes["won"] == winner
    assert found.objective == ran[winner].term
    assert torch.equal(found.pictures, ran[winner].pictures.clamp(0, 1))


def test_nothing_is_run_once_the_update_is_explained(task):
    round, observation = observed("mlp,hidden=32", task, count=1)
    found = attack(observation, "strongest_v1")
    assert found.notes["won"] == "linear"
    assert "already explained" in reached(found)["inverting_gradients"].note
    assert (found.pictures - round.batch.pictures).abs().max() < 1e-5


def test_settings_of_members_are_written_with_a_dot(task):
    _, observation = observed("convnet,width=4", task, threat=ThreatModel("known"))
    found = attack(observation, "strongest_v1,steps=3,inverting_gradients.tv=0.5", seed=1)
    alone = attack(observation, "inverting_gradients,steps=3,tv=0.5", seed=1)
    assert torch.equal(found.pictures, alone.pictures)
    with pytest.raises(BadSetting, match=r"MEMBER\.setting"):
        attack(observation, "strongest_v1,tv=0.5")
    with pytest.raises(BadSetting, match="no setting 'tw'"):
        attack(observation, "strongest_v1,inverting_gradients.tw=0.5")


def test_the_floor_of_the_suite_does_not_depend_on_the_update(task):
    _, own = observed(BATCHNORM, task, threat=ThreatModel(public=0), count=2)
    other = observed(BATCHNORM, task, count=2, seed=5)[1]
    other = replace(own, update=other.update, buffers=other.buffers)
    floor = [attack(o, "prior_only,of=strongest_v1,steps=4", seed=1).pictures for o in (own, other)]
    assert torch.equal(*floor)
    plain = attack(own, "prior_only,of=inverting_gradients,steps=4", seed=1)
    assert torch.equal(floor[0], plain.pictures)
    public = observed(BATCHNORM, task, threat=ThreatModel(public=4))[1].public
    with_public = attack(replace(own, public=public), "prior_only,of=strongest_v1,steps=4", seed=1)
    assert not torch.equal(with_public.pictures, plain.pictures)


def test_dropout_clients_are_judged_with_masks_fitted_to_each_result(task):
    """The truth itself is far from the update without its masks: the expected network would choose the wrong result."""
    round, observation = observed("convnet,dropout=0.3,width=16", task, threat=ThreatModel("known"), count=1)
    context = SearchContext(observation, LocalRule(), round.batch.y, 0)
    truth = task.normalize(round.batch.pictures)
    assert matching_term(context, truth) > 0.05
    assert update_residual(context, truth) < 1e-3
    assert update_residual(context, task.normalize(pictures(1, task, 7))) > 10 * update_residual(context, truth)


@dataclass(frozen=True)
class Failing:
    needs = frozenset({"count"})
    cost = CLOSED_FORM
    why_not = trying_shows
    fits = ""
    fit_cost = free_to_fit
    fit = nothing_to_fit
    restored = nothing_to_restore

    def __call__(self, observation, seed, progress) -> Reconstruction:
        raise NonFinite("it left the finite numbers")


@dataclass(frozen=True)
class Hollow:
    needs = frozenset({"count"})
    cost = CLOSED_FORM
    why_not = trying_shows
    fits = ""
    fit_cost = free_to_fit
    fit = nothing_to_fit
    restored = nothing_to_restore

    def __call__(self, observation, seed, progress) -> Reconstruction:
        shape = (observation.count, *observation.network.task.shape)
        return Reconstruction(torch.full(shape, math.nan), observation.labels, 0.0)


def test_pictures_that_are_not_finite_never_win(task):
    _, observation = observed("convnet,width=4", task, threat=ThreatModel("known"))
    suite = module.strongest_v1(steps=2)
    hollow = Strongest(tuple((n, Hollow() if n == "linear" else m) for n, m in suite.members), "v1")
    found = attack(observation, hollow)
    assert reached(found)["linear"].failed
    assert found.notes["won"] == "inverting_gradients"


def test_a_member_that_fails_is_recorded_and_a_suite_without_a_result_is_an_error(task):
    _, observation = observed("convnet,width=4", task, threat=ThreatModel("known"))
    suite = module.strongest_v1(steps=2)
    broken = Strongest(tuple((n, Failing() if n == "proxy_statistics" else m) for n, m in suite.members), "v1")
    shown = replace(observation, public=observed("convnet,width=4", task, threat=ThreatModel(public=4))[1].public)
    attempt = reached(attack(shown, broken))["proxy_statistics"]
    assert attempt.failed
    assert "NonFinite" in attempt.note
    with pytest.raises(LeakmapError, match="NonFinite: it left the finite numbers") as failure:
        attack(observation, Strongest(tuple((name, Failing()) for name in MEMBERS["strongest_v1"]), "v1"))
    assert not isinstance(failure.value, NotApplicable), "of a floor, that would pass for an answer"


def test_an_audit_with_the_suite_shows_what_each_member_reached(tmp_path):
    plan = Plan(
        "resnet,blocks=1,width=4", "samples", image_size=16, victims=2, attack=Spec("strongest_v1", {"steps": 2})
    )
    found = perform(plan, prepare(plan))
    suite = found.result.suite
    rows = {member.name: member for member in suite.members}
    assert suite.version == "v1"
    assert sum(row.won for row in rows.values()) == 2
    assert rows["recovered_statistics"].ran == rows["proxy_statistics"].ran == 2
    assert rows["linear"].ran == 0
    assert "suite v1" in found.result.verdict.statement
    assert found.result.closed_forms.qualify == ()
    page = found.save(tmp_path).read_text()
    assert "What each attack of the suite reached" in page
    assert "rgap" in page


def test_the_update_residual_covers_the_returned_buffers_too(task):
    for rule in (LocalRule(), LocalRule("delta", epochs=2, lr=0.1)):
        round, observation = observed(
            "resnet,blocks=1-1,width=8", task, rule=rule, threat=ThreatModel("known"), count=4
        )
        context = SearchContext(observation, rule, round.batch.y, 0)
        truth, other = (task.normalize(p) for p in (round.batch.pictures, pictures(4, task, 9)))
        assert buffer_residual(context, truth) < 1e-6
        assert buffer_residual(context, other) > 1e-2
        withheld = replace(context, observation=replace(observation, buffers=None))
        assert buffer_residual(withheld, other) == 0
