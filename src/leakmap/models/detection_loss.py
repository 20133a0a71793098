"""What an anchor-free detector minimises: which points answer for which object, and how far off they are.

Predictions are made at the points of a grid, of A points over all levels of resolution. Boxes are ``(left, top, right,
bottom)`` in pixels. Everything has a fixed shape whatever the pictures hold, and two derivatives with respect to the
predictions; which point answers for which object, and with what score, is a constant for both.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.problem.objects import EMPTY, GRID, VALUES, corners

SMALLEST = 1e-7
"""What lengths and areas (in pixels) are clamped at, so that degenerate boxes have finite derivatives."""
REACH = 8.0
"""Up to how many strides the longest side of a box may be for :func:`static`: FCOS has 64 px at stride 8."""
RADIUS = 1.5
"""Strides around the centre of a box in which :func:`static` takes points, as FCOS with centre sampling."""


@dataclass(frozen=True)
class Points:
    """Where predictions are made.

    Args:
        places: ``(A, 2)``: x and y in pixels, the centres of the cells of each level.
        strides: ``(A,)``: pixels of a cell's side.
    """

    places: Tensor
    strides: Tensor


@dataclass(frozen=True)
class Objects:
    """What is in the pictures, in an order that does not depend on that of the targets.

    Args:
        classes: ``(N, M, K)``: 1 at the class of each object, 0 elsewhere and in empty rows.
        boxes: ``(N, M, 4)``.
        present: ``(N, M)``: False in empty rows.
    """

    classes: Tensor
    boxes: Tensor
    present: Tensor


@dataclass(frozen=True)
class Assignment:
    """What every point should have predicted.

    Args:
        scores: ``(N, A, K)`` in [0, 1]: of each class; 0 at points that answer for no object.
        boxes: ``(N, A, 4)``; zeros at points that answer for no object.
    """

    scores: Tensor
    boxes: Tensor


Assigner = Callable[[Tensor, Tensor, Points, Objects], Assignment]
"""``(scores (N, A, K) in [0, 1], boxes (N, A, 4), points, objects) -> Assignment``, a constant for differentiation."""


@dataclass(frozen=True)
class Gains:
    """Weights of the three terms of :func:`detection_loss`."""

    box: float
    classes: float
    dfl: float


def grid(size: Sequence[int], strides: Sequence[int], like: Tensor) -> Points:
    """The centres of the cells of every level, row by row, level after level.

    Args:
        size: ``(H, W)`` of the pictures, multiples of the strides.
        strides: Of the levels.
        like: Gives type and device.
    """
    places, steps = [], []
    for stride in strides:
        y, x = ((torch.arange(n // stride, dtype=like.dtype, device=like.device) + 0.5) * stride for n in size)
        places.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1))
        steps.append(torch.full_like(places[-1][:, 0], stride))
    return Points(torch.cat(places), torch.cat(steps))


def read_objects(y: Tensor, classes: int, size: Sequence[int], like: Tensor) -> Objects:
    """Objects in pixels from the targets of a detector, see :mod:`leakmap.problem.objects`.

    Args:
        y: ``(N, M, 5)`` int64.
        classes: K.
        size: ``(H, W)`` of the pictures.
        like: Gives type and device.
    """
    y = y.to(like.device)
    for value in range(VALUES):
        order = y[..., value].argsort(dim=1, stable=True)
        y = y.gather(1, order[..., None].expand_as(y))
    height, width = size
    scale = torch.tensor([width, height, width, height], dtype=like.dtype, device=like.device) / GRID
    boxes = corners(y[..., 1:].to(like.dtype).flatten(0, 1)).view(*y.shape[:2], 4) * scale
    named = y[..., :1] == torch.arange(classes, device=like.device)
    return Objects(named.to(like.dtype), boxes, y[..., 0] != EMPTY)


def decode(sides: Tensor, points: Points) -> Tensor:
    """Boxes ``(N, A, 4)`` from the distributions of their sides' distances (Li et al. 2020, arXiv:2006.04388, eq. 4).

    Args:
        sides: ``(N, A, 4, bins)``: logits for the distances 0, 1, .. bins - 1, in strides, of left, top, right, bottom.
        points: From where the distances are.
    """
    bins = torch.arange(sides.shape[-1], dtype=sides.dtype, device=sides.device)
    near, far = ((sides.softmax(-1) * bins).sum(-1) * points.strides[:, None]).chunk(2, -1)
    return torch.cat([points.places - near, points.places + far], -1)


def ciou(first: Tensor, second: Tensor) -> Tensor:
    """Complete intersection over union, in (-1.5, 1] (Zheng et al. 2020, arXiv:1911.08287, eq. 10).

    The overlap, less the squared distance of the centres by the squared diagonal of the enclosing box, less the squared
    difference of the aspect ratios' angles with a weight, which is a constant for differentiation as in the paper.

    Args:
        first: ``(..., 4)``.
        second: ``(..., 4)``; leading dimensions broadcast.
    """
    overlap = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    span = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    shift = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    sizes = [(box[..., 2:] - box[..., :2]).clamp(min=SMALLEST) for box in (first, second)]
    shared = overlap.clamp(min=0).prod(-1)
    iou = shared / (sizes[0].prod(-1) + sizes[1].prod(-1) - shared).clamp(min=SMALLEST)
    distance = shift.square().sum(-1) / span.square().sum(-1).clamp(min=SMALLEST)
    angles = [torch.atan2(size[..., 0], size[..., 1]) for size in sizes]
    aspect = 4 / math.pi**2 * (angles[0] - angles[1]).square()
    weight = (aspect / (1 - iou + aspect).clamp(min=SMALLEST)).detach()
    return iou - distance - weight * aspect


def distribution_focal(sides: Tensor, distances: Tensor) -> Tensor:
    """Cross entropy of the two bins that enclose a distance (Li et al. 2020, arXiv:2006.04388, eq. 6).

    Args:
        sides: ``(..., bins)`` logits.
        distances: ``(...)`` in bins, clamped to [0, bins - 1].

    Returns:
        ``(...)``.
    """
    bins = torch.arange(sides.shape[-1], dtype=sides.dtype, device=sides.device)
    distances = distances.clamp(0, sides.shape[-1] - 1)
    share = (1 - (bins - distances[..., None]).abs()).clamp(min=0)
    return -(share * sides.log_softmax(-1)).sum(-1)


def task_aligned(
    scores: Tensor,
    boxes: Tensor,
    points: Points,
    objects: Objects,
    *,
    most: int = 10,
    score_power: float = 0.5,
    overlap_power: float = 6.0,
) -> Assignment:
    """The points that predict an object best answer for it (Feng et al. 2021, arXiv:2108.07755, section 3.2).

    Of the points in the object's box, those ``most`` with the highest alignment ``score ** a * overlap ** b``, with the
    overlap :func:`ciou` clamped at 0. The alignments of an object, scaled so that the highest equals its highest
    overlap, are the target scores. A point that several objects claim answers for the one that it overlaps most.

    The assignment follows the predictions: it flips while an attack searches. An object without a point in its box, or
    whose box no prediction overlaps, is not learnt.

    Args:
        scores: ``(N, A, K)`` in [0, 1].
        boxes: ``(N, A, 4)``.
        points: Where they were predicted.
        objects: What there is.
        most: Points of an object.
        score_power: a; 0.5 as in production detectors, 1 in the paper.
        overlap_power: b.
    """
    inside = _edges(points, objects.boxes).amin(-1) > 0
    overlap = ciou(objects.boxes[:, :, None], boxes.detach()[:, None]).clamp(min=0)
    alignment = (objects.classes @ scores.detach().mT) ** score_power * overlap**overlap_power
    alignment = alignment * (inside & objects.present[..., None])
    best = alignment.topk(min(most, alignment.shape[-1]), -1).indices
    claims = torch.zeros_like(inside).scatter(-1, best, True) & (alignment > 0)
    mine = _settle(claims, overlap)
    alignment, overlap = alignment * mine, overlap * mine
    highest = alignment.amax(-1, keepdim=True).clamp(min=torch.finfo(alignment.dtype).tiny)
    return _assignment(alignment / highest * overlap.amax(-1, keepdim=True), mine, objects)


def static(scores: Tensor, boxes: Tensor, points: Points, objects: Objects) -> Assignment:
    """The points around an object's centre answer for it, whatever they predict; all target scores are 1.

    At the level with the smallest stride of which the longest side of the box is at most 8, else at the last, these are
    the points in the box less than 1.5 strides from its centre in x and in y, and the point nearest to the centre even
    outside the box. A point that several objects claim answers for the smallest box. After Tian et al. 2019 (FCOS,
    arXiv:1904.01355), section 3.2, with the centre sampling of their later code.

    Args:
        scores: Ignored.
        boxes: Ignored.
        points: Where predictions are made.
        objects: What there is.
    """
    low, high = objects.boxes.chunk(2, -1)
    longest = (high - low).amax(-1, keepdim=True)
    levels = torch.where(longest <= REACH * points.strides, points.strides, torch.inf)
    level = levels.amin(-1, keepdim=True).clamp(max=points.strides.max())
    away = (points.places - (low + high)[:, :, None] / 2).abs().amax(-1) / points.strides
    inside = _edges(points, objects.boxes).amin(-1) > 0
    claims = (points.strides == level) & ((inside & (away < RADIUS)) | (away <= 0.5)) & objects.present[..., None]
    mine = _settle(claims, -(high - low).prod(-1, keepdim=True).expand_as(away))
    return _assignment(mine.to(away.dtype), mine, objects)


def detection_loss(
    classes: Tensor,
    sides: Tensor,
    y: Tensor,
    size: Sequence[int],
    strides: Sequence[int],
    assign: Assigner,
    gains: Gains,
) -> Tensor:
    """The mean over the pictures of a picture's loss, a scalar.

    A picture's loss is the binary cross entropy of every class at every point, plus ``1 -`` :func:`ciou` and
    :func:`distribution_focal` (the mean of the four sides) at the points that answer for an object, weighted with their
    target scores. All three sums are divided by the sum of the picture's target scores, or by 1 if that is less. So the
    loss of a batch is the mean of those of its pictures, as gradient accumulation and DP-SGD take for granted;
    production detectors divide by the sum over the batch and may multiply by the number of pictures, which is the same
    for one picture.

    Args:
        classes: ``(N, A, K)`` logits.
        sides: ``(N, A, 4, bins)`` logits, see :func:`decode`.
        y: ``(N, M, 5)`` int64, see :mod:`leakmap.problem.objects`.
        size: ``(H, W)`` of the pictures.
        strides: Of the levels of the A points, in their order.
        assign: Decides which point answers for which object.
        gains: Weights of the terms.
    """
    points = grid(size, strides, classes)
    boxes = decode(sides, points)
    target = assign(classes.sigmoid(), boxes, points, read_objects(y, classes.shape[-1], size, classes))
    weights = target.scores.sum(-1)
    near, far = target.boxes.chunk(2, -1)
    distances = torch.cat([points.places - near, far - points.places], -1) / points.strides[:, None]
    terms = (
        gains.box * (weights * (1 - ciou(boxes, target.boxes))).sum(1)
        + gains.classes * F.binary_cross_entropy_with_logits(classes, target.scores, reduction="none").sum((1, 2))
        + gains.dfl * (weights * distribution_focal(sides, distances).mean(-1)).sum(1)
    )
    return (terms / weights.sum(1).clamp(min=1)).mean()


def _edges(points: Points, boxes: Tensor) -> Tensor:
    """How far every point lies inside of the four edges of every box of ``(N, M, 4)``, in pixels: ``(N, M, A, 4)``."""
    low, high = boxes[:, :, None].chunk(2, -1)
    return torch.cat([points.places - low, high - points.places], -1)


def _settle(claims: Tensor, preference: Tensor) -> Tensor:
    """Leaves each point to one of the objects that claim it, that of the highest preference; ``(N, M, A)``."""
    winner = preference.masked_fill(~claims, -torch.inf).argmax(1, keepdim=True)
    return claims & (torch.arange(claims.shape[1], device=claims.device)[:, None] == winner)


def _assignment(quality: Tensor, mine: Tensor, objects: Objects) -> Assignment:
    """Of ``(N, M, A)`` target scores, where ``mine`` says which object a point answers for."""
    return Assignment((quality * mine).mT @ objects.classes, mine.to(quality.dtype).mT @ objects.boxes)
