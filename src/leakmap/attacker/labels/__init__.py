"""Label recovery: which classes a client held, from the gradient of the last linear layer.

With cross entropy, the gradient of the bias is ``db_c = mean_k(p_kc) - n_c / B``, so it counts the classes up to the
mean prediction. A rule takes an Observation and returns a :class:`Labels`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leakmap.errors import NotApplicable
from leakmap.observation import Observation
from leakmap.registry import Registry


@dataclass(frozen=True)
class Labels:
    """Recovered classes.

    Args:
        y: ``(count,)`` classes in ascending order: the order inside a batch cannot be seen.
        rule: Name of the rule.
        confidence: In [0, 1], from the rule's own residual; never from the truth.
        used: Facts that it drew on besides the number of examples.
    """

    y: Tensor
    rule: str
    confidence: float
    used: tuple[str, ...] = ()


LabelRule = Callable[[Observation, int], Labels]
"""``rule(observation, seed)``; all randomness comes from ``seed``."""

label_rules: Registry[LabelRule] = Registry("label_rule", __name__)


def recover(observation: Observation, rule: str, seed: int) -> Labels:
    """The labels that an attack works with: granted ones, else by a rule.

    Args:
        observation: Gives ``count``, and labels or counts where granted.
        rule: ``auto`` takes granted labels or counts, else ``idlg`` for one example and ``counts`` for more; any
            other value is the name of a rule.
        seed: For the rule.

    Raises:
        NotGranted: the number of examples is not granted.
        NotApplicable: the rule's precondition does not hold.
    """
    observation.need("count")
    if rule == "auto" and observation.labels is not None:
        return Labels(observation.labels.clone(), "granted", 1.0, ("labels",))
    if rule == "auto" and observation.label_counts is not None:
        counts = observation.label_counts
        return Labels(
            torch.arange(len(counts), device=counts.device).repeat_interleave(counts),
            "granted counts",
            1.0,
            ("labels",),
        )
    if rule == "auto":
        rule = "idlg" if observation.count == 1 else "counts"
    return label_rules.build(rule)(observation, seed)


@dataclass(frozen=True)
class Head:
    """The last linear layer as the update shows it, as a mean gradient over the client's steps.

    Args:
        bias: ``(classes,)`` gradient of the bias, or None where the layer has none.
        weight: ``(classes, features)`` gradient of the weight.
    """

    bias: Tensor | None
    weight: Tensor


def head_gradient(observation: Observation) -> Head:
    """The gradient of the last linear layer; a delta is turned back into the mean gradient of its steps,
    without the weight decay.

    Raises:
        NotApplicable: the model does not end in a linear layer with one output per class, or it was not shared.
    """
    network = observation.network
    classes = network.task.classes
    if network.task.loss.name != "cross_entropy" or network.code.loss is not None:
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
    scale = 1.0 if observation.update.kind == "gradient" else -1.0 / _path_length(observation)
    decay = observation.rule.weight_decay if observation.rule else 0.0

    def gradient(name: str) -> Tensor:
        return shared[name] * scale - decay * network.weights[name]

    bias = f"{linear[-1]}.bias"
    return Head(gradient(bias) if bias in shared else None, gradient(f"{linear[-1]}.weight"))


def _path_length(observation: Observation) -> float:
    """Sum of the coefficients with which the step gradients enter a delta, for SGD; for Adam only the scale.

    Without the rule, 1: then only signs and ratios can be used.
    """
    if observation.rule is None:
        return 1.0
    rule = observation.rule
    steps = rule.steps(observation.count or 1)
    return rule.lr * sum(sum(rule.momentum**j for j in range(steps - i)) for i in range(steps))
