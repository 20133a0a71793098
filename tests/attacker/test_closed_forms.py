"""The closed forms: exact where they apply, and one sentence where they do not."""

from dataclasses import replace

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F

from leakmap import LocalRule, Task, ThreatModel, Update, attack, build_network, observe, simulate
from leakmap.attacker.attacks.april import unembed
from leakmap.attacker.closed_form import Attention, diagnose, summary
from leakmap.attacker.gradients import mean_gradient
from leakmap.attacker.matching.context import SearchContext
from leakmap.errors import NotApplicable
from tests.conftest import batch_of, matching_term, observed


@pytest.fixture
def cifar() -> Task:
    return Task((3, 32, 32), 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def noisy(count: int, task: Task):
    """Pictures without the smoothness that keeps those of ``batch_of`` in a space of few dimensions."""
    batch = batch_of(count, task)
    noise = torch.rand(batch.pictures.shape, generator=torch.Generator().manual_seed(count))
    return replace(batch, pictures=(0.5 * batch.pictures + 0.5 * noise).clamp(0.01, 0.99))


def seen(model, task, count, rule=None, batch=None):
    """A batch and what the server sees of it."""
    batch = batch or noisy(count, task)
    network = model if not isinstance(model, str | nn.Module) else build_network(task, model)
    return batch, observe(simulate(network, rule or LocalRule(), batch), ThreatModel())


def order(found, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Which true picture each found one is, and the largest error of a pixel of each pair."""
    distance = (found.pictures[:, None] - batch.pictures[None]).abs().flatten(2).amax(dim=2)
    rows, columns = linear_sum_assignment(distance)
    return torch.as_tensor(columns), distance[rows, columns]


def error(found, batch) -> float:
    return float(order(found, batch)[1].max())


def why(network, name: str, **facts) -> list[str]:
    return [finding.why for finding in diagnose(network, **facts) if finding.attack == name]


def test_spear_reads_a_batch_of_four_in_seconds(cifar):
    batch, observation = seen("mlp,hidden=512", cifar, 4)
    found = attack(observation, "spear")
    assert error(found, batch) < 1e-4
    assert torch.equal(found.y, batch.y[order(found, batch)[0]])
    assert found.notes["examples found"] == 4
    assert "count" in found.used


@pytest.mark.parametrize("count", [1, 2, 8])
def test_spear_reads_other_batches(count, task):
    batch, observation = seen("mlp,hidden=256", task, count)
    assert error(attack(observation, "spear"), batch) < 1e-5


@pytest.mark.parametrize(
    "rule",
    [LocalRule(share="delta", lr=0.1, weight_decay=1e-2), LocalRule(dropout=0.2), LocalRule(mode="eval")],
    ids=["one step with weight decay", "dropout", "eval"],
)
def test_spear_under_other_rules(rule, task):
    batch, observation = seen("mlp,hidden=256,dropout=0.1", task, 4, rule)
    assert error(attack(observation, "spear"), batch) < 1e-4


def test_spear_finds_equal_pictures_once_and_repeats_what_it_found(task):
    batch = noisy(3, task)
    batch = replace(batch, pictures=batch.pictures[[0, 0, 1]])
    _, observation = seen("mlp,hidden=256", task, 3, batch=batch)
    found = attack(observation, "spear")
    assert found.notes["examples found"] == 2
    distance = (batch.pictures[:, None] - found.pictures[None]).abs().flatten(2).amax(dim=2)
    assert distance.amin(dim=1).max() < 1e-5


@pytest.mark.parametrize(
    ("model", "rule", "message"),
    [
        ("mlp,hidden=64,activation=tanh", LocalRule(), "followed by no ReLU"),
        ("convnet,width=8", LocalRule(), "is a convolution"),
        ("mlp,hidden=64,bias=false", LocalRule(), "has no bias"),
        ("mlp,hidden=64", LocalRule(share="delta", epochs=2), "2 local steps"),
        ("mlp,hidden=64", LocalRule(share="delta", optimizer="adam"), "trained by adam"),
    ],
)
def test_spear_says_which_layer_it_looked_at_and_why_not(model, rule, message, task):
    with pytest.raises(NotApplicable, match=message):
        attack(seen(model, task, 2, rule)[1], "spear")


def test_spear_fails_loudly_on_noise(task):
    _, observation = seen("mlp,hidden=64", task, 3)
    source = torch.Generator().manual_seed(0)
    noise = {n: t + 1e-3 * torch.randn(t.shape, generator=source) for n, t in observation.update.tensors.items()}
    with pytest.raises(NotApplicable, match="no gap"):
        attack(replace(observation, update=Update("gradient", noise)), "spear")


def test_spear_fails_loudly_where_pictures_depend_on_one_another(task):
    batch = noisy(3, task)
    mixture = batch.pictures[:2].mean(dim=0)
    _, observation = seen(
        "mlp,hidden=64", task, 3, batch=replace(batch, pictures=torch.stack([*batch.pictures[:2], mixture]))
    )
    with pytest.raises(NotApplicable, match="pass an open ReLU"):
        attack(observation, "spear,draws=40000")


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_linear_closed_form_is_exact_to_1e_6_in_single_precision(decay, cifar):
    rule = LocalRule(share="delta", lr=1.0, weight_decay=decay)
    batch, observation = seen("mlp,hidden=512", cifar, 1, rule)
    assert error(attack(observation, "linear"), batch) < (1e-6 if not decay else 1e-4)


def test_the_linear_closed_form_names_layer_and_reason(task):
    with pytest.raises(NotApplicable, match=r"layer 0 \(Conv2d\) is a convolution"):
        attack(seen("convnet,width=8", task, 1)[1], "linear")


@pytest.mark.parametrize(
    ("rule", "tolerance"),
    [
        (LocalRule(share="delta", lr=0.5, weight_decay=0.1), 1e-6),
        (LocalRule(share="delta", lr=1e-4, epochs=3, momentum=0.9, weight_decay=0.1), 5e-3),
    ],
    ids=["one step", "small steps with momentum"],
)
def test_a_delta_becomes_its_gradient(rule, tolerance, task):
    batch = noisy(3, task)
    gradient = seen("mlp,hidden=16", task, 3, batch=batch)[1].update.tensors
    turned = mean_gradient(seen("mlp,hidden=16", task, 3, rule, batch)[1], gradient)
    for name, tensor in gradient.items():
        assert (turned[name] - tensor).abs().max() < tolerance


@pytest.mark.parametrize(
    "changes",
    [{}, {"nesterov": True}, {"schedule": "cosine"}, {"proximal": 2.0}, {"momentum": 0.0, "optimizer": "adamw"}],
    ids=str,
)
def test_weight_decay_is_taken_off_several_steps_exactly(changes, task):
    """Where no gradient arrives, a delta is weight decay alone, and its mean gradient 0."""
    usual = LocalRule(share="delta", lr=0.3, epochs=4, momentum=0.9, weight_decay=0.1)
    network = build_network(task, nn.Sequential(nn.Flatten(), nn.Linear(768, 8), Dead(), nn.Linear(8, 4)))
    o = observe(simulate(network, replace(usual, **changes), noisy(3, task)), ThreatModel())
    assert float(o.update.tensors["1.weight"].abs().max()) > 1e-3
    assert float(mean_gradient(o, ["1.weight"])["1.weight"].abs().max()) < 1e-6


class Dead(nn.Module):
    def forward(self, x):
        return 0 * x


def test_a_delta_without_its_rule_is_only_turned_around(task):
    observation = replace(seen("mlp,hidden=16", task, 3, LocalRule(share="delta", weight_decay=0.1))[1], rule=None)
    for name, turned in mean_gradient(observation, observation.update.tensors).items():
        assert torch.equal(turned, -observation.update.tensors[name].double())


@pytest.mark.parametrize("model", ["vit,prenorm=false,skip=false", "vit,prenorm=false,skip=false,class_token=false"])
@pytest.mark.parametrize("rule", [LocalRule(), LocalRule(share="delta", lr=1.0)], ids=["gradient", "delta"])
def test_april_reads_a_qualifying_transformer(model, rule, cifar):
    """Single precision leaves its rounding times the condition of the system, here about 1e4."""
    batch, observation = seen(model, cifar, 1, rule)
    found = attack(observation, "april")
    assert error(found, batch) < 5e-3
    assert (found.pictures - batch.pictures).abs().mean() < 2e-4
    assert found.notes["residual"] < 1e-5


def test_april_is_exact_in_double_precision(task):
    network = build_network(task, "vit,prenorm=false,skip=false,dim=96")
    double = replace(network, weights={name: tensor.double() for name, tensor in network.weights.items()})
    module = double.module().double()
    batch = noisy(1, task)
    names = [name for name, _ in module.named_parameters()]
    loss = F.cross_entropy(module(task.normalize(batch.pictures.double())), batch.y)
    tensors = dict(zip(names, torch.autograd.grad(loss, list(module.parameters())), strict=True))
    found = Attention("embedding.weight", "position", ("blocks.0.attention.qkv.weight",))
    matrix, right = found.system(double, tensors)
    tokens = torch.linalg.pinv(matrix) @ right - double.weights["position"][0]
    picture = task.denormalize(unembed(double, tokens, found.embedding))
    assert (picture - batch.pictures).abs().max() < 1e-8


@pytest.mark.parametrize(
    ("model", "count", "message"),
    [
        ("vit", 1, "LayerNorm blocks.0.norm1 stands between"),
        ("vit,prenorm=false", 1, "has a shortcut around it"),
        ("vit,prenorm=false,skip=false,dim=48", 1, "more unknowns than equations"),
        ("vit,prenorm=false,skip=false,depth=1", 1, "cannot be told apart"),
        ("vit,prenorm=false,skip=false", 2, "2 pictures; the closed form reads one"),
        ("convnet,width=8", 1, "does not begin with a convolution of patches"),
    ],
)
def test_april_says_why_it_does_not_apply(model, count, message, cifar):
    with pytest.raises(NotApplicable, match=message):
        attack(seen(model, cifar, count)[1], "april")


def test_april_sees_dropout_behind_the_positions(cifar):
    rule = LocalRule(dropout=0.3)
    with pytest.raises(NotApplicable, match="leave a residual"):
        attack(seen("vit,prenorm=false,skip=false", cifar, 1, rule)[1], "april")


def test_the_diagnosis_needs_no_names(task):
    """Functional activations and a transformer of torch's own layers are recognised by what flows."""

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(768, 32), nn.Linear(32, 4)

        def forward(self, x):
            return self.second(F.relu(self.first(x.flatten(1))))

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 64, 4, 4)
            self.where = nn.Parameter(torch.randn(16, 64))
            self.mix = nn.MultiheadAttention(64, 4, batch_first=True)
            self.head = nn.Linear(64, 4)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2) + self.where
            return self.head(self.mix(x, x, x, need_weights=False)[0].square().mean(dim=1))

    functional, tokens = build_network(task, Functional()), build_network(task, Tokens())
    assert [f.qualifies for f in diagnose(functional) if f.attack == "spear"] == [True, False]
    assert [f.layer for f in diagnose(tokens) if f.attack == "april" and f.qualifies] == ["mix"]
    batch, observation = seen(tokens, task, 1)
    assert error(attack(replace(observation, labels=batch.y), "april"), batch) < 1e-2


def test_the_diagnosis_of_an_mlp(task):
    network = build_network(task, "mlp,hidden=32-16")
    assert why(network, "spear")[0] == "sees the picture, has a bias and feeds a ReLU: exact"
    assert "sees features" in why(network, "linear")[1]
    assert "about 2^63 draws" in why(network, "spear", count=64)[0]
    assert "4 examples" in why(network, "linear", count=4)[0]
    assert summary(diagnose(network))[0].startswith("linear: 1 of 3 layers qualify; 1 (Linear) sees the picture")


def test_the_diagnosis_of_batchnorm_behind_a_linear_layer(task):
    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    network = build_network(task, module)
    assert "gradient of its bias vanishes in training mode" in why(network, "linear")[0]
    assert why(network, "linear", rule=LocalRule(mode="eval"))[0] == "sees the picture and has a bias: exact"
    assert "no ReLU" in why(network, "spear", rule=LocalRule(mode="eval"))[0]


def test_the_diagnosis_of_a_residual_network(task):
    findings = diagnose(build_network(task, "resnet,blocks=1-1,width=8"))
    assert not any(finding.qualifies for finding in findings)
    assert "BatchNorm2d is not invertible" in findings[-1].why
    assert "no plain chain" in findings[-1].why
    lines = summary(findings)
    assert [line.split(":")[0] for line in lines] == ["linear", "spear", "april", "patch_positions", "rgap"]
    assert lines[0] == (
        "linear: 0 of 7 layers qualify; stem.0 (Conv2d) is a convolution, whose gradient is a sum over positions."
    )


def test_layers_come_in_the_order_of_the_forward_pass(task):
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(8, 4), nn.Linear(768, 8)

        def forward(self, x):
            return self.last(self.first(x.flatten(1)).relu())

    findings = diagnose(build_network(task, Reversed()))
    assert [f.layer for f in findings if f.attack == "linear"] == ["first", "last"]


def test_rgaps_counts_by_hand():
    """3x8x8 pictures; 4 filters of 3x3, stride 1, padding 1; then 8 filters of 3x3, stride 2, padding 1.

    The second: 4*8*9 = 288 gradient, 8*4*4 = 128 forward and 4*(100 - 64) = 144 padding equations for 400 unknowns:
    short of none, 160 too many. The first: 108 gradient, 256 forward and 108 padding equations for 300 unknowns, 172
    too many, 332 in all.
    """
    task = Task((3, 8, 8), 4, (0.5,) * 3, (0.25,) * 3)

    def module(activation):
        first, second = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 8, 3, 2, 1)
        return nn.Sequential(first, activation, second, activation, nn.Flatten(), nn.Linear(128, 4))

    network = build_network(task, module(nn.LeakyReLU()))
    first, second = [f for f in diagnose(network) if f.attack == "rgap"]
    assert "108 gradient, 256 forward and 108 padding equations for 300 unknowns, a deficiency of -332" in first.why
    assert "288 gradient, 128 forward and 144 padding equations for 400 unknowns, a deficiency of -160" in second.why
    assert first.qualifies
    assert second.qualifies

    assert "2 pictures instead of one" in why(network, "rgap", count=2)[0]
    assert "an indication only: ReLU is not invertible" in why(build_network(task, module(nn.ReLU())), "rgap")[0]
    short = nn.Sequential(nn.Conv2d(3, 1, 3, 2, 1), nn.Flatten(), nn.Linear(16, 4))
    finding = diagnose(build_network(task, short))[-1]
    assert (3 * 64 - 27 - 16, finding.qualifies) == (149, False)
    assert "a deficiency of 149" in finding.why


def test_classes_go_with_the_pictures_that_linear_reads(task):
    """Three exact pictures in the wrong order would not explain the update."""
    round, observation = observed("mlp,hidden=512", task, threat=ThreatModel("known"), count=3)
    found = attack(observation, "linear")
    context = SearchContext(observation, LocalRule(), found.y, 0)
    assert matching_term(context, task.normalize(found.pictures)) < 1e-6
    distances = torch.cdist(found.pictures.flatten(1), round.batch.pictures.flatten(1))
    assert (found.y == round.batch.y[distances.argmin(1)]).all()


def test_a_linear_layer_on_the_last_axis_does_not_see_the_picture(task):
    class OnColumns(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(16, 8), nn.Linear(3 * 16 * 8, 4)

        def forward(self, x):
            return self.head(torch.relu(self.mix(x)).flatten(1))

    assert not any(f.qualifies for f in diagnose(build_network(task, OnColumns())) if f.attack == "linear")


def test_april_refuses_an_embedding_that_cannot_be_inverted(task):
    network = build_network(task, "vit,patch=8,dim=48,prenorm=false,skip=false")
    april = next(f for f in diagnose(network) if f.attack == "april")
    assert not april.qualifies
    assert "cannot be inverted" in april.why
