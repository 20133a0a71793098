"""The line-up: is the true picture picked out of many?"""

from collections.abc import Callable

import torch
from torch import Tensor

from leakmap.client.groups import FEWEST_OF_A_CLASS
from leakmap.seeds import generator

MIXED = 19
"""Distractors of a line-up that has to mix classes."""

Similarity = Callable[[Tensor, Tensor], Tensor]
"""``(N, C, H, W), (G, C, H, W) -> (N, G)``; higher is more alike."""


def cross_correlation(pictures: Tensor, candidates: Tensor) -> Tensor:
    """Normalized cross-correlation of every pair, in [-1, 1]; 0 for a constant picture."""

    def unit(x: Tensor) -> Tensor:
        # In float64 rounding stays far below the differences that decide a rank.
        x = x.flatten(1).double()
        x = x - x.mean(1, keepdim=True)
        # A constant picture is 0 after centring; the clamp leaves it at 0 in place of NaN.
        return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)

    return unit(pictures) @ unit(candidates).T


def ncc(reconstructed: Tensor, truth: Tensor) -> float:
    """Mean normalized cross-correlation of reconstructions to their originals, in [-1, 1].

    Args:
        reconstructed: ``(N, C, H, W)``, the i-th of the i-th original, see :func:`leakmap.scoring.match.matched`.
        truth: ``(N, C, H, W)``.
    """
    return float(cross_correlation(reconstructed, truth).diagonal().mean())


def rank(pictures: Tensor, truth: Tensor, distractors: Tensor, similarity: Similarity = cross_correlation) -> float:
    """Rank of the true picture among the candidates, 1 is best; ties count half.

    A candidate scores the highest similarity to any reconstruction of its batch. So no assignment has to be made, and
    without leakage the truth is exchangeable with the distractors: every rank is equally likely, for every batch size.

    Args:
        pictures: ``(N, C, H, W)`` reconstructions of one client.
        truth: ``(C, H, W)``.
        distractors: ``(G - 1, C, H, W)``.
        similarity: How alike two pictures are.
    """
    scores = similarity(pictures, torch.cat([truth[None], distractors])).max(0).values
    others = scores[1:]
    # A reconstruction that ties with all candidates, as a constant one does, gets the middle rank.
    return 1 + float((others > scores[0]).sum()) + 0.5 * float((others == scores[0]).sum())


def pick_distractors(labels: Tensor, label: int, pool: Tensor, count: int, seed: int, turn: int = 0) -> Tensor:
    """Indices of up to ``count`` distractors out of ``pool``, all of the truth's class.

    Only where the class has fewer than :data:`FEWEST_OF_A_CLASS` are others taken instead: among other classes, knowing
    the class alone lifts the truth above chance, also on a swapped update.

    Args:
        labels: ``(N,)`` of the whole pool of pictures.
        label: Class of the truth.
        pool: ``(D,)`` indices.
        count: At most this many.
        seed: For their order.
        turn: Which line-up of this class this is; each takes the next ones, starting again at the end.
    """
    shuffled = pool[torch.randperm(len(pool), generator=generator(seed, "line-up"))]
    same = shuffled[labels[shuffled] == label]
    candidates = same if len(same) >= FEWEST_OF_A_CLASS else shuffled
    count = min(count, len(candidates) if candidates is same else MIXED)
    return candidates.roll(-turn * count)[:count]
