"""What is said beforehand about the time that runs will take."""

from dataclasses import replace

import pytest
from torch import nn

from leakmap import ThreatModel, attacks
from leakmap.attacker.protocol import Cost
from leakmap.auditing import estimate
from leakmap.auditing.estimate import CLOSED_FORM, EVALUATION, ITERATION, RUN, STARTUP, Pace, expected
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.auditing.recipe import in_order, trials
from leakmap.plan.plan import Plan
from leakmap.registry.spec import Spec
from leakmap.runs.fitting import FOLDER
from leakmap.runs.run import seen_by_server, setting_for
from leakmap.runs.runner import FITTING, HERE, Local
from leakmap.runs.store import Store

PLAN = Plan("mlp,hidden=4", attack=Spec("inverting_gradients", {"steps": 10}), image_size=16, victims=2)


@pytest.fixture
def runs():
    prepared = prepare(PLAN)
    found = in_order(trials(PLAN, *prepared.digests))
    return found, {one.digest: one for one in (prepared.main, prepared.control)}


def test_an_attack_costs_what_it_says_in_client_steps(runs):
    trial, setup = runs[0][0], runs[1][runs[0][0].setup]
    pace = Pace(2.0, seen_by_server(trial, setup))
    search = 10 * (EVALUATION * 2 + ITERATION)

    def seconds(attack: str, pace: Pace = pace) -> float:
        return pace.seconds(replace(trial, attack=Spec.parse(attack)))

    assert seconds("inverting_gradients,steps=10") == pytest.approx(RUN + search)
    assert seconds("linear") == pytest.approx(RUN + CLOSED_FORM * 2)
    suite = "strongest_v1,steps=10"
    assert RUN + search < seconds(suite) < seconds(suite, Pace(2.0))
    rehearsed = seconds("strongest,steps=10")
    assert rehearsed == pytest.approx(RUN + search), "one search answers, those that rehearsed worse do not run"
    assert pace.seconds(replace(trial, scoring="informed")) == RUN + (trial.gallery + 2) * 2
    assert Cost(2, 10, 3).total == 60


def test_missing_runs_add_up_over_processes_and_nothing_that_goes_wrong_here_stops_them(runs, monkeypatch):
    found, setups = runs
    monkeypatch.setattr(estimate, "step_seconds", lambda trial, setup: 2.0)
    alone, shared = (expected(found, setups, runner) for runner in (HERE, Local(2)))
    assert (alone.clients, alone.runs, alone.processes, shared.processes) == (2, 12, 0, 2)
    assert shared.seconds == pytest.approx(STARTUP + alone.seconds / 2)
    tuned = expected(found, setups, Local(2), times=3, worth=1e9)
    assert (tuned.runs, tuned.processes, tuned.at_most) == (36, 0, True)
    assert tuned.seconds == pytest.approx(3 * alone.seconds)
    monkeypatch.setattr(estimate, "step_seconds", lambda trial, setup: 1 / 0)
    assert expected(found, setups, HERE).seconds is None


def test_a_fit_is_foretold_with_its_clients_and_memory_until_it_is_kept(tmp_path):
    """The audited network and the planted control are fitted to apart, each to 20 clients and 20 held-out ones."""
    plan = replace(PLAN, model="resnet,blocks=1,width=4,preact=false", attack=Spec("learned_inverse", {"clients": 20}))
    plan = replace(plan, threat=ThreatModel(public=12))
    prepared = prepare(plan)
    foretold, told = [], []
    store = Store(tmp_path)
    perform(plan, prepared, store, progress=lambda *one: told.append(one), foretold=foretold.append)
    fitting = foretold[0].fitting
    assert (fitting.fits, fitting.clients) == (2, 80)
    before, after = told.index((FITTING, 1.0)), next(i for i, (what, _) in enumerate(told) if what.startswith("run"))
    assert before < after, "the bar of the fit fills up before that of the runs"
    trial, *_ = in_order(trials(plan, *prepared.digests))
    cost = attacks.build(plan.attack).fit_cost(setting_for(trial, prepared.main))
    layers = prepared.main.network.module().modules()
    columns = 2 * sum(layer.num_features for layer in layers if isinstance(layer, nn.BatchNorm2d))
    assert cost.memory <= fitting.memory
    assert cost.memory == 4 * 40 * (2 * columns + min(768, 3 * 16 * 16))
    setups = {one.digest: one for one in (prepared.main, prepared.control)}
    assert expected([trial], setups, HERE, tmp_path / FOLDER).fitting is None, "it is kept"
    assert expected([trial], setups, HERE).fitting.clients == 40
