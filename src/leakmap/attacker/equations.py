"""What closed forms share: which class goes with which picture, and what is recorded."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from leakmap.attacker.labels import Labels
from leakmap.defences import NONE
from leakmap.models.network import Network
from leakmap.observation.observation import Observation


def label_notes(observation: Observation, labels: Labels) -> dict[str, str | int | float]:
    """What every closed form records: the label rule, its confidence, a known defence."""
    notes: dict[str, str | int | float] = {"labels": labels.rule, "label confidence": labels.confidence}
    defence = observation.rule.defence if observation.rule else NONE
    return notes | ({} if defence == NONE else {"defence": defence})


def facts_used(observation: Observation, labels: Labels) -> frozenset[str]:
    """The facts that every closed form rests on: the number of examples, those of the labels, a granted rule."""
    return frozenset({"count", *labels.used, *(["rule"] if observation.rule else [])})


def ordered(y: Tensor, network: Network, name: str, inputs: Tensor, dz: Tensor) -> Tensor:
    """The classes in the order in which they explain each picture's gradient best.

    Args:
        y: Labels in any order; objects stay in theirs.
        network: Gives the gradient that a picture would have with a class.
        name: Of the bias whose gradient that is.
        inputs: ``(count, C, H, W)``, normalized.
        dz: ``(outputs, count)`` gradient of each picture; 0 where it is not known.
    """
    loss = network.loss()
    if loss is not None and not (y[0] == y).all():
        module = network.module().eval()
        bias = module.get_parameter(name)
        cost = dz.new_empty(len(inputs), len(y))
        different, which = y.unique(dim=0, return_inverse=True)
        for i in range(len(inputs)):
            outputs = module(inputs[i : i + 1])
            for c in range(len(different)):
                (own,) = torch.autograd.grad(loss(outputs, different[c : c + 1]), bias, retain_graph=True)
                cost[i, which == c] = -F.cosine_similarity(own.double() * (dz[:, i] != 0), dz[:, i], dim=0)
        y = y[torch.as_tensor(linear_sum_assignment(cost.cpu())[1], device=y.device)]
    return y
