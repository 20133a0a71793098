"""Every parametric family, and the libraries: second derivatives exist and the client step is written once."""

import pytest
import torch
from torch import nn

from leakmap import LocalRule, Network, Task, attack, build_network, models, simulate
from leakmap.attacker.matching.scene import Scene
from leakmap.threat import ThreatModel, observe
from tests.conftest import batch_of, matching_term

FAMILIES = [name for name in models.names() if not name.endswith("/")]
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
SMALL = {
    "resnet": "resnet,blocks=1-1,width=8",
    "convnet": "convnet,width=8",
    "mlp": "mlp,hidden=16",
    "vit": "vit,dim=24,depth=2",
}


def distance_at_truth(network: Network, rule: LocalRule, simulated: LocalRule | None = None, count: int = 4) -> float:
    round = simulate(network, rule, batch_of(count, network.task))
    scene = Scene(observe(round, ThreatModel()), simulated or rule, round.batch.y, 0)
    return matching_term(scene, network.task.normalise(round.batch.pictures))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
@pytest.mark.parametrize("model", [SMALL.get(name, name) for name in FAMILIES] + VARIANTS)
def test_distance_at_the_truth_is_zero(model, rule, mode, task):
    network = build_network(task, model)
    quiet = LocalRule(mode=mode, dropout=0.0, **rule)
    assert distance_at_truth(network, quiet) < 1e-6


@pytest.mark.parametrize("model", ["resnet,blocks=1-1,width=8", VARIANTS[0], "convnet,width=8,norm=batch"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_wrong_mode_is_seen_on_batchnorm_networks(model, mode, task):
    other = {"train": "eval", "eval": "train"}[mode]
    assert distance_at_truth(build_network(task, model), LocalRule(mode=mode), LocalRule(mode=other)) > 1e-4


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_torchvision_networks_are_made_differentiable(name, mode):
    task = Task((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)
    network = build_network(task, f"torchvision/{name}")
    count = 4 if name == "resnet18" else 2
    rule = LocalRule(mode=mode, dropout=0.0)
    assert distance_at_truth(network, rule, count=count) < 1e-6


def test_a_vision_transformer_of_timm_runs_under_the_math_kernel():
    pytest.importorskip("timm", reason="the extra 'models' is not installed")
    task = Task((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)
    network = build_network(task, "timm/vit_tiny_patch16_224")
    assert distance_at_truth(network, LocalRule(mode="eval"), count=1) < 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_no_client_step_touches_the_network(name, task):
    network = build_network(task, SMALL.get(name, name))
    before = {key: tensor.clone() for key, tensor in network.weights.items()}
    simulate(network, LocalRule(share="delta", epochs=2), batch_of(3, task))
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
