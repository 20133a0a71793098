"""Attacks that are fitted before any client answers: what they read, what they keep, how a suite chooses."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from leakmap import LocalRule, Plan, Spec, ThreatModel, attack, attacks, build_network, observe, simulate
from leakmap.attacker.attack import fit
from leakmap.attacker.attacks.strongest import member_specs
from leakmap.attacker.learned import simulation
from leakmap.attacker.learned.rehearsal import mean_ncc, rehearsals_of
from leakmap.attacker.setting import Setting
from leakmap.auditing.prepare import prepare
from leakmap.client.simulate import Batch
from leakmap.errors import NotApplicable, NotGranted
from leakmap.observation.contents import Public
from leakmap.runs.fitting import fitted, forget_fitted
from leakmap.seeds import derive
from leakmap.threat import known_before
from tests.attacker.test_strongest import Failing

FEW, THREAT = "learned_inverse,clients=240", ThreatModel(public=60)
quiet = lambda fraction: None  # noqa: E731
BATCHNORM = "resnet,blocks=1-1,width=8,preact=false"


@pytest.fixture(scope="module")
def setup():
    """A network with BatchNorm, and tiles of photographs: victims, and others that are public."""
    return prepare(Plan(BATCHNORM, "samples", image_size=16, victims=24, threat=THREAT)).main


def public_of(setup) -> Public:
    groups = setup.groups
    return Public(groups.pictures(groups.public[:60]), groups.labels[groups.public[:60]])


def setting_of(setup, rule=None, threat=None, count=1) -> Setting:
    return known_before(setup.network, rule or LocalRule(), count, threat or THREAT, public_of(setup))


def observations(setup, rule, clients):
    for index in setup.groups.victims[:clients]:
        truth = Batch(setup.groups.pictures(index), setup.groups.labels[index])
        yield truth, observe(simulate(setup.network, rule, truth, int(index)), THREAT, public_of(setup))


def test_it_reads_more_than_its_floor(setup):
    """By more than three standard errors of the difference, over 12 clients."""
    built, setting = attacks.build(FEW), setting_of(setup)
    ready = fit(built, setting, 5, quiet)
    floor = built.blind().restored(setting, ready.state)
    found: list[float] = []
    for truth, seen in observations(setup, LocalRule(), 12):
        own, blind = (mean_ncc(attack(seen, way, seed=1).pictures, truth.pictures) for way in (ready, floor))
        found.append(float(own - blind))
    assert statistics.fmean(found) > 3 * statistics.stdev(found) / len(found) ** 0.5


def test_updates_and_buffers_are_views_that_both_read_more_than_nothing(setup):
    """On held-out clients, of which there are as many as simulated ones."""
    rule = LocalRule("delta", batch_size=1, lr=0.01, optimizer="adam")
    state = fit(attacks.build(f"{FEW},views=both"), setting_of(setup, rule), 5, quiet).state
    ncc = {name.removeprefix("ncc/"): float(value) for name, value in state.items() if "ncc/" in name}
    for view in ("statistics", "update"):
        assert ncc[f"{view}/perceptron"] > ncc["nothing"] + 0.05


def test_what_is_kept_of_an_interrupted_fit_is_not_made_again(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "CHUNK", 20)
    built, setting, steps = attacks.build("learned_inverse,clients=60"), setting_of(setup), []
    step = simulation.local_signal
    monkeypatch.setattr(simulation, "local_signal", lambda *args, **named: steps.append(1) or step(*args, **named))

    def stop(fraction: float) -> None:
        if len(steps) == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(built, setting, "key", 1, tmp_path, stop)
    forget_fitted()
    kept = fitted(built, setting, "key", 1, tmp_path, quiet)
    assert len(steps) == 120 + 10, "of 60 clients and 60 held-out ones, 10 were on their way"
    assert [path.name for path in tmp_path.iterdir()] == ["key.safetensors"]
    whole = fit(built, setting, 1, quiet)
    assert all(torch.equal(tensor, kept.state[name]) for name, tensor in whole.state.items())
    forget_fitted()


def test_a_fit_that_failed_is_not_tried_by_every_trial(setup, monkeypatch):
    setting = setting_of(setup)
    few = replace(setting, public=Public(setting.public.pictures[:3], setting.public.labels[:3]))
    for _ in range(2):
        with pytest.raises(NotApplicable, match="at least 4 public pictures; 3 are granted"):
            fitted(attacks.build(FEW), few, "few", 1, None, quiet)
        monkeypatch.setattr(simulation, "local_signal", None)
    forget_fitted()


def test_what_it_cannot_do_without_is_said(setup):
    with pytest.raises(NotGranted, match="public pictures"):
        fit(attacks.build(FEW), setting_of(setup, threat=ThreatModel(public=0)), 1, quiet)
    with pytest.raises(NotApplicable, match="views=update"):
        fit(attacks.build("learned_inverse,views=statistics"), setting_of(setup, LocalRule(mode="eval")), 1, quiet)


def test_of_a_batch_pictures_come_in_the_order_of_their_classes(setup):
    built, rule = attacks.build("learned_inverse,clients=100"), LocalRule()
    ready = fit(built, setting_of(setup, count=3), 1, quiet)
    index = setup.groups.victims[:3].flatten()
    truth = Batch(setup.groups.pictures(index), setup.groups.labels[index])
    found = attack(observe(simulate(setup.network, rule, truth), THREAT, public_of(setup)), ready)
    assert found.y.tolist() == sorted(found.y.tolist())
    assert found.pictures.shape == truth.pictures.shape


def test_the_suite_answers_with_the_member_that_rehearsed_best(setup):
    suite = attacks.build("strongest,steps=2,learned_inverse.clients=150")
    floor_of_it = attacks.build("prior_only,of=strongest,steps=2,learned_inverse.clients=150")
    assert suite.fits == floor_of_it.fits, "one fit serves both, in every process: no address in memory is in its name"
    assert suite.fits != attacks.build("strongest,steps=3,learned_inverse.clients=150").fits
    setting = setting_of(setup)
    ready = fit(suite, setting, 5, quiet)
    _, seen = next(iter(observations(setup, LocalRule(), 1)))
    found = attack(seen, ready, seed=1)
    rehearsed = {n.removeprefix("rehearsed NCC of "): v for n, v in found.notes.items() if n.startswith("rehearsed")}
    won = max(rehearsed, key=rehearsed.get)
    assert found.notes["won"] == won
    assert won in ("learned_inverse", "learned_start"), (
        "with two steps, a search that begins anywhere else finds nothing"
    )
    assert {attempt.name for attempt in found.attempts if attempt.pictures is not None} == {won}
    told = {attempt.name: attempt.note for attempt in found.attempts}
    assert "below the" in told["inverting_gradients"]
    assert "dropout_inversion" not in rehearsed, "what does not apply to such clients is not rehearsed"
    assert "convolution" in told["linear"]
    once = ready.state["rehearsed/inverting_gradients"].clone()
    once[0] = math.nan
    lost = attack(seen, suite.restored(setting, {**ready.state, "rehearsed/inverting_gradients": once}), seed=1)
    assert lost.notes["won"] == won
    assert lost.notes["rehearsals that failed of inverting_gradients"] == 1
    (attempt,) = (one for one in lost.attempts if one.name == "inverting_gradients")
    assert attempt.note.endswith(f"1 of {len(once)} rehearsals failed")
    floor = attack(seen, suite.blind().restored(setting, ready.state), seed=1)
    (member,) = (m for m in member_specs(Spec.parse("strongest,steps=2,learned_inverse.clients=150")) if m.name == won)
    fitted = {n.removeprefix("learned_inverse/"): t for n, t in ready.state.items() if n.startswith("learned_inverse/")}
    blind = attacks.build(member).blind().restored(setting, fitted)
    assert torch.equal(floor.pictures, attack(seen, blind, seed=1).pictures)


def test_a_member_that_stays_behind_is_not_called_failed_where_it_was_not_tried(setup):
    reached = iter([0.1, math.nan, 0.2, 0.3, 0.4, 0.5])
    found = rehearsals_of(setting_of(setup), 5).ncc(
        None, "member", 5, lambda name, make: {"ncc": torch.tensor(next(reached))}, quiet,
        clients=range(6), best=torch.tensor([0.5, 0.5, 0.5, math.nan, 0.5, 0.5]),
    )  # fmt: skip
    assert found.isnan().tolist() == [False, True, *[False] * 4]


def test_a_member_that_fails_in_its_rehearsal_is_run_and_its_failure_recorded(setup):
    suite = attacks.build("strongest,steps=2,learned_inverse.clients=50")
    broken = replace(suite, members=tuple((n, Failing() if n == "dimitrov" else m) for n, m in suite.members))
    ready = fit(broken, setting_of(setup), 5, quiet)
    _, seen = next(iter(observations(setup, LocalRule(), 1)))
    told = {attempt.name: attempt for attempt in attack(seen, ready, seed=1).attempts}
    assert told["dimitrov"].failed
    assert "it left the finite numbers" in told["dimitrov"].note
    assert any(told[name].pictures is not None for name in ("learned_inverse", "learned_start"))


def test_the_suite_leaves_out_rehearsals_where_nothing_is_public_and_a_closed_form_still_answers_first(setup):
    suite = attacks.build("strongest,steps=2")
    setting = known_before(build_network(setup.network.task, "mlp,hidden=32"), LocalRule(), 1, ThreatModel())
    assert not fit(suite, setting, 1, quiet).state
    with_public = replace(setting, granted=THREAT.facts, public=public_of(setup))
    ready = fit(attacks.build("strongest,steps=2,learned_inverse.clients=50"), with_public, 1, quiet)
    index = setup.groups.victims[0]
    truth = Batch(setup.groups.pictures(index), setup.groups.labels[index])
    found = attack(observe(simulate(setting.network, LocalRule(), truth), THREAT, public_of(setup)), ready)
    assert found.notes["won"] == "linear"
    assert (found.pictures - truth.pictures).abs().max() < 1e-4


def test_the_picture_of_a_partial_last_step_is_read_though_the_client_holds_nine(setup):
    """By more than three standard errors over the mean public picture's NCC, and of the last step alone."""
    rule = LocalRule("delta", batch_size=4, lr=0.01, shuffle=True)
    setting = setting_of(setup, rule, count=9)
    ready = fit(attacks.build("last_batch,clients=240"), setting, 5, quiet)
    mean, groups, found = public_of(setup).pictures.mean(0, keepdim=True), setup.groups, []
    for client in range(12):
        held = groups.victims.flatten().roll(-client)[:9]
        truth = Batch(groups.pictures(held), groups.labels[held])
        seen = observe(simulate(setup.network, rule, truth, client), THREAT, public_of(setup))
        place = rule.held_by(rule.steps(9) - 1, 9, derive(client, "order"))
        assert len(place) == 1
        read = attack(seen, ready, seed=1)
        assert read.last
        assert len(read.pictures) == 1
        own, floor = (mean_ncc(pictures, truth.pictures[place]) for pictures in (read.pictures, mean))
        found.append(float(own - floor))
    assert statistics.fmean(found) > 3 * statistics.stdev(found) / len(found) ** 0.5
    whole = replace(rule, batch_size=None, shuffle=False)
    assert "learned_inverse" in attacks.build("last_batch").why_not(replace(seen, rule=whole))
    with pytest.raises(NotApplicable, match="inference mode"):
        fit(attacks.build("last_batch"), setting_of(setup, replace(rule, mode="eval"), count=9), 5, quiet)
