"""Which reconstruction belongs to which original: one to one, inside a batch."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def matched(pictures: Tensor, originals: Tensor) -> Tensor:
    """Reorders reconstructions so that the i-th belongs to the i-th original, at the lowest total squared error.

    Args:
        pictures: ``(N, C, H, W)``, in any order.
        originals: ``(N, C, H, W)``.
    """
    cost = torch.cdist(originals.flatten(1).double(), pictures.flatten(1).double()).square()
    _, column_of_each_original = linear_sum_assignment(cost.cpu().numpy())
    return pictures[torch.from_numpy(column_of_each_original)]
