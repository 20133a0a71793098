"""What is said beforehand about the time that runs will take."""

import pytest

from leakmap.attacker.protocol import Cost
from leakmap.auditing import estimate
from leakmap.auditing.estimate import CLOSED_FORM, EVALUATION, ITERATION, RUN, STARTUP, Pace, expected
from leakmap.auditing.prepare import prepare
from leakmap.auditing.recipe import in_order, trials
from leakmap.plan.plan import Plan
from leakmap.registry.spec import Spec
from leakmap.runs.run import seen_by_server
from leakmap.runs.runner import HERE, Local

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
    assert pace.seconds(PLAN.attack) == pytest.approx(RUN + search)
    assert pace.seconds(Spec("linear")) == pytest.approx(RUN + CLOSED_FORM * 2)
    suite, every = Spec("strongest_v1", {"steps": 10}), Pace(2.0).seconds(Spec("strongest_v1", {"steps": 10}))
    assert RUN + search < pace.seconds(suite) < every
    rehearsed = pace.seconds(Spec("strongest", {"steps": 10}))
    assert rehearsed == pytest.approx(RUN + search), "one search answers, those that rehearsed worse do not run"
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
