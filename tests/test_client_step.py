"""The client step equals a hand-written torch.optim loop."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from leakmap import Batch, LocalRule, Network, Task, build_network, simulate
from leakmap.errors import BadSetting
from tests.conftest import batch_of

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "decay": (torch.optim.SGD, {"momentum": 0.5, "weight_decay": 0.05}),
    "adam": (torch.optim.Adam, {"weight_decay": 0.01}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
}


def in_float64(network: Network) -> Network:
    """Adam divides rounding by rounding where a gradient vanishes; in float64 that stays below 1e-6."""
    return replace(network, weights={k: t.double() if t.is_floating_point() else t for k, t in network.weights.items()})


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_delta_and_buffers_equal_a_torch_loop_over_a_data_loader_that_keeps_or_drops_a_partial_last_batch(
    kind, mode, task
):
    make, settings = OPTIMIZERS[kind]
    name = kind if kind.startswith("adam") else "sgd"
    drop = kind in ("sgd", "adam")
    rule = LocalRule("delta", mode, epochs=2, batch_size=3, lr=0.02, optimizer=name, drop_last=drop, **settings)
    network, batch = in_float64(build_network(task, "resnet,blocks=1-1,width=8")), batch_of(5, task)
    batch = Batch(batch.pictures.double(), batch.y)
    round = simulate(network, rule, batch)

    module = network.module().double().train(mode == "train")
    module.load_state_dict(dict(network.weights))
    before = copy.deepcopy(module.state_dict())
    optimizer = make(module.parameters(), lr=0.02, **settings)
    x = task.normalize(batch.pictures)
    loader = DataLoader(TensorDataset(x, batch.y), batch_size=3, drop_last=drop)
    for _ in range(2):
        for pictures, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(module(pictures), labels).backward()
            optimizer.step()
    after = module.state_dict()
    for key, tensor in round.update.tensors.items():
        assert torch.allclose(tensor, after[key] - before[key], atol=1e-6), key
    for key, tensor in round.buffers.items():
        assert torch.allclose(tensor, after[key], atol=1e-6), key
    assert round.buffers["stem.1.num_batches_tracked"] == ((2 if drop else 4) if mode == "train" else 0)
    assert list(round.update.tensors) == [key for key, _ in module.named_parameters()]


def test_gradient_equals_backward_with_label_smoothing(task):
    from leakmap import Spec

    smooth = Task(task.shape, task.classes, task.mean, task.std, Spec("cross_entropy", {"label_smoothing": 0.1}))
    network, batch = build_network(smooth, "convnet,width=8"), batch_of(3, task)
    round = simulate(network, LocalRule(), batch)
    module = network.module()
    F.cross_entropy(module(task.normalize(batch.pictures)), batch.y, label_smoothing=0.1).backward()
    for key, parameter in module.named_parameters():
        assert torch.allclose(round.update.tensors[key], parameter.grad, atol=1e-6)


def test_own_loss_function(task):
    def loss(outputs, y):
        return F.mse_loss(outputs.softmax(1), F.one_hot(y, 4).float())

    network, batch = build_network(task, "mlp,hidden=8", loss=loss), batch_of(2, task)
    own = simulate(network, LocalRule(), batch).update.tensors
    usual = simulate(build_network(task, "mlp,hidden=8"), LocalRule(), batch).update.tensors
    assert not any(torch.allclose(own[key], usual[key]) for key in own)


def test_dropout_is_seeded_replaceable_and_off_in_inference_mode(task):
    network, batch = build_network(task, "convnet,width=8,dropout=0.3"), batch_of(2, task)

    def shared(rule, seed):
        return torch.cat([t.flatten() for t in simulate(network, rule, batch, seed).update.tensors.values()])

    train = LocalRule()
    assert torch.equal(shared(train, 1), shared(train, 1))
    assert not torch.equal(shared(train, 1), shared(train, 2))
    assert torch.equal(shared(LocalRule(dropout=0.0), 1), shared(LocalRule(dropout=0.0), 2))
    assert torch.equal(shared(LocalRule(mode="eval"), 1), shared(LocalRule(mode="eval"), 2))
    state = torch.get_rng_state()
    shared(train, 3)
    assert torch.equal(state, torch.get_rng_state())


def test_frozen_parameters_are_not_shared(task):
    from torch import nn

    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 4))
    module[1].requires_grad_(False)
    round = simulate(build_network(task, module), LocalRule(), batch_of(2, task))
    assert list(round.update.tensors) == ["3.weight", "3.bias"]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"epochs": 2}, "share='delta'"),
        ({"share": "delta", "epochs": 0}, "epochs"),
        ({"share": "delta", "lr": 0}, "lr"),
        ({"share": "weights"}, "share"),
        ({"mode": "test"}, "mode"),
        ({"share": "delta", "optimizer": "adam", "momentum": 0.9}, "momentum"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_rules_are_refused_in_one_sentence(settings, word):
    with pytest.raises(BadSetting, match=word):
        LocalRule(**settings)


def test_no_graph_leads_from_an_update_to_the_private_batch(task):
    network, batch = build_network(task, "mlp,hidden=8"), batch_of(1, task)
    batch = Batch(batch.pictures.requires_grad_(), batch.y)
    round = simulate(network, LocalRule(share="delta"), batch)
    assert all(t.grad_fn is None and not t.requires_grad for t in round.update.tensors.values())


def test_a_shuffling_client_takes_every_epoch_in_an_order_of_its_own(task):
    rule = LocalRule("delta", epochs=2, batch_size=2, lr=0.1)
    network, batch = build_network(task, "convnet,width=4"), batch_of(6, task)
    plain = simulate(network, rule, batch).update.tensors
    shuffled = [simulate(network, replace(rule, shuffle=True), batch, seed).update.tensors for seed in (1, 1, 2)]
    assert all(torch.equal(shuffled[0][name], shuffled[1][name]) for name in plain)
    assert not all(torch.equal(shuffled[0][name], shuffled[2][name]) for name in plain)
    assert not all(torch.equal(shuffled[0][name], plain[name]) for name in plain)
