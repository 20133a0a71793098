"""The client step, written once.

:func:`local_signal` runs in the simulated client and, with ``differentiable=True``, inside the attack. So the distance
between an update and its simulation at the truth is 0 for every model and every rule without randomness.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.dropout import _DropoutNd

from leakmap.errors import BadSetting
from leakmap.seeds import generator
from leakmap.task import Loss

Share = Literal["gradient", "delta"]
Mode = Literal["train", "eval"]


@dataclass(frozen=True)
class LocalRule:
    """What a client does with its pictures before it shares something.

    Args:
        share: ``gradient``: of the loss over all its pictures; ``delta``: weights after local training minus before.
        mode: ``train`` uses batch statistics and dropout, ``eval`` running statistics and none.
        epochs: Passes over the pictures (``delta`` only).
        batch_size: Pictures of one local step, in their order, the last one possibly partial; None: all of them.
        lr: Learning rate (``delta`` only).
        momentum: Of SGD, in [0, 1).
        weight_decay: L2 for SGD and Adam, decoupled for AdamW.
        optimizer: ``sgd``, ``adam`` or ``adamw``, with torch's defaults and fresh state.
        dropout: Rate that replaces the rate of every dropout layer of the model; None leaves them.
        accumulate: Micro-batches that the pictures of a step are split into (gradient accumulation): gradients are
            averaged over the pictures, BatchNorm sees every micro-batch alone.
        shuffle: Whether each epoch goes through the pictures in an order of its own (``delta`` only).
    """

    share: Share = "gradient"
    mode: Mode = "train"
    epochs: int = 1
    batch_size: int | None = None
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    dropout: float | None = None
    accumulate: int = 1
    shuffle: bool = False

    def __post_init__(self) -> None:
        checks = [
            (self.share in ("gradient", "delta"), "share", "'gradient' or 'delta'"),
            (self.mode in ("train", "eval"), "mode", "'train' or 'eval'"),
            (self.optimizer in ("sgd", "adam", "adamw"), "optimizer", "'sgd', 'adam' or 'adamw'"),
            (self.epochs >= 1, "epochs", "at least 1"),
            (self.batch_size is None or self.batch_size >= 1, "batch_size", "at least 1, or None for all"),
            (self.lr > 0, "lr", "positive"),
            (0 <= self.momentum < 1, "momentum", "in [0, 1)"),
            (self.weight_decay >= 0, "weight_decay", "at least 0"),
            (self.dropout is None or 0 <= self.dropout < 1, "dropout", "in [0, 1), or None"),
            (self.accumulate >= 1, "accumulate", "at least 1"),
        ]
        for good, name, expected in checks:
            if not good:
                raise BadSetting(f"A local rule's {name} must be {expected}; got {getattr(self, name)!r}.")
        if self.share == "gradient" and (self.epochs != 1 or self.batch_size is not None):
            raise BadSetting("A client that shares a gradient takes no local steps; use share='delta' for several.")
        if self.share == "gradient" and self.shuffle:
            raise BadSetting("A gradient over all pictures has no order; use share='delta' to shuffle.")
        if self.share == "gradient" and (self.optimizer != "sgd" or self.momentum or self.weight_decay):
            raise BadSetting("A shared gradient has not been through an optimiser; use share='delta' for one.")
        if self.momentum and self.optimizer != "sgd":
            raise BadSetting(f"momentum belongs to sgd; {self.optimizer} has moments of its own.")

    def steps(self, count: int) -> int:
        """Local steps that a client with ``count`` pictures takes."""
        return self.epochs * -(-count // (self.batch_size or count))

    def forwards(self, count: int) -> int:
        """Forward passes in training that a client with ``count`` pictures makes: BatchNorm counts each of them."""
        size = self.batch_size or count
        parts = (min(size, count - first) for first in range(0, count, size))
        return self.epochs * sum(len(list(_slices(part, self._micro(part)))) for part in parts)

    def _micro(self, part: int) -> int:
        return -(-part // self.accumulate)


_STOCHASTIC_DEPTH = {"StochasticDepth": "p", "DropPath": "drop_prob"}
"""Layer -> attribute with its rate, in torchvision and timm."""


@dataclass(frozen=True)
class Signal:
    """What a client step yields: the shared tensors and every buffer afterwards, by name."""

    tensors: dict[str, Tensor]
    buffers: dict[str, Tensor]


def arrange(module: nn.Module, rule: LocalRule, *, dropout: bool = True) -> nn.Module:
    """Puts a module into the mode that the rule asks for, in place; returns it.

    Dropout is every layer of torch's, the dropout of attention, and stochastic depth (torchvision's and timm's). A rate
    replaces that of dropout layers and attention; a rate of 0 turns stochastic depth off too.

    Args:
        module: Ready for second derivatives, see :meth:`leakmap.models.network.Network.module`.
        rule: Gives mode and dropout rate.
        dropout: False turns dropout off: the expected network, for a simulation that cannot know the masks.
    """
    module.train(rule.mode == "train")
    rate = rule.dropout if dropout else 0.0
    if rate is None:
        return module
    for layer in module.modules():
        if isinstance(layer, _DropoutNd):
            layer.p = rate
        elif isinstance(layer, nn.MultiheadAttention):
            layer.dropout = rate
        elif rate == 0 and (name := _STOCHASTIC_DEPTH.get(type(layer).__name__)):
            layer.__dict__[name] = 0.0
    return module


def local_signal(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    rule: LocalRule,
    loss: Loss,
    *,
    differentiable: bool = False,
    dropout_seed: int | None = None,
    order_seed: int | None = None,
) -> Signal:
    """What a client that starts from ``weights`` and holds ``(x, y)`` shares.

    Args:
        module: Arranged by :func:`arrange`; its own weights are not used and nothing of it changes.
        weights: Every parameter and buffer by name.
        x: ``(N, C, H, W)``, normalised; or ``(epochs, N, C, H, W)``, an attacker's own pictures for every epoch.
        y: What the loss takes, first dimension ``N``.
        rule: The local rule.
        loss: ``loss(outputs, y) -> scalar``.
        differentiable: Whether the result carries a graph back to ``x`` (and ``y``).
        dropout_seed: Seeds the dropout masks; None draws from torch's global stream.
        order_seed: Seeds the orders of a rule that shuffles; None keeps the order of ``x``.
    """
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    buffers = {name: weights[name].detach().clone() for name, _ in module.named_buffers() if name in weights}
    fixed = {name: weights[name] for name, p in module.named_parameters() if not p.requires_grad}
    start = [weights[name].detach().requires_grad_() for name in trainable]

    def gradient(parameters: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
        state = {**dict(zip(trainable, parameters, strict=True)), **fixed, **buffers}
        parts = list(_slices(len(x), rule._micro(len(x))))
        with sdpa_kernel(SDPBackend.MATH):
            values = [loss(functional_call(module, state, (x[part],)), y[part]) for part in parts]
        value = values[0]
        if len(parts) > 1:
            value = torch.stack([v * ((p.stop - p.start) / len(x)) for p, v in zip(parts, values, strict=True)]).sum()
        return list(torch.autograd.grad(value, parameters, create_graph=differentiable, materialize_grads=True))

    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else [], enabled=dropout_seed is not None):
        if dropout_seed is not None:
            torch.manual_seed(dropout_seed)
        if rule.share == "gradient":
            shared = gradient(start, x, y)
        else:
            parameters, step = start, OPTIMIZERS[rule.optimizer](rule)
            for epoch in range(rule.epochs):
                held, labels = x[epoch] if x.ndim == 5 else x, y
                if rule.shuffle and order_seed is not None:
                    order = torch.randperm(len(held), generator=generator(order_seed, "epoch", epoch)).to(x.device)
                    held, labels = held[order], y[order]
                for part in _slices(len(held), rule.batch_size or len(held)):
                    parameters = step(parameters, gradient(parameters, held[part], labels[part]))
                    if not differentiable:
                        parameters = [p.detach().requires_grad_() for p in parameters]
            shared = [after - before.detach() for after, before in zip(parameters, start, strict=True)]
    if not differentiable:
        shared = [tensor.detach() for tensor in shared]
    return Signal(dict(zip(trainable, shared, strict=True)), buffers)


def _slices(count: int, size: int) -> Iterator[slice]:
    """``0..count`` in parts of ``size``, the last one possibly smaller."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


Step = Callable[[list[Tensor], list[Tensor]], list[Tensor]]


def _sgd(rule: LocalRule) -> Step:
    velocity: list[Tensor] = []

    def step(parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        if rule.weight_decay:
            gradients = [g + rule.weight_decay * p for g, p in zip(gradients, parameters, strict=True)]
        if rule.momentum:
            previous = [rule.momentum * v for v in velocity] or [torch.zeros_like(g) for g in gradients]
            velocity[:] = gradients = [v + g for v, g in zip(previous, gradients, strict=True)]
        return [p - rule.lr * g for p, g in zip(parameters, gradients, strict=True)]

    return step


def _adam(rule: LocalRule) -> Step:
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    first: list[Tensor] = []
    second: list[Tensor] = []
    decoupled = rule.optimizer == "adamw"
    count = 0

    def root(v: Tensor) -> Tensor:
        return torch.where(v > 0, v.where(v > 0, 1.0).sqrt(), 0.0)

    def step(parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        nonlocal count
        count += 1
        if rule.weight_decay and decoupled:
            parameters = [p * (1 - rule.lr * rule.weight_decay) for p in parameters]
        elif rule.weight_decay:
            gradients = [g + rule.weight_decay * p for g, p in zip(gradients, parameters, strict=True)]
        if not first:
            first.extend(torch.zeros_like(g) for g in gradients)
            second.extend(torch.zeros_like(g) for g in gradients)
        first[:] = [beta1 * m + (1 - beta1) * g for m, g in zip(first, gradients, strict=True)]
        second[:] = [beta2 * v + (1 - beta2) * g * g for v, g in zip(second, gradients, strict=True)]
        size, scale = rule.lr / (1 - beta1**count), (1 - beta2**count) ** 0.5
        moved = zip(parameters, first, second, strict=True)
        return [p - size * m / (root(v) / scale + epsilon) for p, m, v in moved]

    return step


OPTIMIZERS: dict[str, Callable[[LocalRule], Step]] = {"sgd": _sgd, "adam": _adam, "adamw": _adam}
