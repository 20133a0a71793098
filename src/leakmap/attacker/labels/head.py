"""The last linear layer: its gradient as the update shows it, and its inputs and outputs on stand-in pictures."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from leakmap.attacker.buffers import assumed_rule
from leakmap.attacker.gradients import mean_gradient
from leakmap.client_step import arrange
from leakmap.defences import NONE
from leakmap.errors import NotApplicable, in_words
from leakmap.local_rule import LocalRule
from leakmap.models.adapt import freeze_running_statistics
from leakmap.models.network import Network, same_networks
from leakmap.observation.observation import GRANT_LABELS, Observation
from leakmap.once import once
from leakmap.problem import Target
from leakmap.problem.task import CrossEntropy, Task, weights_of
from leakmap.seeds import generator

AT_ONCE = 64
PARTS = 32
"""How many stand-ins go through the network at once where batches do not matter, and how many batches at most."""


@dataclass(frozen=True)
class Head:
    """The last linear layer as the update shows it, as a mean gradient over the client's steps, in float64.

    Args:
        name: The layer's name in the model.
        bias: ``(classes,)`` gradient of the bias, or None where the layer has none.
        weight: ``(classes, features)`` gradient of the weight.
    """

    name: str
    bias: Tensor | None
    weight: Tensor

    @property
    def noise(self) -> float:
        """Standard deviation of the noise in each entry: without any, ``p - y`` sums to 0 over the classes."""
        return float((self.weight.sum(0).square().mean() / len(self.weight)).sqrt())

    @property
    def row_noise(self) -> float:
        """Standard deviation of the noise in each row sum of ``weight``."""
        return self.noise * self.weight.shape[1] ** 0.5


@dataclass(frozen=True)
class View:
    """What the last linear layer sees and the softmax behind it gives, in float64.

    Args:
        features: ``(N, features)`` inputs of the layer.
        probabilities: ``(N, classes)``.
    """

    features: Tensor
    probabilities: Tensor


def head_gradient(observation: Observation, targets: Sequence[Target] = ("class", "binary")) -> Head:
    """The gradient of the last linear layer, as :func:`leakmap.attacker.gradients.mean_gradient` reads it.

    One logit is read as two scores, 0 and itself: the softmax of both is its probability, and the gradients of both
    are each other's opposite.

    Args:
        observation: Gives the update.
        targets: What a client's pictures may be labelled with for the rule that asks.

    Raises:
        NotApplicable: pictures are labelled with something else, the layer was not shared or its gradient is zero; or
            see :func:`head_of`.
    """
    network = observation.network
    if network.task.objects or network.task.target not in targets:
        what = "objects" if network.task.objects else network.task.target
        raise NotApplicable(
            f"This rule reads labels of the target {' or '.join(targets)}, this client's is {what}; {GRANT_LABELS}."
        )
    name = head_of(network, assumed_rule(observation).rule)
    shared = observation.update.tensors
    if f"{name}.weight" not in shared:
        raise NotApplicable(
            f"Label recovery reads the gradient of a final linear layer, and that of {name!r} is not shared; "
            f"{GRANT_LABELS}."
        )
    gradient = mean_gradient(observation, [one for one in (f"{name}.weight", f"{name}.bias") if one in shared])
    if not any(bool(tensor.any()) for tensor in gradient.values()):
        raise NotApplicable(
            f"The gradient of the final linear layer, {name!r}, is zero: it shows no label; {GRANT_LABELS}."
        )
    if network.task.target == "binary":
        gradient = {one: torch.cat([-tensor, tensor]) for one, tensor in gradient.items()}
    return Head(name, gradient.get(f"{name}.bias"), gradient[f"{name}.weight"])


@once(same_networks)
def head_of(network: Network, rule: LocalRule) -> str:
    """The name of the linear layer whose outputs the loss takes as they are, found by running the network.

    Registration tells nothing: a layer may be unused, or registered before others. The layer is the last one to run
    whose outputs get the derivative that the softmax or the logistic function, or for values the squared difference,
    leaves between prediction and label. So a user's own loss is read where it is one of these, and scores behind which
    something else comes are not.

    Args:
        network: Architecture, weights and loss.
        rule: Gives the mode.

    Raises:
        NotApplicable: there is no such layer.
    """
    task, loss = network.task, network.loss()
    module = arrange(network.module(), rule, dropout=False)
    seen: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(layer: nn.Module, inputs: Any, outputs: Tensor) -> Tensor:
            seen.append((name, outputs))
            return outputs.clone()  # what works in place behind the layer must not reach the noted tensor

        return hook

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(note(name))
    x = torch.randn(2, *task.shape, generator=generator(0, "head")).to(network.device, network.dtype)
    y = task.tried(2).to(network.device)
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            value = module(x.requires_grad_(), y) if loss is None else loss(module(x.requires_grad_()), y)
            given = [one for _, one in seen]
            slopes = torch.autograd.grad(value, given, allow_unused=True) if given else ()
    except (ValueError, RuntimeError) as error:
        raise NotApplicable(f"The last linear layer cannot be found: {in_words(error)}; {GRANT_LABELS}.") from None
    pairs = [(name, z, dz) for (name, z), dz in zip(seen, slopes, strict=True) if z.shape == (2, task.classes)]
    for name, z, dz in reversed(pairs):
        if dz is not None and _is_residual(task, z.detach().double(), dz.double(), y):
            return name
    if not pairs:
        raise NotApplicable(
            f"Label recovery reads the gradient of a final linear layer with {task.classes} outputs, which "
            f"{network.model} does not have; {GRANT_LABELS}."
        )
    what = {"class": "cross entropy", "regression": "the squared difference"}.get(task.target, "binary cross entropy")
    raise NotApplicable(
        f"Label recovery reads the gradient of {what} of the outputs of a linear layer, and this client's loss has "
        f"another derivative at those of {pairs[-1][0]!r}; {GRANT_LABELS}."
    )


@once(same_networks)
def last_layer(network: Network, rule: LocalRule) -> str:
    """The name of the layer with parameters that runs last; of a detector, which has several ends, the last declared.

    Args:
        network: Architecture and weights.
        rule: Gives the mode.
    """
    module = arrange(network.module(), rule, dropout=False)
    trained = [name.rpartition(".")[0] for name, p in module.named_parameters() if p.requires_grad]
    ran: list[str] = []
    for name in dict.fromkeys(trained):
        module.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    x = torch.randn(2, *network.task.shape, generator=generator(0, "head")).to(network.device, network.dtype)
    if not network.task.objects:
        with suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(x)
    return [*trained, *ran][-1]


NEARLY = 1e-2
"""Relative distance between the derivative of a loss and what it is compared with: half precision leaves 1e-3."""


def _is_residual(task: Task, z: Tensor, dz: Tensor, y: Tensor) -> bool:
    """Whether ``dz`` is what the loss that goes with the task leaves at the outputs ``z``, each ``(2, classes)``."""
    if task.target == "class":
        settings = task.loss.params
        usual = CrossEntropy(settings.get("label_smoothing", 0.0), weights_of(settings.get("class_weights", "")))
        with torch.enable_grad():
            (expected,) = torch.autograd.grad(usual(z.requires_grad_(), y), z)
    elif task.target == "regression":
        expected = 2 * (z - y.view_as(z)) / z.numel()
    else:
        expected = (z.sigmoid() - y.view_as(z)) / z.numel()
    return float((dz - expected).norm()) <= NEARLY * float(expected.norm())


def rows_of(tensor: Tensor) -> Tensor:
    """Rows of a last layer for the classes of a softmax: for a single logit those of 0 and of itself."""
    return torch.cat([torch.zeros_like(tensor), tensor]) if len(tensor) == 1 else tensor


def probabilities(z: Tensor) -> Tensor:
    """``(N, classes)`` scores -> their softmax; one logit each, ``(N, 1)`` or ``(N,)`` -> probabilities of 0 and 1."""
    z = z.view(len(z), -1)
    return torch.cat([torch.zeros_like(z), z], 1).softmax(1) if z.shape[1] == 1 else z.softmax(1)


def bias_of(head: Head, rule: str) -> Tensor:
    """The gradient of the bias, ``(classes,)``.

    Raises:
        NotApplicable: the layer has none.
    """
    if head.bias is None:
        raise NotApplicable(f"{rule} reads the gradient of the last layer's bias, which this model lacks: use counts.")
    return head.bias


def check_magnitudes(observation: Observation, rule: str) -> None:
    """Refuses a delta of Adam, whose first step keeps only the signs of the gradient, and all that does likewise.

    Raises:
        NotApplicable: the client's optimiser is Adam or AdamW, its defence leaves signs or the largest entries, or its
            loss multiplies classes by weights.
    """
    if "class_weights" in observation.network.task.loss.params:
        raise NotApplicable(
            f"{rule} reads how many examples a class has off sizes, which the class weights of the loss multiply: use "
            "analytic or yin, or idlg for one example."
        )
    if observation.rule is None:
        return
    optimizer, defence, left = observation.rule.optimizer, observation.rule.defence, observation.rule.left
    if optimizer != "sgd" or left in ("signs", "largest"):
        who = optimizer if optimizer != "sgd" else f"the defence {defence}"
        raise NotApplicable(
            f"{rule} reads the sizes of a gradient, of which {who} leaves the "
            f"{'largest entries' if left == 'largest' else 'signs'}: use analytic or yin, or idlg for one example."
        )


def check_scale(observation: Observation) -> None:
    """Checks that the sizes of an update can be known.

    Raises:
        NotGranted: the number of examples, or the rule of a delta, is not granted.
        NotApplicable: the client rescales the update, or its steps, by what no one sees.
    """
    observation.need("count", *(["rule"] if observation.update.kind == "delta" else []))
    if rescaled(observation):
        rule = observation.rule
        who = f"the defence {rule.defence} clips it" if rule and rule.defence != NONE else "its steps are clipped"
        raise NotApplicable(
            f"The sizes of this update are unknown, as {who}: use bias_corrected or llg, or idlg for one example."
        )


def rescaled(observation: Observation) -> bool:
    """Whether a granted rule says that a defence clips the update, or every step."""
    return observation.rule is not None and observation.rule.left == "ratios"


def facts_used(observation: Observation, *facts: str) -> tuple[str, ...]:
    """Those of ``facts`` that are granted, for :class:`leakmap.attacker.labels.Labels`."""
    return tuple(fact for fact in facts if observation.granted()[fact])


def stand_ins(observation: Observation, seed: int, dummies: int) -> Tensor:
    """Model inputs ``(N, C, H, W)`` in place of the client's: the public pictures, else ``dummies`` of noise."""
    network, task = observation.network, observation.network.task
    if observation.public is not None:
        return task.normalize(observation.public.pictures)
    noise = torch.randn(dummies, *task.shape, generator=generator(seed, "label dummies"))
    return noise.to(network.device, network.dtype)


def view(observation: Observation, head: Head, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> View:
    """What the last layer sees of ``x`` in the client's mode and, for BatchNorm in training, in batches of its size.

    Args:
        observation: Gives the network, the rule and the number of examples.
        head: Names the layer.
        x: ``(N, C, H, W)`` model inputs.
        weights: By name; None takes those that the server sent.
    """
    rule = assumed_rule(observation).rule
    module = freeze_running_statistics(arrange(observation.network.module(), rule, dropout=False))
    size = AT_ONCE
    if rule.mode == "train" and any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        size = -(-(rule.batch_size or observation.count or len(x)) // rule.accumulate)
        # BatchNorm in training mode refuses a single value; without the rule the mode is a guess, so two are taken.
        size = max(size, 2 if observation.rule is None else 1)
        # A partial last batch would have batch statistics of another size than the client's.
        x = x[: max(1, len(x) // size) * size]
    parts = x.split(size)[:PARTS]
    seen: list[Tensor] = []
    outputs: list[Tensor] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], scores: Tensor) -> None:
        seen.append(inputs[0])
        outputs.append(scores.clone())

    given = weights or observation.network.weights
    # A tied parameter has several names in a state dict; a call takes it under the first alone.
    own = {name: given[name] for name, _ in chain(module.named_parameters(), module.named_buffers()) if name in given}
    with module.get_submodule(head.name).register_forward_hook(note), torch.no_grad():
        for part in parts:
            functional_call(module, own, (part,))
    # Counts are read off the difference of predictions and gradients, which are nearly equal for absent classes.
    return View(torch.cat(seen).double(), probabilities(torch.cat(outputs).double()))
