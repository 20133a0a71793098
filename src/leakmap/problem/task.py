"""The public facts about the learning problem, which every participant knows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.errors import BadSetting
from leakmap.problem.objects import VALUES
from leakmap.registry.registry import checked_settings
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code, load_user_code

Loss = Callable[[Any, Any], Tensor]
"""``loss(outputs, y) -> scalar``: what the client minimises."""


def loss_of(model: Callable[..., Any], loss: Loss | None, x: Tensor, y: Tensor) -> Tensor:
    """The loss of a batch, a scalar.

    Args:
        model: Gives outputs for ``x``, or its own loss for ``(x, y)``.
        loss: ``loss(outputs, y)``; None: the model computes its own, as detectors do.
        x: ``(N, C, H, W)``, normalized.
        y: Targets, first dimension ``N``.
    """
    return model(x, y) if loss is None else loss(model(x), y)


@dataclass(frozen=True)
class Task:
    """What the model is for: the shape and range of its inputs, its classes and its loss.

    Models take *normalized* pictures: ``(picture - mean) / std`` per channel, for a picture in [0, 1].

    Args:
        shape: ``(C, H, W)`` of one input.
        classes: Number of classes.
        mean: Per channel, of pictures in [0, 1].
        std: Per channel, positive.
        loss: ``cross_entropy[,label_smoothing=E]`` or a user's ``file.py:function`` taking ``(outputs, y)``; a detector
            computes its own.
        objects: The most objects of a picture, which targets are padded to, see :mod:`leakmap.problem.objects`; 0 for
            classification, where a target is a class.
    """

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loss: Spec = field(default_factory=lambda: Spec("cross_entropy"))
    objects: int = 0

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise BadSetting(f"A task's shape is (channels, height, width), all at least 1; got {self.shape}.")
        if self.objects < 0:
            raise BadSetting(f"A task has at least 0 objects in a picture; got {self.objects}.")
        if self.classes < (1 if self.objects else 2):
            raise BadSetting(f"A task needs at least 2 classes, detection at least 1; got {self.classes}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.shape[0]:
                raise BadSetting(f"A task with {self.shape[0]} channels needs as many values of {name}; got {values}.")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise BadSetting(f"mean must be finite and every std positive; got {self.mean} and {self.std}.")

    def target_shape(self, count: int) -> tuple[int, ...]:
        """Of the targets of ``count`` examples: ``(count,)``, for detection ``(count, objects, 5)``."""
        return (count, self.objects, VALUES) if self.objects else (count,)

    def normalize(self, pictures: Tensor) -> Tensor:
        """Pictures ``(N, C, H, W)`` in [0, 1] -> model inputs."""
        mean, std = self._constants(pictures)
        return (pictures - mean) / std

    def denormalize(self, x: Tensor) -> Tensor:
        """Model inputs ``(N, C, H, W)`` -> pictures, clamped to [0, 1]."""
        mean, std = self._constants(x)
        return (x * std + mean).clamp(0, 1)

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest model input of each channel, each ``(C, 1, 1)``, on the device of ``like``."""
        mean, std = self._constants(like)
        return (0 - mean) / std, (1 - mean) / std

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        def column(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)

        return column(self.mean), column(self.std)


def cross_entropy(*, label_smoothing: float = 0.0) -> Loss:
    """Mean cross entropy over the batch, with optional label smoothing in [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise BadSetting(f"label_smoothing must lie in [0, 1); got {label_smoothing}.")
    return lambda outputs, y: F.cross_entropy(outputs, y, label_smoothing=label_smoothing)


def build_loss(spec: Spec) -> Loss:
    """The loss that a specification typed by the user names; runs the user's file if it names one."""
    if is_user_code(spec.name):
        if spec.params:
            raise BadSetting(f"A loss function of your own takes no settings; got {spec}.")
        return load_user_code(spec.name)
    if spec.name != "cross_entropy":
        raise BadSetting(f"There is no loss {spec.name!r}; use cross_entropy or path/to/file.py:function.")
    return cross_entropy(**checked_settings(cross_entropy, spec, "loss"))
