"""The client step, written once.

:class:`Training` is local training, one gradient at a time. The simulated client runs it through :func:`local_signal`,
and an attack differentiates the same steps. So the distance between an update and its simulation at the truth is 0 for
every model and every rule without randomness.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from leakmap.defences import defence_of
from leakmap.errors import ModelError
from leakmap.local_rule import LocalRule
from leakmap.problem.task import CrossEntropy, Loss, loss_of
from leakmap.seeds import generator

Tensors = Sequence[Tensor]
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
        module: A fresh one, see :meth:`leakmap.models.network.Network.module`.
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


def check_examples_apart(module: nn.Module, rule: LocalRule, loss: Loss | None) -> None:
    """Refuses DP-SGD where the gradient of one example alone is not its part of the batch's.

    Args:
        module: Arranged by :func:`arrange`.
        rule: Gives the defence.
        loss: Of the client.

    Raises:
        ModelError: a layer or the loss mixes examples, or a layer draws other random numbers for one than for all.
    """
    if defence_of(rule.defence).examples is None:
        return
    if isinstance(loss, CrossEntropy) and loss.class_weights:
        raise ModelError(
            "DP-SGD clips the gradient of every example alone, but class weights are divided by their sum over the "
            "batch, which mixes examples; leave class_weights out of the loss."
        )
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.training:
            raise ModelError(
                f"DP-SGD clips the gradient of every example alone, but {name!r} is a BatchNorm layer in training "
                "mode, which mixes them; use GroupNorm or LayerNorm, or --mode eval."
            )
        if layer.training and _rate(layer):
            raise ModelError(
                f"DP-SGD is simulated example by example, but {name!r} drops at random in training mode; turn that "
                "off with --dropout 0, or use --mode eval."
            )


def _rate(layer: nn.Module) -> float:
    if isinstance(layer, _DropoutNd):
        return layer.p
    if isinstance(layer, nn.MultiheadAttention):
        return layer.dropout
    name = _STOCHASTIC_DEPTH.get(type(layer).__name__)
    return float(layer.__dict__[name] or 0.0) if name else 0.0


class Training:
    """Local training of one client, one gradient at a time; nothing of the module changes.

    Args:
        module: Arranged by :func:`arrange`; its own weights are not used.
        weights: Every parameter and buffer by name, as the server sent them.
        rule: The local rule.
        loss: ``loss(outputs, y) -> scalar``; None: the module computes its own from ``(x, y)``.

    Raises:
        ModelError: see :func:`check_examples_apart`.

    Attributes:
        defence: Of the rule.
        names: The trained parameters, in the order of all lists of tensors here.
        start: Their weights at the beginning, leaves that require gradients.
        buffers: Every buffer by name; training-mode passes move them in place.
    """

    def __init__(self, module: nn.Module, weights: Mapping[str, Tensor], rule: LocalRule, loss: Loss | None):
        check_examples_apart(module, rule, loss)
        self.defence = defence_of(rule.defence)
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.start = [weights[name].detach().requires_grad_() for name in self.names]
        self.buffers = {name: weights[name].detach().clone() for name, _ in module.named_buffers() if name in weights}
        self._fixed = {name: weights[name] for name, p in module.named_parameters() if not p.requires_grad}
        self._module, self._rule, self._loss = module, rule, loss
        self._ties = len(list(module.named_parameters(remove_duplicate=False))) > len(list(module.named_parameters()))

    @cached_property
    def scale(self) -> Tensor:
        """Norm of the weights at the beginning, 0-dim."""
        return torch.stack([weight.detach().norm() for weight in self.start]).norm()

    def batch(self, step: int, x: Tensor, y: Tensor, order_seed: int | None = None) -> tuple[Tensor, Tensor]:
        """The mini-batch of a local step.

        Args:
            step: Its number, from 0 to ``rule.steps(N) - 1``.
            x: ``(N, C, H, W)``, normalized; or ``(epochs, N, C, H, W)``, an attacker's own pictures for every epoch.
            y: What the loss takes, first dimension ``N``.
            order_seed: Seeds the orders of a rule that shuffles; None keeps the order of ``x``.
        """
        epoch, part = self._rule.part(step, len(y))
        own = x[epoch] if x.ndim == 5 else x
        if not self._rule.shuffle or order_seed is None:
            # A slice copies nothing, in the inner loop of every search.
            return own[part], y[part]
        held = self._rule.held_by(step, len(y), order_seed).to(x.device)
        return own[held], y[held]

    def objective(self, parameters: Sequence[Tensor], x: Tensor, y: Tensor, factors: Tensor | None = None) -> Tensor:
        """The mean loss of one mini-batch, micro-batch after micro-batch; carries a graph.

        Args:
            parameters: Weights.
            x: Pictures of the mini-batch.
            y: What the loss takes.
            factors: Of :meth:`factors`: by what the loss of every example is multiplied.
        """
        state = {**dict(zip(self.names, parameters, strict=True)), **self._fixed, **self.buffers}
        parts = self._rule.micro_batches(len(x))
        values = [self._mean(state, x[part], y[part], None if factors is None else factors[part]) for part in parts]
        if len(parts) == 1:
            return values[0]
        return torch.stack([v * ((p.stop - p.start) / len(x)) for p, v in zip(parts, values, strict=True)]).sum()

    def _mean(self, state: dict[str, Tensor], x: Tensor, y: Tensor, factors: Tensor | None) -> Tensor:
        if factors is None:
            return self._value(state, x, y)
        losses = [self._value(state, x[i : i + 1], y[i : i + 1]) for i in range(len(y))]
        return (torch.stack(losses) * factors).mean()

    def _value(self, state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        def model(*args: Tensor) -> Any:
            return functional_call(self._module, state, args, tie_weights=self._ties)

        return loss_of(model, self._loss, x, y)

    def factors(self, parameters: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor | None:
        """``(B,)``: by what DP-SGD multiplies the gradient of every example, without a graph; None for other clients.

        Takes one forward and one backward pass for each example.
        """
        if self.defence.examples is None:
            return None
        x, y = x.detach(), y.detach()
        state = {**dict(zip(self.names, parameters, strict=True)), **self._fixed}
        found: list[Tensor] = []
        for i in range(len(x)):
            # The passes that only measure norms must not move the buffers of the training.
            own = {**state, **{name: buffer.clone() for name, buffer in self.buffers.items()}}
            value = self._value(own, x[i : i + 1], y[i : i + 1])
            gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
            found.append(self.defence.examples.factor(gradients))
        return torch.stack(found)

    def advance(
        self, step: int, count: int, parameters: Tensors, gradients: Tensors, memory: Tensors
    ) -> tuple[list[Tensor], list[Tensor]]:
        """:func:`advance` of this client; ``count`` is the number of its pictures."""
        return advance(self._rule, step, count, self.start, parameters, gradients, memory)


def local_signal(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    rule: LocalRule,
    loss: Loss | None,
    *,
    dropout_seed: int | None = None,
    order_seed: int | None = None,
    noise_seed: int | None = None,
    tensors: bool = True,
    steps: int | None = None,
) -> Signal:
    """What a client that starts from ``weights`` and holds ``(x, y)`` shares.

    Args:
        module: Arranged by :func:`arrange`; its own weights are not used and nothing of it changes.
        weights: Every parameter and buffer by name.
        x: ``(N, C, H, W)``, normalized; or ``(epochs, N, C, H, W)``, an attacker's own pictures for every epoch.
        y: What the loss takes, first dimension ``N``.
        rule: The local rule.
        loss: ``loss(outputs, y) -> scalar``; None: the module computes its own from ``(x, y)``.
        dropout_seed: Seeds the dropout masks; None draws from torch's global stream.
        order_seed: Seeds the orders of a rule that shuffles; None keeps the order of ``x``.
        noise_seed: Seeds what is random in the rule's defence; None leaves it out.
        tensors: False leaves the shared tensors out where the buffers do not depend on them, after a single local step.
        steps: Stops a client on its way, after so many local steps of a ``delta``, before its defence treats what it
            would share; None: it takes all.

    Raises:
        ModelError: see :func:`check_examples_apart`.
    """
    training = Training(module, weights, rule, loss)
    defence = training.defence
    source = None if noise_seed is None else generator(noise_seed, "defence")
    parameters, memory, shared = training.start, [], []
    # With a seed, the caller's random stream goes on as if the client had drawn nothing.
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else [], enabled=dropout_seed is not None):
        if dropout_seed is not None:
            torch.manual_seed(dropout_seed)
        if not tensors and rule.steps(len(y)) == 1:
            with torch.no_grad():
                training.objective(parameters, *training.batch(0, x, y, order_seed))
            return Signal({}, training.buffers)
        for step in range(rule.steps(len(y)) if steps is None else steps):
            batch = training.batch(step, x, y, order_seed)
            value = training.objective(parameters, *batch, training.factors(parameters, *batch))
            shared = list(torch.autograd.grad(value, parameters, materialize_grads=True))
            if defence.examples is not None:
                shared = defence.examples.disturbed(shared, source, len(batch[1]))
            if rule.share == "delta":
                with torch.no_grad():
                    parameters, memory = training.advance(step, len(y), parameters, shared, memory)
                parameters = [p.requires_grad_() for p in parameters]
    if rule.share == "delta":
        shared = [after.detach() - before.detach() for after, before in zip(parameters, training.start, strict=True)]
    if steps is None:
        shared = defence.share(shared, source)
    return Signal(dict(zip(training.names, shared, strict=True)), training.buffers)


Optimizer = Callable[[LocalRule, int, float, Tensors, Tensors, Tensors], tuple[list[Tensor], list[Tensor]]]
"""``(rule, step, rate, parameters, gradients, memory) -> (parameters, memory)``."""


def advance(
    rule: LocalRule, step: int, count: int, start: Tensors, parameters: Tensors, gradients: Tensors, memory: Tensors
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and optimiser state after a local step; of plain tensor operations, so it can be differentiated.

    Args:
        rule: The local rule.
        step: Its number, from 0.
        count: Pictures of the client.
        start: Weights that the server sent.
        parameters: Weights before the step.
        gradients: Of the mean loss there.
        memory: State of the optimiser; empty before the first step.
    """
    if rule.proximal:
        away = [p - s.detach() for p, s in zip(parameters, start, strict=True)]
        gradients = [torch.add(g, d, alpha=rule.proximal) for g, d in zip(gradients, away, strict=True)]
    if rule.clip_norm is not None:
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        # torch adds 1e-6 to the norm, and so does this: the two would differ by more than rounding.
        factor = (rule.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        gradients = [gradient * factor for gradient in gradients]
    return _OPTIMIZERS[rule.optimizer](rule, step, rule.rate(step, count), parameters, gradients, memory)


def _sgd(
    rule: LocalRule, step: int, rate: float, parameters: Tensors, gradients: Tensors, memory: Tensors
) -> tuple[list[Tensor], list[Tensor]]:
    if rule.weight_decay:
        gradients = [g + rule.weight_decay * p for g, p in zip(gradients, parameters, strict=True)]
    if not rule.momentum:
        return [torch.sub(p, g, alpha=rate) for p, g in zip(parameters, gradients, strict=True)], []
    velocity = [rule.momentum * v + g for v, g in zip(memory, gradients, strict=True)] if memory else list(gradients)
    moves = velocity
    if rule.nesterov:
        moves = [g + rule.momentum * v for g, v in zip(gradients, velocity, strict=True)]
    return [torch.sub(p, m, alpha=rate) for p, m in zip(parameters, moves, strict=True)], velocity


def _adam(
    rule: LocalRule, step: int, rate: float, parameters: Tensors, gradients: Tensors, memory: Tensors
) -> tuple[list[Tensor], list[Tensor]]:
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    if rule.weight_decay and rule.optimizer == "adamw":
        parameters = [p * (1 - rate * rule.weight_decay) for p in parameters]
    elif rule.weight_decay:
        gradients = [g + rule.weight_decay * p for g, p in zip(gradients, parameters, strict=True)]
    before = memory or [torch.zeros_like(g) for g in (*gradients, *gradients)]
    first = [beta1 * m + (1 - beta1) * g for m, g in zip(before[: len(gradients)], gradients, strict=True)]
    second = [beta2 * v + (1 - beta2) * g * g for v, g in zip(before[len(gradients) :], gradients, strict=True)]
    # Bias correction counts steps from 1.
    size, scale = rate / (1 - beta1 ** (step + 1)), (1 - beta2 ** (step + 1)) ** 0.5
    # The square root has an infinite slope at 0; both branches are kept finite, or autograd would make NaN of it.
    roots = [torch.where(v > 0, v.where(v > 0, 1.0).sqrt(), 0.0) for v in second]
    moved = zip(parameters, first, roots, strict=True)
    return [p - size * m / (root / scale + epsilon) for p, m, root in moved], [*first, *second]


_OPTIMIZERS: dict[str, Optimizer] = {"sgd": _sgd, "adam": _adam, "adamw": _adam}
