"""The client step equals a hand-written torch.optim loop."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from leakmap import Batch, LocalRule, Network, Spec, Task, build_network, simulate
from leakmap.errors import BadSetting, ModelError
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


SCHEDULERS = torch.optim.lr_scheduler
RULES = {
    "fedprox": ({"proximal": 0.7, "momentum": 0.9}, None, ""),
    "clipped after the proximal term, before decay": (
        {"proximal": 0.7, "clip_norm": 1.5, "weight_decay": 0.05},
        None,
        "",
    ),
    "clipped, for adam": ({"clip_norm": 2.0, "optimizer": "adam"}, None, ""),
    "nesterov": ({"momentum": 0.9, "nesterov": True, "weight_decay": 0.05}, None, ""),
    "step": ({"schedule": "step,size=2,gamma=0.3"}, lambda o: SCHEDULERS.StepLR(o, 2, 0.3), "epoch"),
    "step, per step": ({"schedule": "step,size=2,per=step"}, lambda o: SCHEDULERS.StepLR(o, 2), "step"),
    "exponential": (
        {"schedule": "exponential,gamma=0.8", "optimizer": "adamw", "weight_decay": 0.1},
        lambda o: SCHEDULERS.ExponentialLR(o, 0.8),
        "epoch",
    ),
    "cosine": ({"schedule": "cosine", "momentum": 0.9}, lambda o: SCHEDULERS.CosineAnnealingLR(o, 6), "step"),
    "cosine beyond its length": (
        {"schedule": "cosine,length=2,least=0.002,per=epoch"},
        lambda o: SCHEDULERS.CosineAnnealingLR(o, 2, 0.002),
        "epoch",
    ),
    "class weights": ({"class_weights": "1/4/0.5/2"}, None, ""),
}


@pytest.mark.parametrize("name", RULES)
def test_what_clients_change_in_a_step_equals_a_torch_loop(name, task):
    settings, scheduler, per = RULES[name]
    settings = {"lr": 0.05, **settings}
    weights = settings.pop("class_weights", "")
    loss = Spec("cross_entropy", {"class_weights": weights} if weights else {})
    rule = LocalRule("delta", epochs=3, batch_size=3, **settings)
    network = in_float64(build_network(replace(task, loss=loss), "resnet,blocks=1-1,width=8"))
    batch = Batch(batch_of(5, task).pictures.double(), batch_of(5, task).y)
    found = simulate(network, rule, batch).update.tensors
    plain = simulate(
        replace(network, task=task), LocalRule("delta", epochs=3, batch_size=3, lr=0.05, momentum=rule.momentum), batch
    ).update.tensors

    module = network.module().double()
    module.load_state_dict(dict(network.weights))
    before = [p.detach().clone() for p in module.parameters()]
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[rule.optimizer]
    own = {"momentum": rule.momentum, "nesterov": rule.nesterov} if rule.optimizer == "sgd" else {}
    optimizer = make(module.parameters(), lr=0.05, weight_decay=rule.weight_decay, **own)
    changing = scheduler and scheduler(optimizer)
    criterion = torch.nn.CrossEntropyLoss(torch.tensor([1, 4, 0.5, 2]).double() if weights else None)
    norms = []
    for _ in range(3):
        for x, y in DataLoader(TensorDataset(task.normalize(batch.pictures), batch.y), batch_size=3):
            optimizer.zero_grad()
            away = sum((p - p0).square().sum() for p, p0 in zip(module.parameters(), before, strict=True))
            (criterion(module(x), y) + rule.proximal / 2 * away).backward()
            if rule.clip_norm is not None:
                norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), rule.clip_norm)))
            optimizer.step()
            if per == "step":
                changing.step()
        if per == "epoch":
            changing.step()
    for (key, after), start in zip(module.named_parameters(), before, strict=True):
        assert torch.allclose(found[key], (after - start).detach(), rtol=1e-9, atol=1e-12), key
    assert not all(torch.allclose(found[key], plain[key]) for key in plain)
    assert not norms or min(norms) < rule.clip_norm < max(norms)


def test_gradient_equals_backward_with_label_smoothing(task):
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
        ({"proximal": 0.1}, "proximal term, which is 0"),
        ({"schedule": "cosine"}, "no step that a schedule"),
        ({"clip_norm": 2.0}, "the defence clip_noise,clip=2,noise=0"),
        ({"share": "delta", "clip_norm": 0.0}, "clip_norm must be positive"),
        ({"share": "delta", "nesterov": True}, "needs a momentum"),
        ({"share": "delta", "schedule": "cosin"}, "did you mean cosine"),
        ({"share": "delta", "schedule": "step"}, "'size': Field required"),
        ({"share": "delta", "schedule": "exponential,gamma=0"}, "greater than 0"),
    ],
)
def test_impossible_rules_are_refused_in_one_sentence(settings, word):
    with pytest.raises(BadSetting, match=word):
        LocalRule(**settings)


def test_class_weights_that_fit_neither_the_classes_nor_the_rule_are_refused(task):
    for weights, word in (("1/2", "4 classes need as many"), ("1/2/-1/1", "at least 0"), ("a/b", "W/W/…")):
        with pytest.raises(BadSetting, match=word):
            replace(task, loss=Spec("cross_entropy", {"class_weights": weights}))
    weighted = replace(task, loss=Spec("cross_entropy", {"class_weights": "1/2/1/1"}))
    with pytest.raises(ModelError, match="class weights are divided by their sum"):
        simulate(build_network(weighted, "mlp"), LocalRule(defence="dp_sgd,clip=1,noise=0"), batch_of(2, task))


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
