"""The line-up: is the true picture picked out of many?"""

from collections.abc import Callable

import torch
from torch import Tensor

from leakmap.seeds import generator

GALLERY = 100
SMALLEST_GALLERY = 20

Likeness = Callable[[Tensor, Tensor], Tensor]
"""``(N, C, H, W), (G, C, H, W) -> (N, G)``; higher is more alike."""


def cross_correlation(pictures: Tensor, candidates: Tensor) -> Tensor:
    """Normalised cross-correlation of every pair, in [-1, 1]; 0 for a constant picture."""

    def unit(x: Tensor) -> Tensor:
        x = x.flatten(1).double()
        x = x - x.mean(1, keepdim=True)
        return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)

    return unit(pictures) @ unit(candidates).T


def rank(pictures: Tensor, truth: Tensor, distractors: Tensor, likeness: Likeness = cross_correlation) -> float:
    """Rank of the true picture among the candidates, 1 is best; ties count half.

    A candidate scores the highest likeness to any reconstruction of its batch. So no assignment has to be made, and
    without leakage the truth is exchangeable with the distractors: every rank is equally likely, for every batch size.

    Args:
        pictures: ``(N, C, H, W)`` reconstructions of one client.
        truth: ``(C, H, W)``.
        distractors: ``(G - 1, C, H, W)``.
        likeness: How alike two pictures are.
    """
    scores = likeness(pictures, torch.cat([truth[None], distractors])).max(0).values
    others = scores[1:]
    return 1 + float((others > scores[0]).sum()) + 0.5 * float((others == scores[0]).sum())


def pick_distractors(labels: Tensor, label: int, pool: Tensor, count: int, seed: int, *role: int) -> Tensor:
    """Indices of up to ``count`` distractors out of ``pool``, all of the truth's class.

    Only where the class has fewer than :data:`SMALLEST_GALLERY` - 1 of them are others added, up to that number: among
    other classes, knowing the class alone would lift the truth above chance, also on a swapped update.

    Args:
        labels: ``(N,)`` of the whole pool of pictures.
        label: Class of the truth.
        pool: ``(D,)`` indices.
        count: At most this many.
        seed: For the choice.
        role: Which victim this is for.
    """
    shuffled = pool[torch.randperm(len(pool), generator=generator(seed, "line-up", *role))]
    is_same = labels[shuffled] == label
    same, others = shuffled[is_same], shuffled[~is_same]
    missing = max(0, min(count, SMALLEST_GALLERY - 1) - len(same))
    return torch.cat([same[:count], others[:missing]])
