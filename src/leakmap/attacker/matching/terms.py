"""Further knowledge about the client's forward passes: its features, its loss."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.attacker.labels.head import head_gradient
from leakmap.attacker.matching.context import Penalty, SearchContext, Seen
from leakmap.errors import NotApplicable


@dataclass(frozen=True)
class Features:
    """The input of the last linear layer should be the one that its gradient shows: ``dW_c / db_c`` for class c.

    Holds for classes that occur once; the others are left out, and with them the term where none is left. Of a single
    picture every row of the gradient shows them, and all are used: of a picture that the network is sure of, the row of
    its own class vanishes.

    Args:
        weight: Of the mean squared difference.

    Source: the feature regulariser of breaching, after the closed form of Phong et al. 2018.
    """

    weight: float

    needs = frozenset[str]()

    def blind(self) -> None:
        """Nothing: features come from the update."""

    def __call__(self, context: SearchContext) -> Penalty:
        """Reads the features off the update."""
        count = context.observation.count or len(context.y)
        if context.rule.forwards(count) > 1:
            return Penalty((), _nothing, "no features: the client made several forward passes")
        try:
            head = head_gradient(context.observation)
        except NotApplicable as error:
            return Penalty((), _nothing, f"no features: {error}")
        classes = context.observation.network.task.settled(context.y)
        if head.bias is None:
            return Penalty((), _nothing, "no features: the last layer has no bias")
        bias, weight = head.bias.double(), head.weight.double()
        single = (torch.bincount(classes, minlength=len(weight)) == 1)[classes] & (bias[classes] != 0)
        if count == 1 and bool(bias.any()):
            single, found = torch.ones_like(single), (bias @ weight / bias.square().sum())[None]
        else:
            rows = classes[single]
            found = weight[rows] / bias[rows][:, None]
        if not bool(single.any()):
            why = "every class occurs more than once, or its row of the gradient vanishes"
            return Penalty((), _nothing, f"no features: {why}")
        features = found.to(context.observation.network.dtype)

        def value(seen: Seen) -> Tensor:
            return self.weight * F.mse_loss(seen.inputs[head.name][0][single], features)

        return Penalty((head.name,), value, f"features of {len(features)} examples")


def _nothing(seen: Seen) -> Tensor:
    return torch.zeros((), device=seen.outputs[0].device)


@dataclass(frozen=True)
class TaskLoss:
    """The client's loss itself, over all its passes: pictures that the network classifies as their labels are likelier.

    Args:
        weight: Of the loss.

    Source: Wei et al. 2020, "A Framework for Evaluating Gradient Leakage Attacks" (CPL), arXiv:2004.10397.
    """

    weight: float

    needs = frozenset[str]()

    def blind(self) -> "TaskLoss":
        """Itself: a floor takes granted labels or random ones."""
        return self

    def __call__(self, context: SearchContext) -> Penalty:
        """Uses the labels of the context."""
        loss, y = context.observation.network.loss(), torch.cat([context.y] * context.rule.epochs)

        def value(seen: Seen) -> Tensor:
            if loss is None:
                return self.weight * torch.stack(seen.outputs).mean()
            return self.weight * loss(torch.cat(seen.outputs), y)

        return Penalty((), value)
