from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.predictors import area, read_out, spearman

from leakmap.client_step import Training, arrange
from leakmap.errors import BadSetting
from leakmap.inspection import predictors, read_traits
from leakmap.inspection.predicted import Judged, Predicted, predict
from leakmap.inspection.predictors import PREDICTORS, Jacobian, Known, rehearsed
from leakmap.local_rule import LocalRule
from leakmap.models.network import build_network
from leakmap.observation.contents import Public
from leakmap.problem.task import Task

TASK = Task((1, 6, 6), 3, (0.5,), (0.25,))


def known(model, count=60, **settings):
    network = build_network(TASK, model, seed=1)
    pictures = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    public = Public(pictures, torch.arange(count) % 3)
    return Known(network, read_traits(network), LocalRule(mode="eval"), public, **settings)


@pytest.mark.parametrize("model", ["mlp,hidden=16,activation=tanh", "convnet,width=4,depth=2,activation=gelu"])
def test_products_with_the_derivative_are_those_of_differences(model):
    one = known(model)
    jacobian, rule, network = Jacobian(one, 0), one.rule, one.network
    training = Training(arrange(network.module(), rule), network.weights, rule, network.loss())

    def gradient(x):
        found = torch.autograd.grad(training.objective(training.start, x, one.public.labels[:1]), training.start)
        return torch.cat([part.flatten() for part in found])

    x = jacobian.x.detach()
    v, u = torch.randn_like(x), torch.randn(len(jacobian.g))
    told = (gradient(x + 1e-3 * v) - gradient(x - 1e-3 * v)) / 2e-3 / gradient(x).norm()
    assert torch.allclose(jacobian.up(v), told, atol=2e-3 * float(told.norm()))
    assert float((jacobian.up(v) * u).sum()) == pytest.approx(float((jacobian.down(u) * v).sum()), rel=1e-4)


def test_eigenvalues_and_traces_are_those_of_the_whole_matrix(monkeypatch):
    monkeypatch.setattr(predictors, "LANCZOS", 36)
    monkeypatch.setattr(predictors, "PROBES", 400)
    jacobian = Jacobian(known("mlp,hidden=16,activation=tanh"), 0)
    whole = torch.stack([jacobian.up(row.view_as(jacobian.x)) for row in torch.eye(36)], 1).double()
    values = torch.linalg.svdvals(whole).square()
    assert jacobian.ends == pytest.approx((float(values[0]), float(values[-1])), rel=1e-3)
    assert jacobian.traces == pytest.approx((float(values.sum()), float(values.square().sum())), rel=0.1)


def silent(one):
    """The same client of a network whose weights are 0: its update does not depend on the picture."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in one.network.weights.items()}
    return replace(one, network=replace(one.network, weights=zeros))


def test_an_update_that_says_nothing_of_the_picture_has_no_derivative():
    assert Jacobian(silent(known("mlp,hidden=4")), 0).traces[0] == 0


def test_a_ridge_reads_an_update_that_says_something_and_no_other(monkeypatch):
    monkeypatch.setattr(predictors, "CLIENTS", 300)
    monkeypatch.setattr(predictors, "HELD", 200)
    waves = torch.linspace(0, 3, 6).cos()
    mixed = torch.rand(400, 2, generator=torch.Generator().manual_seed(3))
    pictures = 0.5 + 0.2 * (mixed[:, :1, None] * waves + mixed[:, 1:, None] * waves[:, None])[:, None]
    one = replace(known("mlp,hidden=64"), public=Public(pictures, torch.arange(400) % 3))
    read, unread = rehearsed(one), rehearsed(silent(one))
    assert read["rank"] < 0.3
    assert unread["rank"] == pytest.approx(0.5, abs=0.12)
    assert read["explained"] > unread["explained"] + 0.2
    with pytest.raises(BadSetting, match="40 public pictures"):
        rehearsed(known("mlp,hidden=4", count=8))


def test_every_predictor_is_a_number(monkeypatch):
    monkeypatch.setattr(predictors, "CLIENTS", 40)
    monkeypatch.setattr(predictors, "HELD", 20)
    one = known("convnet,width=4,depth=2")
    assert all(np.isfinite(predictor.measure(one)) for predictor in PREDICTORS.values())


def test_a_predictor_is_judged_on_families_that_nothing_was_fitted_to():
    families = ["a"] * 10 + ["b"] * 10
    values, outcomes = np.arange(20.0), np.arange(20.0)
    assert spearman(read_out(values, outcomes, families), outcomes) > 0.8
    # A line that holds within one family and turns round in the other tells nothing of either.
    turned = np.concatenate([np.arange(10.0), -np.arange(10.0)])
    assert spearman(read_out(np.tile(np.arange(10.0), 2), turned, families)[:10], turned[:10]) < 0


def test_the_area_counts_pairs():
    leaks = np.array([True, False, True, False])
    assert area(np.array([0.1, 0.4, 0.2, 0.3]), leaks) == 1
    assert area(np.array([0.4, 0.1, 0.3, 0.2]), leaks) == 0
    assert area(np.array([0.1, 0.1, 0.1, 0.1]), leaks) == 0.5


def test_what_a_value_has_meant_is_told_by_the_nearest_configurations():
    points = tuple((float(i), i / 20) for i in range(20))
    judged = Judged(0.9, (0.9, 0.8, 1.0), (0.9, 0.8, 1.0), True, points)
    assert judged.meant(3.0) == (0.0, 0.3)
    assert judged.meant(100.0) == (13 / 20, 19 / 20)


def test_accepted_predictors_alone_are_measured_in_the_modes_that_differ(monkeypatch):
    bounds = (0.9, 0.8, 1.0)
    judged = {
        name: Judged(0.9, bounds, bounds, name == "sensitivity", ((-1.0, 0.2), (0.0, 0.4))) for name in PREDICTORS
    }
    found = Predicted("python -m benchmarks.predictors", "", 2, 2, judged)
    monkeypatch.setattr("leakmap.inspection.predicted.shipped", lambda: found)
    for model, modes in (("mlp,hidden=4", ["eval"]), ("convnet,width=4,depth=2,norm=batch", ["eval", "train"])):
        network = build_network(Task((3, 16, 16), 3, (0.5,) * 3, (0.25,) * 3), model, seed=1)
        told = predict(network, read_traits(network), "samples")
        assert [(one.name, one.mode) for one in told] == [("sensitivity", mode) for mode in modes]
        assert all((one.low, one.high) == (0.2, 0.4) for one in told)
        assert "relative rank 0.20 to 0.40" in str(told[0])
    monkeypatch.setattr("leakmap.inspection.predicted.shipped", lambda: None)
    assert predict(network, read_traits(network), "samples") == ()
