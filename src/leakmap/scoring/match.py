"""Which reconstruction belongs to which original: one to one, inside a batch."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from leakmap.scoring.regions import cut


def matched(pictures: Tensor, originals: Tensor, areas: Tensor | None = None) -> Tensor:
    """Reorders reconstructions so that the i-th belongs to the i-th original, at the lowest total squared error.

    Args:
        pictures: ``(N, C, H, W)``, in any order.
        originals: ``(N, C, H, W)``.
        areas: ``(N, 4)``: the part of each original that counts; None: all of it.
    """
    cost = torch.cdist(originals.flatten(1).double(), pictures.flatten(1).double()).square()
    if areas is not None:
        rows = [
            (cut(pictures, area) - cut(original, area)).double().square().flatten(1).sum(1)
            for original, area in zip(originals, areas, strict=True)
        ]
        cost = torch.stack(rows)
    _, column_of_each_original = linear_sum_assignment(cost.cpu().numpy())
    return pictures[torch.from_numpy(column_of_each_original)]
