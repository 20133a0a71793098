"""Pictures with what a task labels them with."""

from dataclasses import replace

import torch
from torch import Tensor

from leakmap.client.data import Pictures
from leakmap.errors import DataError
from leakmap.problem import Target

ALL = ("picture",)
"""The one class of pictures that have none."""


def target_of(pictures: Pictures, outputs: tuple[int, ...] | None, loss: str) -> Target:
    """What pictures are labelled with, as data, model and loss tell it together.

    Args:
        pictures: With their labels as they were given.
        outputs: Shape of what the model gives for 2 pictures; None where it is not known, or no tensor.
        loss: Name of the loss; any but leakmap's own is the user's.
    """
    values = pictures.values
    if pictures.objects is not None:
        return "class"
    if (values is not None and values.ndim == 3) or (outputs is not None and len(outputs) == 4):
        return "pixels"
    if values is not None and loss != "bce" and not _binary(values):
        return "regression"
    if loss == "mse":
        return "regression"
    if values is not None and values.ndim == 2 and values.shape[1] > 1:
        return "multilabel"
    single = outputs in ((2, 1), (2,))
    if not single and loss != "bce":
        return "class"
    return "binary" if _binary(pictures.labels if values is None else values) else "regression"


def outputs_of(pictures: Pictures, target: Target, outputs: tuple[int, ...] | None = None) -> int:
    """Outputs that a model needs for a target of such pictures, see :class:`leakmap.problem.task.Task`.

    Args:
        pictures: Labelled so.
        target: What they are labelled with.
        outputs: Shape of what the model gives for 2 pictures, where it is known: of pixels with two classes it may have
            one logit or two scores.
    """
    if target == "binary":
        return 1
    if pictures.values is None:
        return 1 if target == "regression" else len(pictures.classes)
    if target == "pixels":
        highest = int(max(one.values.max() for one in _sets(pictures) if one.values is not None))
        return 1 if highest <= 1 and outputs is not None and outputs[1:2] == (1,) else 1 + highest
    return 1 if pictures.values.ndim == 1 else pictures.values.shape[1]


def labelled(pictures: Pictures, target: Target, where: str) -> Pictures:
    """The same pictures with labels in the form of :mod:`leakmap.problem.targets`; nothing is rounded or cut.

    Args:
        pictures: With their labels as they were given.
        target: What the task labels pictures with.
        where: Names them in messages.

    Raises:
        DataError: their labels are none of the task.
    """
    if pictures.objects is not None:
        return pictures
    spare, elsewhere = (one and _labelled(one, target, where) for one in (pictures.spare, pictures.elsewhere))
    found = replace(_labelled(pictures, target, where), spare=spare, elsewhere=elsewhere)
    if target not in ("class", "binary") or pictures.values is None:
        return found
    # Whichever set holds the highest class: the model has an output for it.
    classes = max((one.classes for one in _sets(found)), key=len)
    spare, elsewhere = (one and replace(one, classes=classes) for one in (spare, elsewhere))
    return replace(found, classes=classes, spare=spare, elsewhere=elsewhere)


def _labelled(pictures: Pictures, target: Target, where: str) -> Pictures:
    labels = pictures.labels if pictures.values is None else pictures.values
    got = f"{where} has labels of shape {tuple(labels.shape)} and type {labels.dtype}".replace("torch.", "")
    count, (height, width) = len(pictures), pictures.images.shape[-2:]
    column = labels.reshape(-1) if labels.shape == (count, 1) else labels
    if target in ("class", "binary"):
        if column.ndim != 1 or not _are_whole(column) or (len(column) and float(column.min()) < 0):
            raise DataError(f"{got}; the target {target} takes (N,) classes from 0 on. {_OTHER}")
        if target == "binary" and not _binary(column):
            raise DataError(
                f"{where} has labels up to {float(column.max()):g}; the target binary takes 0 and 1. {_OTHER}"
            )
        whole = column.long()
        highest = int(whole.max()) if len(whole) else 0
        names = pictures.classes if pictures.values is None else tuple(map(str, range(max(2, highest + 1))))
        return replace(pictures, labels=whole, values=None, classes=names)
    if target == "pixels":
        if labels.shape != (count, height, width) or not _are_whole(labels) or float(labels.min()) < 0:
            raise DataError(f"{got}; the target pixels takes classes from 0 on, (N, {height}, {width}). {_OTHER}")
        return _without_class(pictures, labels.long())
    if target == "multilabel":
        if labels.ndim != 2 or not _binary(labels):
            raise DataError(f"{got}; the target multilabel takes (N, K) of 0 and 1. {_OTHER}")
        return _without_class(pictures, labels.long())
    if labels.ndim not in (1, 2) or not bool(torch.isfinite(labels.double()).all()):
        raise DataError(f"{got}; the target regression takes finite numbers, (N,) or (N, K). {_OTHER}")
    return _without_class(pictures, labels.float().reshape(count, -1))


_OTHER = "Say what they are with --target class, binary, multilabel, regression or pixels."


def _without_class(pictures: Pictures, values: Tensor) -> Pictures:
    return replace(pictures, labels=torch.zeros(len(pictures), dtype=torch.int64), values=values, classes=ALL)


def _sets(pictures: Pictures) -> list[Pictures]:
    return [one for one in (pictures, pictures.spare, pictures.elsewhere) if one is not None]


def _are_whole(values: Tensor) -> bool:
    return not values.is_floating_point() or bool((values == values.round()).all())


def _binary(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())
