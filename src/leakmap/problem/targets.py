"""What a picture is labelled with, and in which form a loss takes it.

| target | of ``count`` pictures | the model gives |
|---|---|---|
| ``class`` | ``(count,)`` int64, a class from 0 on | ``(count, classes)`` scores |
| ``binary`` | ``(count,)`` int64, 0 or 1 | ``(count, 1)`` or ``(count,)`` logits |
| ``multilabel`` | ``(count, classes)`` int64, each 0 or 1 | ``(count, classes)`` logits |
| ``regression`` | ``(count, classes)`` float32 | ``(count, classes)`` values |
| ``pixels`` | ``(count, H, W)`` int64, a class of each pixel | ``(count, classes, H, W)`` scores, or one logit |

Losses differ in whether they take these as floats and with an axis for a single output; :func:`form_for` tries.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.problem import Target

Loss = Callable[[Any, Any], Tensor]
"""``loss(outputs, y) -> scalar``: what the client minimises."""
Form = Callable[[Tensor, Tensor], Tensor]
"""``form(y, like)``: targets as a loss takes them, floats in the type of ``like``."""

WITHOUT_CLASS: tuple[Target, ...] = ("multilabel", "regression", "pixels")
"""Targets that put no picture into one class: line-ups mix all pictures, and nobody is told how many of each."""


def usual_loss(target: Target, outputs: int) -> str:
    """The loss that goes with a target where nobody says another."""
    if target == "regression":
        return "mse"
    return "bce" if target in ("binary", "multilabel") or (target == "pixels" and outputs == 1) else "cross_entropy"


def _whole(y: Tensor, like: Tensor) -> Tensor:
    return y


def _real(y: Tensor, like: Tensor) -> Tensor:
    return y.to(like.dtype)


def _column(y: Tensor, like: Tensor) -> Tensor:
    return y.to(like.dtype).reshape(-1, 1)


def _row(y: Tensor, like: Tensor) -> Tensor:
    return y.to(like.dtype).reshape(-1)


def _plane(y: Tensor, like: Tensor) -> Tensor:
    return y.to(like.dtype).unsqueeze(1)


def _one_hot(y: Tensor, like: Tensor) -> Tensor:
    return y if y.is_floating_point() else F.one_hot(y, like.shape[1]).to(like.dtype)


_FORMS: dict[Target, tuple[Form, ...]] = {
    "class": (_whole, _one_hot),
    "binary": (_column, _row, _whole),
    "multilabel": (_real, _whole),
    "regression": (_real, _row),
    "pixels": (_whole, _plane, _real),
}


def like_of(outputs: Any) -> Tensor:
    """The first floating tensor among a model's outputs, in whatever they are wrapped; else a scalar."""
    if isinstance(outputs, Tensor):
        return outputs
    inner = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, tuple | list) else ()
    inner = inner or vars(outputs).values() if hasattr(outputs, "__dict__") else inner
    return next((one for one in inner if isinstance(one, Tensor) and one.is_floating_point()), torch.zeros(()))


def form_for(target: Target, loss: Loss, outputs: Any, y: Tensor) -> Form:
    """The form of targets that a loss takes, found by trying it on a model's own outputs.

    A form that lets targets of another number of pictures pass is broadcast against the outputs: every output would be
    compared with every target. Such a form is taken only where no other is.

    Args:
        target: What pictures are labelled with.
        loss: ``loss(outputs, y) -> scalar``.
        outputs: Of the model, for two pictures.
        y: ``(3, ...)`` targets in the form of this module, of which the first two are paired with the outputs.

    Raises:
        Exception: what the loss raises for the first form, if it takes none.
    """
    like = like_of(outputs)
    first: Exception | None = None
    broadcast: Form | None = None
    for form in _FORMS[target]:
        try:
            _tried(loss, outputs, form(y[:2], like))
        except Exception as error:
            first = first or error
            continue
        # Class numbers cannot be broadcast, and a loss may look at the outputs alone.
        if target == "class" or not _takes(loss, outputs, form(y, like)):
            return form
        broadcast = broadcast or form
    if broadcast is None:
        assert first is not None
        raise first
    return broadcast


def _tried(loss: Loss, outputs: Any, y: Tensor) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        loss(outputs, y)


def _takes(loss: Loss, outputs: Any, y: Tensor) -> bool:
    try:
        _tried(loss, outputs, y)
    except Exception:
        return False
    return True


def target_told_by(outputs: Tensor, loss: Loss) -> Target | None:
    """What pictures are labelled with, as far as a model's outputs and its loss tell without any label.

    Several scores and a loss that takes class numbers are ``class``. Otherwise the slope of the loss tells: towards a
    label of 1 it falls with the logit however large that is, towards a value it falls and rises again.

    Args:
        outputs: Of the model, for two pictures.
        loss: ``loss(outputs, y) -> scalar``.
    """
    if outputs.ndim == 4:
        return "pixels"
    if outputs.ndim == 2 and outputs.shape[1] > 1 and _takes(loss, outputs, torch.tensor([0, 1])):
        return "class"
    several: Target = "multilabel" if outputs.ndim == 2 and outputs.shape[1] > 1 else "binary"
    flat = (2, outputs.shape[1]) if several == "multilabel" else (2,)
    for target in (several, "regression"):
        try:
            form = form_for(target, loss, outputs, torch.ones(3, *flat[1:], dtype=torch.int64))
        except Exception:
            continue
        slopes = [_slope(loss, torch.full_like(outputs, at), form(torch.ones(flat), outputs)) for at in (-3.0, 3.0)]
        return several if all(slope <= 0 for slope in slopes) else "regression"
    return None


def _slope(loss: Loss, outputs: Tensor, y: Tensor) -> float:
    outputs = outputs.detach().requires_grad_()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (slope,) = torch.autograd.grad(loss(outputs, y), outputs)
    except Exception:  # a loss of probabilities refuses numbers beyond [0, 1], and so it is one of labels
        return 0.0
    return float(slope.sum())
