"""The fourth verb: how much of a batch a reconstruction holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leakmap.attacker.reconstruction import Reconstruction
from leakmap.client.federation import Batch
from leakmap.registry import Spec
from leakmap.scoring.lineup import rank
from leakmap.scoring.match import matched
from leakmap.scoring.metrics import ALWAYS, metrics


@dataclass(frozen=True)
class Score:
    """How one reconstruction fared.

    Args:
        pictures: ``(N, C, H, W)``, reordered so that the i-th belongs to the i-th original.
        values: Metric -> value of each picture.
        ranks: In the line-up, of each picture; 1 is best.
        galleries: Candidates in each line-up, the truth included.
        labels_right: Share of the multiset of classes that was right.
    """

    pictures: Tensor
    values: Mapping[str, tuple[float, ...]]
    ranks: tuple[float, ...]
    galleries: tuple[int, ...]
    labels_right: float


def score(
    reconstruction: Reconstruction,
    batch: Batch,
    distractors: Sequence[Tensor],
    names: Sequence[Spec | str] = ALWAYS,
) -> Score:
    """Scores a reconstruction against the truth.

    Args:
        reconstruction: What the attacker says.
        batch: The truth.
        distractors: For each true picture ``(G - 1, C, H, W)`` in [0, 1], that were in no client's batch.
        names: Metrics to compute.

    Raises:
        ValueError: the counts of pictures differ.
    """
    if len(reconstruction.pictures) != len(batch.pictures) or len(distractors) != len(batch.pictures):
        raise ValueError(
            f"{len(reconstruction.pictures)} reconstructions and {len(distractors)} sets of distractors were given "
            f"for {len(batch.pictures)} originals; each original needs one of both"
        )
    originals = batch.pictures.cpu()
    pictures = matched(reconstruction.pictures.cpu(), originals)
    values = likenesses(pictures, originals, names)
    ranks = tuple(rank(pictures, truth, others) for truth, others in zip(originals, distractors, strict=True))
    galleries = tuple(1 + len(others) for others in distractors)
    return Score(pictures, values, ranks, galleries, overlap(reconstruction.y.cpu(), batch.y.cpu()))


def likenesses(
    pictures: Tensor, originals: Tensor, names: Sequence[Spec | str] = ALWAYS
) -> dict[str, tuple[float, ...]]:
    """Every metric of matched pairs, by name."""
    specs = [Spec.parse(name) for name in names]
    return {spec.name: tuple(metrics.build(spec)(pictures, originals).tolist()) for spec in specs}


def overlap(found: Tensor, truth: Tensor) -> float:
    """Overlap of two multisets of classes, in [0, 1]."""
    size = 1 + int(torch.cat([found, truth]).max())
    common = torch.minimum(torch.bincount(found, minlength=size), torch.bincount(truth, minlength=size))
    return float(common.sum()) / len(truth)
