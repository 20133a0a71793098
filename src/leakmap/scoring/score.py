"""The fourth verb: how much of a batch a reconstruction holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from leakmap.attacker.reconstruction import Reconstruction
from leakmap.client.simulate import Batch
from leakmap.problem.objects import holds_objects, unpack
from leakmap.registry.spec import Spec
from leakmap.scoring.bands import BANDS, band_ranks
from leakmap.scoring.invariance import invariant_ncc
from leakmap.scoring.lineup import rank
from leakmap.scoring.match import matched
from leakmap.scoring.metrics import ALWAYS, metrics
from leakmap.scoring.regions import cut, in_and_around, large_objects


@dataclass(frozen=True)
class Score:
    """How one reconstruction fared.

    Args:
        pictures: ``(N, C, H, W)``, reordered so that the i-th belongs to the i-th original.
        values: Metric -> value of each picture.
        ranks: In the line-up, of each picture; 1 is best.
        galleries: Candidates in each line-up, the truth included.
        labels_right: Share of the multiset of classes that was right; of detected objects twice the common ones over
            all of both; of other labels the pictures of which all are right, of values all within 1 %.
        pose_ranks: In the line-up that allows any pose, see :func:`leakmap.scoring.invariance.invariant_ncc`.
        band_ranks: Band -> rank of each picture in the line-up of that band, see :mod:`leakmap.scoring.bands`.
        object_ranks: In the line-up of crops, of each large object.
        object_galleries: Candidates in each of these.
        places: Of the scored pictures among those of the client; empty: all are scored.
    """

    pictures: Tensor
    values: Mapping[str, tuple[float, ...]]
    ranks: tuple[float, ...]
    galleries: tuple[int, ...]
    labels_right: float
    pose_ranks: tuple[float, ...] = ()
    band_ranks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    object_ranks: tuple[float, ...] = ()
    object_galleries: tuple[int, ...] = ()
    places: tuple[int, ...] = ()


def score(
    reconstruction: Reconstruction,
    batch: Batch,
    distractors: Sequence[Tensor],
    names: Sequence[Spec | str] = ALWAYS,
    objects: Sequence[Sequence[Tensor]] = (),
    *,
    plain: bool = False,
) -> Score:
    """Scores a reconstruction against the truth; of letterboxed pictures only what lies between the bars.

    Args:
        reconstruction: What the attacker says.
        batch: The truth.
        distractors: For each true picture ``(G - 1, C, h, w)`` in [0, 1], that were in no client's batch: as large as
            what is scored of it.
        names: Metrics to compute.
        plain: Whether the line-ups of other poses and of bands are left out.
        objects: For each true picture, and each large object in it, ``(G - 1, C, h, w)`` crops of other objects.

    Raises:
        ValueError: the counts of pictures differ.
    """
    if len(reconstruction.pictures) != len(batch.pictures) or len(distractors) != len(batch.pictures):
        raise ValueError(
            f"{len(reconstruction.pictures)} reconstructions and {len(distractors)} sets of distractors were given "
            f"for {len(batch.pictures)} originals; each original needs one of both"
        )
    pictures = matched(reconstruction.pictures.cpu(), batch.pictures.cpu(), batch.areas)
    line_ups = [
        (cut(pictures, area), cut(truth, area), others)
        for truth, area, others in zip(batch.pictures.cpu(), _areas(batch), distractors, strict=True)
    ]
    bands = [] if plain else [band_ranks(*one) for one in line_ups]
    of_objects = _object_line_ups(pictures, batch, objects)
    return Score(
        pictures,
        metric_values(pictures, batch, names),
        tuple(rank(*one) for one in line_ups),
        tuple(1 + len(others) for others in distractors),
        overlap(reconstruction.y.cpu(), batch.y.cpu()),
        () if plain else tuple(rank(*one, invariant_ncc) for one in line_ups),
        {band: tuple(of_picture[band] for of_picture in bands) for band in BANDS if bands},
        tuple(rank for rank, _ in of_objects),
        tuple(size for _, size in of_objects),
    )


def _areas(batch: Batch) -> Sequence[Tensor | None]:
    return [None] * len(batch.y) if batch.areas is None else list(batch.areas)


def _object_line_ups(
    pictures: Tensor, batch: Batch, distractors: Sequence[Sequence[Tensor]]
) -> list[tuple[float, int]]:
    """Rank and candidates of every large object: whichever reconstruction is most alike at its box counts."""
    found: list[tuple[float, int]] = []
    for original, y, of_picture in zip(batch.pictures.cpu(), batch.y.cpu(), distractors, strict=bool(distractors)):
        boxes = large_objects(y, *original.shape[-2:])[1].tolist()
        for (top, left, bottom, right), others in zip(boxes, of_picture, strict=True):
            truth, own = original[:, top:bottom, left:right], pictures[..., top:bottom, left:right]
            found.append((rank(own, truth, others), 1 + len(others)))
    return found


def metric_values(pictures: Tensor, batch: Batch, names: Sequence[Spec | str] = ALWAYS) -> dict[str, tuple[float, ...]]:
    """Every metric of matched pairs, by name; with objects also PSNR in their boxes and around them."""
    found: dict[str, tuple[float, ...]] = {}
    originals = batch.pictures.cpu()
    for spec in map(Spec.parse, names):
        metric = metrics.build(spec)
        if batch.areas is None:
            found[spec.name] = tuple(metric(pictures, originals).tolist())
        else:
            pairs = zip(pictures, originals, batch.areas, strict=True)
            values = [metric(cut(picture[None], area), cut(original[None], area)) for picture, original, area in pairs]
            found[spec.name] = tuple(torch.cat(values).tolist())
    if holds_objects(batch.y):
        found |= in_and_around(pictures, originals, batch.y.cpu(), batch.areas)
    return found


CLOSE = 1e-2
"""Relative distance up to which a value counts as found."""


def overlap(found: Tensor, truth: Tensor) -> float:
    """Overlap of two multisets of classes, or of what pictures are labelled with else, in [0, 1]."""
    if truth.ndim > 1 and not holds_objects(truth):
        pairs = torch.stack([torch.isclose(found, one, rtol=CLOSE, atol=0.0).flatten(1).all(1) for one in truth])
        rows, columns = linear_sum_assignment(pairs.numpy(), maximize=True)
        return float(pairs[torch.as_tensor(rows), torch.as_tensor(columns)].float().mean())
    found, truth = (unpack(y)[1] if y.ndim > 1 else y for y in (found, truth))
    size = 1 + int(torch.cat([found, truth, truth.new_zeros(1)]).max())
    common = torch.minimum(torch.bincount(found, minlength=size), torch.bincount(truth, minlength=size))
    return 2 * float(common.sum()) / max(1, len(found) + len(truth))
