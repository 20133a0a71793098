"""Whether what an attacker holds fits together: names, shapes, types, values."""

import math
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from leakmap.local_rule import COUNT_LIMIT, LocalRule
from leakmap.models.network import Network
from leakmap.observation.contents import Public, Update
from leakmap.problem.task import Task

PIXEL_LIMIT = 2**31


class Unsound(Exception):
    """What is wrong with an Observation, without the full stop."""


def check_update(
    network: Network, update: Update, buffers: Mapping[str, Tensor] | None, rule: LocalRule | None
) -> None:
    """Refuses tensors that are not the network's, and a rule that shares something else."""
    weights = network.weights
    if not update.tensors:
        raise Unsound("'update' holds no tensor")
    groups: list[tuple[str, Mapping[str, Tensor]]] = [("update", update.tensors), ("buffers", buffers or {})]
    for group, tensors in groups:
        for name, tensor in tensors.items():
            if name not in weights:
                raise Unsound(f"'{group}/{name}' is not a name among the weights")
            _check_shape(f"{group}/{name}", tensor, tuple(weights[name].shape))
    for name, tensor in update.tensors.items():
        expected = weights[name].dtype
        if tensor.dtype != expected or not tensor.is_floating_point():
            raise Unsound(
                f"'update/{name}' has type {tensor.dtype}, the weights have {expected}; send and load one floating type"
            )
    if not any(t.is_floating_point() for t in weights.values()):
        raise Unsound("'weights' hold no floating-point tensor")
    if rule is not None and rule.share != update.kind:
        raise Unsound(f"'rule' shares a {rule.share}, the update is a {update.kind}")


def check_values(named: Iterable[tuple[str, Tensor]], trained: Collection[str]) -> None:
    """Refuses numbers that are not finite; buffers, such as attention masks, may be infinite, unknown pixels are NaN.

    Args:
        named: Every tensor with its name in the file form.
        trained: Names of the parameters in the update.
    """
    for name, tensor in named:
        group, _, own = name.partition("/")
        # A finite sum has finite terms; one that is not may have overflowed, and is looked at term by term.
        if not tensor.is_floating_point() or math.isfinite(float(tensor.sum())):
            continue
        if group == "known_pixels":
            wrong = torch.isinf(tensor)
        elif group == "buffers" or (group == "weights" and own not in trained):
            wrong = torch.isnan(tensor)
        else:
            wrong = ~torch.isfinite(tensor)
        if bool(wrong.any()):
            raise Unsound(f"{name!r} holds values that are not finite")


def check_count(task: Task, count: int | None) -> None:
    """Refuses a number of pictures that is impossible, or whose pictures no machine could hold."""
    if count is None:
        return
    if not 1 <= count <= COUNT_LIMIT:
        raise Unsound(f"'count' is {count}, expected 1 to {COUNT_LIMIT}")
    if count * math.prod(task.shape) > PIXEL_LIMIT:
        raise Unsound(f"'count' is {count}, which at {task.shape} is more than {PIXEL_LIMIT} values")


def check_labels(task: Task, count: int | None, labels: Tensor | None, label_counts: Tensor | None) -> None:
    """Refuses labels, or counts of them, that are not the task's or not of so many pictures."""
    if labels is not None:
        if count is None:
            raise Unsound("'labels' are granted, so 'count' must be too")
        _check_targets("labels", labels, count, task)
    if label_counts is not None:
        if not task.counted:
            raise Unsound(f"'label_counts' are granted, and the target {task.target} has no classes to count")
        _check_shape("label_counts", label_counts, (task.labels,))
        if label_counts.dtype != torch.int64 or bool((label_counts < 0).any()):
            raise Unsound("'label_counts' must be whole numbers of at least 0")
        if not task.objects and count != int(label_counts.sum()):
            raise Unsound(f"'label_counts' sum to {int(label_counts.sum())}, 'count' is {count}")


def check_public(task: Task, public: Public | None) -> None:
    """Refuses public pictures that are not the task's, or not in [0, 1]."""
    if public is None:
        return
    pictures = public.pictures
    held = pictures.numel() // math.prod(task.shape)
    _check_shape("public/pictures", pictures, (held, *task.shape))
    _check_targets("public/labels", public.labels, held, task)
    if held and not 0 <= float(pictures.min()) <= float(pictures.max()) <= 1:
        raise Unsound("'public/pictures' must lie in [0, 1]")


def check_known_pixels(task: Task, count: int | None, known_pixels: Tensor | None) -> None:
    """Refuses known pixels that are not of the client's pictures, or not in [0, 1]."""
    if known_pixels is None:
        return
    if count is None:
        raise Unsound("'known_pixels' are granted, so 'count' must be too")
    _check_shape("known_pixels", known_pixels, (count, *task.shape))
    known = known_pixels[~torch.isnan(known_pixels)]
    in_range = not len(known) or 0 <= float(known.min()) <= float(known.max()) <= 1
    if not known_pixels.is_floating_point() or not in_range:
        raise Unsound("'known_pixels' must be floats in [0, 1], or NaN where a pixel is not given")


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise Unsound(f"{name!r} has shape {tuple(tensor.shape)}, expected {expected}")


def _check_targets(name: str, targets: Tensor, count: int, task: Task) -> None:
    if wrong := task.wrong(targets, count):
        raise Unsound(f"{name!r} {wrong}")
