"""Every parametric family, and the libraries: second derivatives exist and the client step is written once."""

import pytest
import torch
from torch import nn

from leakmap import LocalRule, Network, Task, attack, build_network, models, simulate
from leakmap.attacker.matching.context import SearchContext
from leakmap.errors import UsageError
from leakmap.threat import ThreatModel, observe
from tests.conftest import batch_of, matching_term
from tests.contract.examples import examples, installed, specification

VARIANTS = [
    "resnet,blocks=1-1,width=8,preact=true",
    "resnet,blocks=1-1,width=8,preact=true,shortcut_from=act,skip=false",
    "resnet,blocks=1,width=8,norm=group,activation=gelu,stem=patch",
    "resnet,blocks=1,width=8,norm=instance,stem=imagenet",
    "resnet,blocks=1-1,width=8,norm=layer,preact=true,final_norm=true",
    "resnet,blocks=1-1,width=8,norm=none,dropout=0.2",
    "convnet,width=8,norm=batch,head=pool",
    "mlp,hidden=16-8,bias=false",
]
RULES = {
    "gradient": {},
    "sgd, two steps": {"share": "delta", "batch_size": 2},
    "momentum and decay, two epochs": {"share": "delta", "epochs": 2, "momentum": 0.9, "weight_decay": 1e-2},
    "adam": {"share": "delta", "optimizer": "adam", "epochs": 2},
    "adamw, partial last batch": {
        "share": "delta",
        "optimizer": "adamw",
        "batch_size": 3,
        "weight_decay": 0.1,
    },
}
DETECTION = Task((3, 32, 64), 4, (0.5, 0.45, 0.4), (0.25, 0.25, 0.3), objects=2)
SMALL_RGB = Task((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)


def distance_at_truth(network: Network, rule: LocalRule, simulated: LocalRule | None = None, count: int = 4) -> float:
    round = simulate(network, rule, batch_of(count, network.task))
    context = SearchContext(observe(round, ThreatModel()), simulated or rule, round.batch.y, 0)
    return matching_term(context, network.task.normalize(round.batch.pictures))


def network_of(name, example, folder, task) -> Network:
    """In a task that it is for; a library's networks take larger pictures."""
    if models.of_objects(name):
        task = DETECTION
    elif name.endswith("/"):
        task = SMALL_RGB
    with installed():
        return build_network(task, specification(example, folder))


CASES = [
    pytest.param(*model.values, RULES[rule], id=f"{model.id}-{rule}")
    for model in [*examples(models), *(pytest.param(("resnet", variant), id=variant) for variant in VARIANTS)]
    for rule in (RULES if not model.values[0][0].endswith("/") else ["gradient"])
]
"""The networks of libraries are large: of those one rule."""


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("model", "rule"), CASES)
def test_distance_at_the_truth_is_zero(model, rule, mode, task, tmp_path):
    quiet = LocalRule(mode=mode, dropout=0.0, **rule)
    assert distance_at_truth(network_of(*model, tmp_path, task), quiet) < 1e-6


@pytest.mark.parametrize("model", ["resnet,blocks=1-1,width=8", VARIANTS[0], "convnet,width=8,norm=batch"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_wrong_mode_is_seen_on_batchnorm_networks(model, mode, task):
    other = {"train": "eval", "eval": "train"}[mode]
    assert distance_at_truth(build_network(task, model), LocalRule(mode=mode), LocalRule(mode=other)) > 1e-4


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "convnext_tiny"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_torchvision_networks_are_made_differentiable(name, mode):
    network = build_network(SMALL_RGB, f"torchvision/{name}")
    assert distance_at_truth(network, LocalRule(mode=mode, dropout=0.0), count=2) < 1e-6


def start_of(model):
    """Fresh weights of a library's network, the name of its head's and the names of its layer scales."""
    if model.startswith("timm/"):
        pytest.importorskip("timm", reason="the extra 'models' is not installed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        found = models.build(model, SMALL_RGB).state_dict()
    head = next(key for key, tensor in found.items() if tensor.ndim == 2 and len(tensor) == 10)
    return found, head, {key for key in found if key.endswith(("layer_scale", "gamma"))}


@pytest.mark.parametrize("name", ["torchvision/convnext_tiny", "timm/convnext_atto"])
def test_the_head_and_layer_scales_of_a_library_network_are_set(name):
    found, head, scales = start_of(f"{name},head_std=0.5,layer_scale=1")
    assert abs(float(found[head].std()) - 0.5) < 0.03
    assert not found[head.replace("weight", "bias")].any()
    assert scales
    assert all(bool((found[key] == 1).all()) for key in scales)


def test_nothing_else_of_a_library_network_is_changed():
    plain, head, scales = start_of("timm/convnext_atto")
    wanted, *_ = start_of("timm/convnext_atto,head_std=0.5,layer_scale=1")
    assert {key for key in plain if not torch.equal(plain[key], wanted[key])} == {head} | scales


def test_a_head_that_is_drawn_anew_follows_the_seed_of_the_network():
    model = "torchvision/mobilenet_v3_small,head_std=0.5"
    first, again, other = (
        build_network(SMALL_RGB, model, seed=seed).weights["classifier.3.weight"] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("torchvision/resnet18,layer_scale=1", "has no layer scales"),
        ("torchvision/resnet18,head_std=-1", "head_std"),
        ("torchvision/resnet18,layer_scale=nan", "layer_scale"),
    ],
)
def test_a_start_that_a_library_network_cannot_have_is_refused(model, why):
    with pytest.raises(UsageError, match=why):
        build_network(SMALL_RGB, model)


def test_the_head_of_zeros_of_torchvisions_vision_transformer_is_drawn_anew():
    head = models.build("torchvision/vit_b_16,head_std=0.02", SMALL_RGB).heads.head
    assert abs(float(head.weight.detach().std()) - 0.02) < 2e-3
    assert not head.bias.any()


@pytest.mark.parametrize("model", examples(models))
def test_no_client_step_touches_the_network(model, task, tmp_path):
    network = network_of(*model, tmp_path, task)
    before = {key: tensor.clone() for key, tensor in network.weights.items()}
    simulate(network, LocalRule(share="delta", epochs=2), batch_of(3, network.task))
    assert all(torch.equal(before[key], network.weights[key]) for key in before)


class Sigmoid(nn.Module):
    """A layer with a first derivative only."""

    def forward(self, x):
        return nn.functional.hardsigmoid(x)


class Step(nn.Module):
    """A layer without any derivative."""

    def forward(self, x):
        return (x > 0).to(x.dtype)


def test_an_operation_without_a_second_derivative_is_attacked_by_differences(task):
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), Sigmoid(), nn.Linear(8, 4))
    round = simulate(build_network(task, model), LocalRule(), batch_of(1, task))
    found = attack(observe(round, ThreatModel()), "inverting_gradients,steps=3")
    assert "against central differences" in str(found.notes["engine"])


def test_a_network_without_a_derivative_is_refused_before_any_work(task):
    from leakmap.errors import ModelError

    with pytest.raises(ModelError, match="needs a derivative"):
        build_network(task, nn.Sequential(nn.Flatten(), nn.Linear(768, 4), Step()))
