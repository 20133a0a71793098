"""The last linear layer: its gradient as the update shows it, and its inputs and outputs on stand-in pictures."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from leakmap.attacker.buffers import assumed_rule
from leakmap.attacker.gradients import mean_gradient
from leakmap.client_step import arrange
from leakmap.defences import defence_of
from leakmap.errors import NotApplicable
from leakmap.models.adapt import freeze_running_statistics
from leakmap.observation.observation import Observation
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


def head_gradient(observation: Observation) -> Head:
    """The gradient of the last linear layer, as :func:`leakmap.attacker.gradients.mean_gradient` reads it.

    Raises:
        NotApplicable: the model does not end in a linear layer with one output per class, or it was not shared.
    """
    network = observation.network
    classes = network.task.classes
    if network.task.objects or network.task.loss.name != "cross_entropy" or network.code.loss is not None:
        raise NotApplicable(
            "Label recovery reads the gradient of cross entropy, this client has a loss of its own; grant the labels."
        )
    linear = [
        name
        for name, layer in network.module().named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == classes
    ]
    shared = observation.update.tensors
    if not linear or f"{linear[-1]}.weight" not in shared:
        raise NotApplicable(
            f"Label recovery reads the gradient of a final linear layer with {classes} outputs, which "
            f"{network.model} does not share; grant the labels."
        )
    weight, bias = f"{linear[-1]}.weight", f"{linear[-1]}.bias"
    gradient = mean_gradient(observation, [name for name in (weight, bias) if name in shared])
    return Head(linear[-1], gradient.get(bias), gradient[weight])


def bias_of(head: Head, rule: str) -> Tensor:
    """The gradient of the bias, ``(classes,)``.

    Raises:
        NotApplicable: the layer has none.
    """
    if head.bias is None:
        raise NotApplicable(f"{rule} reads the gradient of the last layer's bias, which this model lacks: use counts.")
    return head.bias


def check_magnitudes(observation: Observation, rule: str) -> None:
    """Refuses a delta of Adam, whose first step keeps only the signs of the gradient, and a defence that does likewise.

    Raises:
        NotApplicable: the client's optimiser is Adam or AdamW, or its defence leaves signs or the largest entries.
    """
    if observation.rule is None:
        return
    optimizer, defence = observation.rule.optimizer, observation.rule.defence
    left = defence_of(defence).left
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
        NotApplicable: a defence rescales the update by what no one sees.
    """
    observation.need("count", *(["rule"] if observation.update.kind == "delta" else []))
    if rescaled(observation):
        raise NotApplicable(
            f"The sizes of this update are unknown, as the defence {observation.rule and observation.rule.defence} "
            "clips it: use bias_corrected or llg, or idlg for one example."
        )


def rescaled(observation: Observation) -> bool:
    """Whether a granted rule says that a defence clips."""
    return observation.rule is not None and defence_of(observation.rule.defence).left == "ratios"


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
    hook = module.get_submodule(head.name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with hook, torch.no_grad():
        outputs = [functional_call(module, dict(weights or observation.network.weights), (part,)) for part in parts]
    # Counts are read off the difference of predictions and gradients, which are nearly equal for absent classes.
    return View(torch.cat(seen).double(), torch.cat(outputs).double().softmax(1))
