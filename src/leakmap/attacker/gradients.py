"""The update as a mean gradient: what closed forms and label rules read."""

from collections.abc import Iterable

from torch import Tensor

from leakmap.defences import defence_of
from leakmap.local_rule import LocalRule
from leakmap.observation.observation import Observation


def mean_gradient(observation: Observation, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of the update as the mean gradient over the client's steps, in float64, by name.

    A delta is turned around, divided by the weight of its steps and freed of its weight decay: exactly for one step of
    SGD, while several give the mean along the way. What Adam rescales stays rescaled, and only the decoupled decay of
    AdamW is taken off. Where the rule is withheld, or a defence left no sum of steps, a delta is only turned around:
    signs, and ratios if they are left, hold; sizes do not.

    Args:
        observation: Gives update and weights, and rule and number of examples where they are granted.
        names: Of tensors that the client shared.
    """
    shared, rule = observation.update.tensors, observation.rule
    if observation.update.kind == "gradient":
        return {name: shared[name].double() for name in names}
    if rule is None or defence_of(rule.defence).rescales:
        return {name: -shared[name].double() for name in names}
    length = sum(step_weights(rule, observation.count or 1))
    decay, weights = 0.0 if rule.optimizer == "adam" else rule.weight_decay, observation.network.weights
    return {name: -shared[name].double() / length - decay * weights[name].double() for name in names}


def step_weights(rule: LocalRule, count: int) -> list[float]:
    """The coefficient with which the gradient of each local step enters a delta, for SGD; for Adam only the scale.

    Args:
        rule: Gives steps, learning rate and momentum.
        count: Examples of the client.
    """
    steps = rule.steps(count)
    return [rule.lr * sum(rule.momentum**j for j in range(steps - i)) for i in range(steps)]
