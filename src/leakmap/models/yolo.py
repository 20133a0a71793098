"""A one-stage anchor-free detector with the knobs of the detector study."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from leakmap.errors import ModelError
from leakmap.models import models
from leakmap.models.blocks import Activation, Norm, Size, activation_layer, norm_layer
from leakmap.models.detection_loss import Assigner, Gains, detection_loss, static, task_aligned
from leakmap.models.resnet import PostActivation, PreActivation
from leakmap.problem.task import Task

Stem = Literal["strided", "resnet"]
Stage = Literal["csp", "residual", "preact"]
Depth = Annotated[int, Field(ge=1, le=32)]
Bins = Annotated[int, Field(ge=2, le=256)]
Gain = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]

STRIDES = (8, 16, 32)
STOCK_EPS, STOCK_MOMENTUM = 1e-3, 0.03
_CSP_BLOCKS = (1, 2, 2, 1)
_ASSIGNERS: dict[str, Assigner] = {"task_aligned": task_aligned, "static": static}


def _unit(inputs: int, outputs: int, kernel: int, stride: int, norm: Norm, act: Activation) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=norm == "none")
    return nn.Sequential(conv, norm_layer(norm, outputs), activation_layer(act))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, added to the input if there is a shortcut."""

    def __init__(self, width: int, shortcut: bool, norm: Norm, act: Activation):
        super().__init__()
        self.convs = nn.Sequential(*(_unit(width, width, 3, 1, norm, act) for _ in range(2)))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """``(N, width, H, W)``, in and out."""
        return x + self.convs(x) if self.shortcut else self.convs(x)


class CrossStage(nn.Module):
    """Half of the channels passes by a chain of blocks; what each block gives is gathered and mixed by a convolution.

    Wang et al. 2019, arXiv:1911.11929, with every block's output gathered as in Wang et al. 2022, arXiv:2211.04800.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, shortcut: bool, norm: Norm, act: Activation):
        super().__init__()
        half = outputs // 2
        self.split = _unit(inputs, 2 * half, 1, 1, norm, act)
        self.blocks = nn.ModuleList(Bottleneck(half, shortcut, norm, act) for _ in range(blocks))
        self.mix = _unit((2 + blocks) * half, outputs, 1, 1, norm, act)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` -> ``(N, outputs, H, W)``."""
        parts = list(self.split(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.mix(torch.cat(parts, 1))


class PyramidPooling(nn.Module):
    """Max pooling over 5x5, 9x9 and 13x13, as three 5x5 in a row (after He et al. 2015, arXiv:1406.4729)."""

    def __init__(self, width: int, norm: Norm, act: Activation):
        super().__init__()
        self.narrow = _unit(width, width // 2, 1, 1, norm, act)
        self.mix = _unit(width // 2 * 4, width, 1, 1, norm, act)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, width, H, W)``, in and out."""
        parts = [self.narrow(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.mix(torch.cat(parts, 1))


class Neck(nn.Module):
    """Top-down, then bottom-up: every level sees the others (Liu et al. 2018, arXiv:1803.01534).

    Args:
        stages: Four: strides 16 and 8 on the way down, 16 and 32 on the way up.
        downs: Two strided convolutions, of strides 8 and 16.
    """

    def __init__(self, stages: Sequence[nn.Module], downs: Sequence[nn.Module]):
        super().__init__()
        self.stages, self.downs = nn.ModuleList(stages), nn.ModuleList(downs)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The features of strides 8, 16 and 32, in and out."""
        middle = self.stages[0](torch.cat([F.interpolate(coarse, scale_factor=2.0), middle], 1))
        fine = self.stages[1](torch.cat([F.interpolate(middle, scale_factor=2.0), fine], 1))
        middle = self.stages[2](torch.cat([self.downs[0](fine), middle], 1))
        coarse = self.stages[3](torch.cat([self.downs[1](middle), coarse], 1))
        return fine, middle, coarse


class Head(nn.Module):
    """Two branches, for the classes and for the distances of the four sides, at one level.

    The bias of the class scores starts at ``log(5 / classes / (640 / stride) ** 2)``, as if a picture of 640 x 640 had
    five objects: initial scores are small.
    """

    def __init__(
        self, inputs: int, hidden: tuple[int, int], classes: int, bins: int, stride: int, norm: Norm, act: Activation
    ):
        super().__init__()
        self.bins = bins
        last = [nn.Conv2d(width, outputs, 1) for width, outputs in zip(hidden, (classes, 4 * bins), strict=True)]
        self.classes, self.sides = (
            nn.Sequential(_unit(inputs, width, 3, 1, norm, act), _unit(width, width, 3, 1, norm, act), conv)
            for width, conv in zip(hidden, last, strict=True)
        )
        for conv, value in zip(last, (math.log(5 / classes / (640 / stride) ** 2), 0.0), strict=True):
            if conv.bias is not None:
                nn.init.constant_(conv.bias, value)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, inputs, H, W)`` -> logits ``(N, H * W, classes)`` and ``(N, H * W, 4, bins)``."""
        return self.classes(x).flatten(2).mT, self.sides(x).flatten(2).mT.unflatten(-1, (4, self.bins))


class YOLO(nn.Module):
    """A backbone, a neck and a head for each of the strides 8, 16 and 32; its forward pass gives the loss."""

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        neck: Neck,
        heads: Sequence[Head],
        assign: Assigner,
        gains: Gains,
    ):
        super().__init__()
        self.stem, self.stages, self.neck, self.heads = stem, nn.ModuleList(stages), neck, nn.ModuleList(heads)
        self.assign, self.gains = assign, gains

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The training loss of a batch, a scalar, in training and in inference mode.

        Args:
            x: ``(N, C, H, W)``, normalized; H and W multiples of 32.
            y: ``(N, M, 5)`` int64, see :mod:`leakmap.problem.objects`.
        """
        levels, out = [], self.stem(x)
        for stage in self.stages:
            out = stage(out)
            levels.append(out)
        found = [head(level) for head, level in zip(self.heads, self.neck(*levels[1:]), strict=True)]
        classes, sides = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return detection_loss(classes, sides, y, x.shape[2:], STRIDES, self.assign, self.gains)


@models.add("yolo", examples=("yolo,width=4",), objects=True)
def yolo(
    task: Task,
    *,
    width: Size = 16,
    depth: Depth = 1,
    stem: Stem = "strided",
    stages: Stage = "csp",
    downsample: Literal["conv", "block"] = "conv",
    sppf: bool = True,
    neck: Stage = "csp",
    neck_depth: Depth = 1,
    activation: Activation = "silu",
    head_activation: Activation = "silu",
    norm_eps: Positive = STOCK_EPS,
    norm_momentum: Fraction = STOCK_MOMENTUM,
    norm: Literal["batch", "group", "none"] = "batch",
    reg_max: Bins = 16,
    assigner: Literal["task_aligned", "static"] = "task_aligned",
    box_gain: Gain = 7.5,
    class_gain: Gain = 0.5,
    dfl_gain: Gain = 1.5,
) -> YOLO:
    """A detector in the manner of production YOLOs of nano size; each knob is one step from there towards a leak.

    For the loss see :func:`leakmap.models.detection_loss.detection_loss`.

    Args:
        task: Gives size, channels and classes.
        width: Channels of the stem; the four stages have 2, 4, 8 and 16 times as many.
        depth: Multiplies the blocks of the stages: 1, 2, 2, 1 with ``csp``, 2, 2, 2, 2 else.
        stem: ``strided`` is a 3x3 convolution with stride 2; ``resnet`` 7x7 with stride 2 and a max pooling, and the
            first stage then keeps the resolution.
        stages: ``csp``: partial stages of bottlenecks; ``residual``: post-activation blocks (He et al. 2016,
            arXiv:1512.03385); ``preact``: pre-activation blocks (arXiv:1603.05027), with nothing behind their sum.
        downsample: ``conv``: a 3x3 convolution in front of each stage, with a stride; ``block``: none, the first block
            of the stage has the stride instead.
        sppf: Whether the last stage ends in pyramid pooling.
        neck: The kind of the four stages of the neck, as for ``stages``; ``csp`` has no shortcuts there. Two strided
            convolutions always stay.
        neck_depth: Blocks of each of the four stages of the neck.
        activation: Of everything but the heads and the two strided convolutions of the neck.
        head_activation: Of these.
        norm_eps: Of BatchNorm, in the parts that ``activation`` is for; the others keep 0.001.
        norm_momentum: Of BatchNorm, in the same parts; the others keep 0.03.
        norm: The kind of normalization.
        reg_max: Bins of the distribution of a side's distance, which is 0 .. reg_max - 1 strides.
        assigner: ``task_aligned`` follows the predictions; ``static`` looks at the boxes only, so that it cannot flip
            while an attack searches: a diagnosis.
        box_gain: Weight of the overlap.
        class_gain: Weight of the classes.
        dfl_gain: Weight of the distributions of the distances.

    Raises:
        ModelError: the task has no objects, its size is no multiple of 32, or ``csp`` stages should have the stride.
    """
    _check(task, stages, downsample)
    channels = [width * 2**stage for stage in range(5)]
    strides = (2 if stem == "strided" else 1, 2, 2, 2)

    def stage(kind: Stage, inputs: int, outputs: int, blocks: int, stride: int = 1, shortcut: bool = True) -> nn.Module:
        if kind == "csp":
            return CrossStage(inputs, outputs, blocks, shortcut, norm, activation)
        chain: list[nn.Module] = []
        for block in range(blocks):
            arguments = (outputs if block else inputs, outputs, 1 if block else stride, True, norm, activation, 0.0)
            chain.append(PostActivation(*arguments) if kind == "residual" else PreActivation(*arguments, "input"))
        return nn.Sequential(*chain)

    first = _unit(task.shape[0], width, 7 if stem == "resnet" else 3, 2, norm, activation)
    if stem == "resnet":
        first.append(nn.MaxPool2d(3, 2, 1))
    backbone: list[nn.Module] = []
    for inputs, outputs, stride, blocks in zip(channels[:-1], channels[1:], strides, _CSP_BLOCKS, strict=True):
        count = depth * (blocks if stages == "csp" else 2)
        if downsample == "conv":
            down = _unit(inputs, outputs, 3, stride, norm, activation)
            backbone.append(nn.Sequential(down, stage(stages, outputs, outputs, count)))
        else:
            backbone.append(nn.Sequential(stage(stages, inputs, outputs, count, stride)))
    if sppf:
        backbone.append(nn.Sequential(backbone.pop(), PyramidPooling(channels[-1], norm, activation)))

    fine, middle, coarse = channels[2:]
    merging = ((coarse + middle, middle), (middle + fine, fine), (fine + middle, middle), (middle + coarse, coarse))
    merges = [stage(neck, inputs, outputs, neck_depth, shortcut=False) for inputs, outputs in merging]
    downs = [_unit(size, size, 3, 2, norm, head_activation) for size in (fine, middle)]
    hidden = (max(fine, min(task.classes, 100)), max(16, fine // 4, 4 * reg_max))
    heads = [
        Head(size, hidden, task.classes, reg_max, stride, norm, head_activation)
        for size, stride in zip((fine, middle, coarse), STRIDES, strict=True)
    ]
    _set_constants([first, *backbone, *merges], norm_eps, norm_momentum)
    _set_constants([*downs, *heads], STOCK_EPS, STOCK_MOMENTUM)
    gains = Gains(box_gain, class_gain, dfl_gain)
    return YOLO(first, backbone, Neck(merges, downs), heads, _ASSIGNERS[assigner], gains)


def _check(task: Task, stages: Stage, downsample: str) -> None:
    if not task.objects:
        raise ModelError(
            "yolo is a detector, but the targets of this task are classes; it needs pictures with objects "
            "(--data coco:DIR)."
        )
    for name, size in zip(("height", "width"), task.shape[1:], strict=True):
        if size % STRIDES[-1]:
            more = -(-size // STRIDES[-1]) * STRIDES[-1]
            raise ModelError(
                f"yolo takes sides that are multiples of {STRIDES[-1]} px; got a {name} of {size}: use {more}."
            )
    if stages == "csp" and downsample == "block":
        raise ModelError(
            "csp stages of yolo have no block that could take the stride: set downsample=conv, or stages=residual or "
            "stages=preact."
        )


def _set_constants(parts: Sequence[nn.Module], eps: float, momentum: float) -> None:
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps, layer.momentum = eps, momentum
