"""Batch statistics recovered from buffers, and as terms of the objective: analytic truths."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from leakmap import LocalRule, ThreatModel, attack, build_network, observe, simulate
from leakmap.attacker.buffers import client_passes, recover_statistics, unmix
from leakmap.attacker.labels import recover
from leakmap.attacker.matching.context import Guess, SearchContext, Trace
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine
from leakmap.attacker.matching.statistics import Statistics, layer_statistics, norm_layers, proxy_targets
from leakmap.errors import BadSetting, NotApplicable
from leakmap.observation.contents import Public
from tests.conftest import batch_of, observed, pictures

MODEL = "resnet,blocks=1-1,width=8,preact=true"


def seen_by_layers(round):
    """What every BatchNorm layer saw, computed in float64 with hooks: the truth."""
    weights = {n: t.double() if t.is_floating_point() else t for n, t in round.network.weights.items()}
    network = replace(round.network, weights=weights)
    module = network.module().double().train()
    layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    trace = Trace(module, layers)
    with torch.no_grad():
        module(network.task.normalize(round.batch.pictures.double()))
    return {n: x[0] for n, x in trace.take().inputs.items()}


def with_buffers(task, momentum, mean=None, var=None, seed=0, model=MODEL):
    """A user's network with this momentum and, if given, running statistics like those of a trained one."""
    module = build_network(task, model, seed=seed).module()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum
            if mean is not None:
                source = torch.Generator().manual_seed(seed)
                layer.running_mean.copy_(mean * torch.randn(layer.num_features, generator=source))
                layer.running_var.copy_(5 + (var - 5) * torch.rand(layer.num_features, generator=source))
    return build_network(task, module)


def round_of(network, task, count=4, rule=None):
    round = simulate(network, rule or LocalRule(), batch_of(count, task))
    return round, observe(round, ThreatModel("known"))


@pytest.mark.parametrize("momentum", [0.1, 0.03, 0.01, None])
@pytest.mark.parametrize("count", [1, 4])
def test_one_step_from_fresh_buffers(task, momentum, count):
    round, observation = round_of(with_buffers(task, momentum), task, count)
    found, truth = recover_statistics(observation), seen_by_layers(round)
    assert set(found) == set(truth)
    for name, x in truth.items():
        assert (found[name].mean - x.mean((0, 2, 3))).abs().max() <= 1e-6
        assert (found[name].variance - x.var((0, 2, 3))).abs().max() <= 1e-5


@pytest.mark.parametrize("momentum", [0.1, 0.03, 0.01])
def test_one_step_from_buffers_of_a_trained_network(task, momentum):
    """float32 cancellation bounds what can be had: 8 units of rounding of the buffers over the momentum."""
    network = with_buffers(task, momentum, mean=3.0, var=50.0)
    round, observation = round_of(network, task)
    found, truth = recover_statistics(observation), seen_by_layers(round)
    for name, x in truth.items():
        for which, own, true in (
            ("mean", found[name].mean, x.mean((0, 2, 3))),
            ("var", found[name].variance, x.var((0, 2, 3))),
        ):
            sent = network.weights[f"{name}.running_{which}"].abs()
            returned = observation.buffers[f"{name}.running_{which}"].abs()
            bound = 8 * 2**-24 * (returned + sent) / momentum
            assert ((own - true).abs() <= bound + 1e-6 * true.abs()).all()


@pytest.mark.parametrize("momentum", [0.1, 0.03, 0.01, None])
def test_five_passes_give_their_weighted_mean(momentum):
    source = torch.Generator().manual_seed(3)
    statistics = torch.rand(5, 7, generator=source, dtype=torch.float64)
    layer = nn.BatchNorm1d(7, momentum=momentum).double()
    layer.num_batches_tracked.fill_(4)
    sent = layer.running_mean.clone().copy_(torch.randn(7, generator=source, dtype=torch.float64))
    layer.running_mean.copy_(sent)
    for mean in statistics:
        layer(mean + torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
    found = unmix(sent, layer.running_mean, momentum, 5, tracked=4)
    ages = torch.arange(4, -1, -1, dtype=torch.float64)
    weights = torch.full((5,), 0.2, dtype=torch.float64) if momentum is None else momentum * (1 - momentum) ** ages
    weights = weights / weights.sum()
    assert (found - weights @ statistics).abs().max() <= 1e-6


@pytest.mark.parametrize("momentum", [0.1, 0.03, 0.01, None])
def test_five_local_steps_leave_no_penalty_at_the_truth(task, momentum):
    """The simulated passes are mixed as the buffers mixed the real ones."""
    rule = LocalRule("delta", epochs=5, lr=0.1)
    round, observation = round_of(with_buffers(task, momentum), task, 4, rule)
    context = SearchContext(observation, rule, round.batch.y, 0)
    term = Statistics("recovered", 1.0)
    engine = Engine(context, DISTANCES["cosine"], kind="exact", penalties=[term(context)])
    pull = engine.value_and_grad(Guess(task.normalize(round.batch.pictures), round.batch.y))
    assert float(pull.penalty) < 1e-3
    assert float(pull.match) < 1e-6
    other = engine.value_and_grad(Guess(task.normalize(pictures(4, task, 77)), round.batch.y))
    assert float(other.penalty) > 100 * float(pull.penalty)


def test_gradient_accumulation_counts_a_pass_for_each_micro_batch(task):
    rule = LocalRule(accumulate=2)
    round, observation = round_of(with_buffers(task, 0.1), task, 4, rule)
    assert rule.forwards(4) == 2
    assert set(client_passes(observation).forwards.values()) == {2}
    context = SearchContext(observation, rule, round.batch.y, 0)
    engine = Engine(context, DISTANCES["cosine"], kind="exact", penalties=[Statistics("recovered", 1.0)(context)])
    pull = engine.value_and_grad(Guess(task.normalize(round.batch.pictures), round.batch.y))
    assert float(pull.penalty) < 1e-3
    assert float(pull.match) < 1e-6


def test_accumulated_gradients_are_those_of_the_whole_batch_without_batchnorm(task):
    network = build_network(task, "convnet,width=8")
    whole, parts = (simulate(network, LocalRule(accumulate=n), batch_of(5, task)).update.tensors for n in (1, 2))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


def test_each_layer_is_undone_with_its_own_momentum(task):
    """10 r' - 9 r, hard-coded by others, is wrong for every momentum but 0.1."""
    module = build_network(task, MODEL).module()
    layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for layer, momentum in zip(layers.values(), (0.1, 0.03, 0.01, 0.5), strict=True):
        layer.momentum = momentum
    round, observation = round_of(build_network(task, module), task)
    found, truth = recover_statistics(observation), seen_by_layers(round)
    for name, x in truth.items():
        assert (found[name].mean - x.mean((0, 2, 3))).abs().max() <= 1e-6


def test_layers_are_keyed_by_name_and_not_by_their_order(task):
    """Forward order differs from registration order, and one layer is used twice."""

    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.early = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 4)

        def forward(self, x):
            x = torch.relu(self.early(self.conv1(x)))
            x = torch.relu(self.late(self.conv2(x)))
            return self.head(self.late(x).mean((2, 3)))

    round, observation = round_of(build_network(task, Crossed()), task)
    observation = replace(observation, network=round.network)
    found = client_passes(observation)
    assert found.forwards == {"late": 2, "early": 1}
    context = SearchContext(observation, LocalRule(), round.batch.y, 0)
    engine = Engine(context, DISTANCES["cosine"], kind="exact", penalties=[Statistics("recovered", 1.0)(context)])
    pull = engine.value_and_grad(Guess(task.normalize(round.batch.pictures), round.batch.y))
    assert float(pull.penalty) < 1e-4


def test_the_objective_at_the_truth_is_the_prior(task):
    round, observation = observed(MODEL, task, threat=ThreatModel("known"), count=4)
    context = SearchContext(observation, LocalRule(), round.batch.y, 0)
    engine = Engine(context, DISTANCES["cosine"], kind="exact", penalties=[Statistics("recovered", 1.6e-4)(context)])
    pull = engine.value_and_grad(Guess(task.normalize(round.batch.pictures), round.batch.y))
    assert float(pull.match + pull.penalty) < 1e-4


def test_buffers_tell_the_mode(task):
    for mode in ("train", "eval"):
        _, observation = observed(MODEL, task, rule=LocalRule(mode=mode), threat=ThreatModel(rule=False))
        assert client_passes(observation).mode == mode
        found = attack(observation, "inverting_gradients,steps=2")
        assert found.notes["mode simulated"] == mode
        assert "buffers show" in found.notes["assumed"]


def test_in_inference_mode_there_is_nothing_to_recover_and_it_is_said(task):
    _, observation = observed(MODEL, task, rule=LocalRule(mode="eval"), threat=ThreatModel("known"))
    plain = attack(observation, "inverting_gradients,steps=4", seed=1)
    found = attack(observation, "recovered_statistics,steps=4", seed=1)
    assert "inference mode" in found.notes["known"]
    assert torch.equal(found.pictures, plain.pictures)


def test_without_batchnorm_the_attack_does_not_apply(task):
    _, observation = observed("convnet,width=8", task)
    with pytest.raises(NotApplicable, match="no BatchNorm layer"):
        attack(observation, "recovered_statistics,steps=2")
    with pytest.raises(NotApplicable, match="no normalization layer"):
        attack(replace(observation, public=Public(pictures(4, task), torch.arange(4))), "proxy_statistics,steps=2")


class LayerNorm2d(nn.LayerNorm):
    """As in torchvision: a subclass of LayerNorm that normalizes channels in front of height and width."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class AllNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.batch, self.instance, self.channels = nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), LayerNorm2d(4)
        self.group, self.layer = nn.GroupNorm(2, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        x = self.group(self.channels(self.instance(torch.tanh(self.batch(self.conv(x))) + 1)) * 2)
        return self.head(self.layer((x * x).mean((2, 3))))


@pytest.fixture
def proxied(task):
    """A network with every kind of normalization, whose attacker holds the client's own pictures as public ones."""
    network = build_network(task, AllNorms())
    round = simulate(network, LocalRule(), batch_of(4, task))
    observation = observe(round, ThreatModel("known", public=4), Public(round.batch.pictures, round.batch.y))
    return round, replace(observation, network=network)


def test_public_pictures_give_one_target_for_each_layer_by_name(proxied):
    round, observation = proxied
    targets, _ = proxy_targets(SearchContext(observation, LocalRule(), round.batch.y, 0))
    assert set(targets) == {"batch", "instance", "channels", "group", "layer"}
    assert targets["batch"].mean.shape == (4,)
    assert all(targets[name].mean.shape == (1,) for name in ("instance", "channels", "group", "layer"))


def test_the_clients_own_pictures_as_public_ones_leave_no_penalty(task, proxied):
    round, observation = proxied
    context = SearchContext(observation, LocalRule(), round.batch.y, 0)
    targets, _ = proxy_targets(context)
    module = round.network.module().train()
    trace = Trace(module, norm_layers(module))
    module(task.normalize(round.batch.pictures))
    seen = trace.take()
    for name, layer in norm_layers(module).items():
        mean, variance = layer_statistics(layer, seen.inputs[name][0])
        assert (targets[name].mean - mean).abs().max() <= 1e-6
        assert (targets[name].variance - variance).abs().max() <= 1e-6
    engine = Engine(context, DISTANCES["cosine"], kind="exact", penalties=[Statistics("proxy", 1.0)(context)])
    truth = Guess(task.normalize(round.batch.pictures), round.batch.y)
    assert float(engine.value_and_grad(truth).penalty) < 1e-5


@pytest.mark.parametrize("form", ["paper", "calibrated"])
def test_public_pictures_of_another_kind_fit_worse(task, form):
    network = build_network(task, MODEL)
    round = simulate(network, LocalRule(), batch_of(8, task, 1))
    alike, other = pictures(32, task, 50), (torch.rand(32, *task.shape) > 0.5).float()
    penalties = []
    for public in (alike, other):
        threat = ThreatModel("known", public=32)
        observation = observe(round, threat, Public(public, torch.arange(32) % task.classes))
        context = SearchContext(observation, LocalRule(), round.batch.y, 0)
        engine = Engine(
            context, DISTANCES["cosine"], kind="exact", penalties=[Statistics("proxy", 1.0, form, batches=8)(context)]
        )
        pull = engine.value_and_grad(Guess(task.normalize(round.batch.pictures), round.batch.y))
        penalties.append(float(pull.penalty))
    assert penalties[0] < penalties[1]


def test_fewer_public_pictures_than_the_clients_batch_is_an_error(task):
    _, observation = observed(MODEL, task, threat=ThreatModel("known", public=2), count=4)
    with pytest.raises(NotApplicable, match="grant at least 4"):
        attack(observation, "proxy_statistics,steps=2")


def test_the_floor_of_an_attack_on_buffers_does_not_see_them(task):
    _, first = observed(MODEL, task, threat=ThreatModel("known"), count=2)
    moved = {name: t + 1 if t.is_floating_point() else t for name, t in first.buffers.items()}
    floors = [
        attack(o, "prior_only,of=recovered_statistics,steps=5", seed=1).pictures
        for o in (first, replace(first, buffers=moved))
    ]
    assert torch.equal(*floors)


def test_inferred_labels_leave_the_recovered_statistics_right(task):
    round, observation = observed(MODEL, task, count=4)
    seen = recover(observation, "auto", 0)
    assert seen.rule != "granted"
    context = SearchContext(observation, LocalRule(), round.batch.y, 0)
    engine = Engine(context, DISTANCES["cosine"], kind="exact", penalties=[Statistics("recovered", 1.0)(context)])
    truth = Guess(task.normalize(round.batch.pictures), round.batch.y)
    assert float(engine.value_and_grad(truth).penalty) < 1e-3


@pytest.mark.parametrize("value", [10**15, -3])
def test_an_impossible_counter_is_one_sentence(task, value):
    _, observation = observed(MODEL, task)
    counters = {n: torch.tensor(value) for n in observation.buffers if n.endswith("num_batches_tracked")}
    hostile = replace(observation, buffers={**observation.buffers, **counters})
    with pytest.raises(NotApplicable, match="forward passes in a round"):
        attack(hostile, "recovered_statistics,steps=1")


def test_the_calibrated_form_needs_batches_that_differ(task):
    with pytest.raises(BadSetting, match="needs several"):
        Statistics("proxy", 1.0, "calibrated", batches=1)
    _, observation = observed(MODEL, task, threat=ThreatModel("known", public=4), count=4)
    with pytest.raises(NotApplicable, match="grant 8"):
        attack(observation, "proxy_statistics,form=calibrated,steps=2")
