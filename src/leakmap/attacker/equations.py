"""What closed forms share: the update as a gradient, and which class goes with which picture."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from leakmap.models.network import Network
from leakmap.observation import Observation


def as_gradient(observation: Observation) -> dict[str, Tensor]:
    """The update as a mean gradient in float64, by name.

    A delta of SGD is turned around, scaled and freed of its weight decay, exactly for one step; without the rule it is
    only turned around, so that its scale is unknown.
    """
    rule, shared = observation.rule, {name: t.double() for name, t in observation.update.tensors.items()}
    if observation.update.kind == "gradient":
        return shared
    if rule is None:
        return {name: -tensor for name, tensor in shared.items()}
    length, weights = rule.lr * rule.steps(observation.count or 1), observation.network.weights
    return {name: -t / length - rule.weight_decay * weights[name].double() for name, t in shared.items()}


def ordered(y: Tensor, network: Network, name: str, inputs: Tensor, dz: Tensor) -> Tensor:
    """The classes in the order in which they explain each picture's gradient best.

    Args:
        y: ``(count,)`` classes in any order.
        network: Gives the gradient that a picture would have with a class.
        name: Of the bias whose gradient that is.
        inputs: ``(count, C, H, W)``, normalised.
        dz: ``(outputs, count)`` gradient of each picture; 0 where it is not known.
    """
    if not (y[0] == y).all():
        module, loss = network.module().eval(), network.loss()
        bias = module.get_parameter(name)
        cost = dz.new_empty(len(inputs), len(y))
        for i in range(len(inputs)):
            outputs = module(inputs[i : i + 1])
            for c in y.unique():
                (own,) = torch.autograd.grad(loss(outputs, c[None]), bias, retain_graph=True)
                cost[i, y == c] = -F.cosine_similarity(own.double() * (dz[:, i] != 0), dz[:, i], dim=0)
        y = y[torch.as_tensor(linear_sum_assignment(cost.cpu())[1], device=y.device)]
    return y
