"""The update as a mean gradient: what closed forms and label rules read."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from leakmap.client_step import advance
from leakmap.defences import defence_of
from leakmap.local_rule import LocalRule
from leakmap.observation.observation import Observation


def mean_gradient(observation: Observation, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of the update as the mean gradient over the client's steps, in float64, by name.

    A delta is turned around, divided by the weight of its steps and freed of its weight decay: exactly for SGD, where
    several steps give the mean along the way. Where steps are clipped it is the mean times a factor that no one sees.
    What Adam rescales stays rescaled, and only the decoupled decay of AdamW is taken off. Where the rule is withheld,
    or a defence left no sum of steps, a delta is only turned around: signs, and ratios if they are left, hold; sizes do
    not.

    Args:
        observation: Gives update and weights, and rule and number of examples where they are granted.
        names: Of tensors that the client shared.
    """
    shared, rule = observation.update.tensors, observation.rule
    if observation.update.kind == "gradient":
        return {name: shared[name].double() for name in names}
    if rule is None or defence_of(rule.defence).rescales:
        return {name: -shared[name].double() for name in names}
    kept, steps = _composition(rule, observation.count or 1)
    weights, length = observation.network.weights, sum(steps)
    return {name: (kept * weights[name].double() - shared[name].double()) / length for name in names}


def step_weights(rule: LocalRule, count: int) -> list[float]:
    """The coefficient with which the gradient of each local step enters a delta, for SGD; for Adam only the scale.

    Where steps are clipped, they are those of the clipped gradients.

    Args:
        rule: Gives steps and optimiser.
        count: Examples of the client.
    """
    return _composition(rule, count)[1]


def _composition(rule: LocalRule, count: int) -> tuple[float, list[float]]:
    """The coefficients of the weights that were sent, and less those of each step's gradient, in a delta.

    SGD is linear: the client's own steps, taken with the unit vectors of these quantities, give their coefficients.
    """
    steps = rule.steps(count)
    if rule.optimizer != "sgd":
        rates = [rule.rate(step, count) for step in range(steps)]
        decay = rule.weight_decay if rule.optimizer == "adamw" else 0.0
        return float(torch.tensor([1 - rate * decay for rate in rates], dtype=torch.float64).prod()) - 1, rates
    units = torch.eye(steps + 1, dtype=torch.float64)
    plain, start, now, memory = replace(rule, clip_norm=None), [units[0]], [units[0]], list[Tensor]()
    for step in range(steps):
        now, memory = advance(plain, step, count, start, now, [units[step + 1]], memory)
    kept, *gradients = (now[0] - start[0]).tolist()
    return kept, [-coefficient for coefficient in gradients]
