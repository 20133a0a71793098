"""The public facts about the learning problem, which every participant knows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.errors import BadSetting
from leakmap.problem import Target
from leakmap.problem.objects import EMPTY, GRID, VALUES
from leakmap.problem.targets import WITHOUT_CLASS, Loss, usual_loss
from leakmap.registry.registry import checked_settings
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code, load_user_code


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
    """What the model is for: the shape and range of its inputs, what it says of them, and its loss.

    Models take *normalized* pictures: ``(picture - mean) / std`` per channel, for a picture in [0, 1].

    Args:
        shape: ``(C, H, W)`` of one input.
        classes: Outputs of the model: class scores, logits or values; 1 for ``binary``.
        mean: Per channel, of pictures in [0, 1].
        std: Per channel, positive.
        loss: ``cross_entropy[,label_smoothing=E][,class_weights=W/W/…]``, ``bce``, ``mse`` or a user's
            ``file.py:function`` taking ``(outputs, y)``; a detector computes its own.
        objects: The most objects of a picture, which targets are padded to, see :mod:`leakmap.problem.objects`; 0 where
            pictures have no objects.
        target: What a picture is labelled with, see :mod:`leakmap.problem.targets`.
        output: Which part of what the model returns the loss takes: a name or a position; empty: all of it.
    """

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loss: Spec = field(default_factory=lambda: Spec("cross_entropy"))
    objects: int = 0
    target: Target = "class"
    output: str = ""

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise BadSetting(f"A task's shape is (channels, height, width), all at least 1; got {self.shape}.")
        if self.objects < 0:
            raise BadSetting(f"A task has at least 0 objects in a picture; got {self.objects}.")
        if self.target not in get_args(Target):
            raise BadSetting(f"A task's target is one of {', '.join(get_args(Target))}; got {self.target!r}.")
        if self.objects and self.target != "class":
            raise BadSetting(f"Pictures with objects have no other target; got {self.target!r}.")
        if self.target == "binary" and self.classes != 1:
            raise BadSetting(f"A binary task has one output, classes = 1; got {self.classes}.")
        if self.classes < (2 if self.target == "class" and not self.objects else 1):
            raise BadSetting(
                f"A task needs at least 2 classes, detection at least 1; got {self.classes}. A model with one output "
                "has the target binary or regression."
            )
        weights = weights_of(self.loss.params.get("class_weights", ""))
        if weights and len(weights) != self.classes:
            raise BadSetting(f"{self.classes} classes need as many class_weights; got {len(weights)}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.shape[0]:
                raise BadSetting(f"A task with {self.shape[0]} channels needs as many values of {name}; got {values}.")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise BadSetting(f"mean must be finite and every std positive; got {self.mean} and {self.std}.")

    def target_shape(self, count: int) -> tuple[int, ...]:
        """Of the targets of ``count`` examples, see :mod:`leakmap.problem.targets`; of objects ``(count, M, 5)``."""
        if self.objects:
            return (count, self.objects, VALUES)
        if self.target == "pixels":
            return (count, *self.shape[1:])
        return (count, self.classes) if self.target in ("multilabel", "regression") else (count,)

    @property
    def labels(self) -> int:
        """Different labels that a picture, an object, an output or a pixel can have; 0 for real values."""
        return {"regression": 0, "binary": 2, "multilabel": 2, "pixels": max(2, self.classes)}.get(
            self.target, self.classes
        )

    @property
    def counted(self) -> bool:
        """Whether it makes sense to say how many examples, or objects, of each class there are."""
        return self.target not in WITHOUT_CLASS

    def blank(self, count: int) -> Tensor:
        """Targets of ``count`` examples that say nothing: all 0, and no object."""
        if self.objects:
            return torch.full(self.target_shape(count), EMPTY)
        return torch.zeros(
            self.target_shape(count), dtype=torch.float32 if self.target == "regression" else torch.int64
        )

    def tried(self, count: int) -> Tensor:
        """Some targets of ``count`` examples, different ones where there can be, to try a loss with."""
        if self.objects:
            return torch.tensor([0, *[GRID // 2] * (VALUES - 1)]).repeat(count, 1, 1)
        shape = self.target_shape(count)
        y = torch.arange(count).view(-1, *[1] * (len(shape) - 1)).expand(shape)
        return y / count if self.target == "regression" else y % self.labels

    def free(self, count: int) -> tuple[int, ...]:
        """Shape of the free values behind searched targets of ``count`` examples, see :meth:`searched`."""
        return (count, self.classes) if self.target == "class" else self.target_shape(count)

    def searched(self, free: Tensor) -> Tensor:
        """Targets as a search sees them: class distributions ``(N, classes)``, probabilities of labels, or values."""
        if self.target == "class":
            return free.softmax(1)
        return free if self.target == "regression" else free.sigmoid()

    def settled(self, y: Tensor) -> Tensor:
        """Targets that were searched, or are given, as they stand in a batch."""
        if self.target == "regression" or not y.is_floating_point():
            return y
        return y.argmax(1) if self.target == "class" else (y > 0.5).long()

    def wrong(self, y: Tensor, count: int) -> str:
        """What is wrong with the targets of ``count`` examples, as a clause behind their name; empty if nothing is."""
        if tuple(y.shape) != self.target_shape(count):
            return f"has shape {tuple(y.shape)}, expected {self.target_shape(count)}"
        if self.target == "regression":
            if not y.is_floating_point():
                return f"has type {y.dtype}, expected floats"
            return "" if bool(torch.isfinite(y).all()) else "holds values that are not finite"
        if y.dtype != torch.int64:
            return f"has type {y.dtype}, expected torch.int64"
        return self._wrong_objects(y) if self.objects else self._wrong_labels(y)

    def _wrong_labels(self, labels: Tensor) -> str:
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.labels:
            return f"holds a class outside 0..{self.labels - 1}"
        return ""

    def _wrong_objects(self, y: Tensor) -> str:
        found = y[..., 0]
        if y.numel() and not int(found.min()) >= EMPTY:
            return f"holds a class below {EMPTY}"
        boxes = y[found != EMPTY]
        sides = boxes[:, 1:]
        if len(boxes) and not (int(sides.min()) >= 0 and int(sides.max()) <= GRID and int(boxes[:, 3:].min()) > 0):
            return "holds a box outside the picture, or without width or height"
        return self._wrong_labels(boxes[:, 0])

    def leaky(self) -> "Task":
        """The task of a planted control: the same kind of target with the loss that goes with it.

        The control is a network of its own, which neither detects, nor labels pixels, nor returns more than one tensor;
        of a loss of the user's own nobody knows whether it fits.
        """
        task = replace(self, output="")
        if self.objects or self.target == "pixels":
            task = replace(task, classes=max(2, self.classes), objects=0, target="class")
        own = task.target == "class" and self.target == "class" and self.loss.name == "cross_entropy"
        return replace(task, loss=self.loss if own else Spec(usual_loss(task.target, task.classes)))

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


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross entropy over the batch, as ``torch.nn.CrossEntropyLoss`` computes it.

    Args:
        label_smoothing: In [0, 1).
        class_weights: Of every class, at least 0: the mean over a batch is weighted by them; empty: all alike.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        weights = outputs.new_tensor(self.class_weights) if self.class_weights else None
        return F.cross_entropy(outputs, y, weights, label_smoothing=self.label_smoothing)


def cross_entropy(*, label_smoothing: float = 0.0, class_weights: str = "") -> Loss:
    """Mean cross entropy, with label smoothing in [0, 1) and class weights as ``W/W/…``, one for each class."""
    if not 0 <= label_smoothing < 1:
        raise BadSetting(f"label_smoothing must lie in [0, 1); got {label_smoothing}.")
    return CrossEntropy(label_smoothing, weights_of(class_weights))


def weights_of(text: str) -> tuple[float, ...]:
    """Class weights that are written as ``W/W/…``; empty where there are none.

    Raises:
        BadSetting: it is not written so, or a weight is negative or infinite.
    """
    try:
        found = tuple(map(float, str(text).split("/"))) if text != "" else ()
    except ValueError:
        raise BadSetting(f"class_weights are written W/W/…, one number for each class; got {text!r}.") from None
    if not all(0 <= weight < math.inf for weight in found):
        raise BadSetting(f"class_weights must be at least 0 and finite; got {text!r}.")
    return found


def bce() -> Loss:
    """Mean binary cross entropy of logits, over pictures and outputs."""
    return F.binary_cross_entropy_with_logits


def mse() -> Loss:
    """Mean squared difference, over pictures and outputs."""
    return F.mse_loss


LOSSES: dict[str, Callable[..., Loss]] = {"cross_entropy": cross_entropy, "bce": bce, "mse": mse}


def build_loss(spec: Spec) -> Loss:
    """The loss that a specification typed by the user names; runs the user's file if it names one."""
    if is_user_code(spec.name):
        if spec.params:
            raise BadSetting(f"A loss function of your own takes no settings; got {spec}.")
        return load_user_code(spec.name)
    if spec.name not in LOSSES:
        raise BadSetting(f"There is no loss {spec.name!r}; use {', '.join(LOSSES)} or path/to/file.py:function.")
    return LOSSES[spec.name](**checked_settings(LOSSES[spec.name], spec, "loss"))
