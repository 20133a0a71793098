"""Residual networks with the knobs of the architecture study."""

from typing import Literal

import torch
from torch import Tensor, nn

from leakmap.models import models
from leakmap.models.blocks import Activation, Blocks, Norm, Rate, Size, activation_layer, norm_layer
from leakmap.problem.task import Task

Stem = Literal["small", "imagenet", "patch"]
Shortcut = Literal["input", "act"]


def _conv(inputs: int, outputs: int, kernel: int, stride: int, norm: Norm) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=norm == "none")


class PostActivation(nn.Module):
    """conv, norm, act, conv, norm; then the shortcut is added and activated (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, inputs: int, width: int, stride: int, skip: bool, norm: Norm, act: Activation, dropout: float):
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, width, 3, stride, norm), norm_layer(norm, width)
        self.conv2, self.norm2 = _conv(width, width, 3, 1, norm), norm_layer(norm, width)
        self.act1, self.act2 = activation_layer(act), activation_layer(act)
        self.dropout = nn.Dropout(dropout)
        self.shortcut: nn.Module | None = None
        if skip:
            same = stride == 1 and inputs == width
            projection = nn.Sequential(_conv(inputs, width, 1, stride, norm), norm_layer(norm, width))
            self.shortcut = nn.Identity() if same else projection

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` -> ``(N, width, H / stride, W / stride)``."""
        out = self.dropout(self.act1(self.norm1(self.conv1(x))))
        out = self.norm2(self.conv2(out))
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return self.act2(out)


class PreActivation(nn.Module):
    """norm, act, conv, norm, act, conv; the shortcut is added untouched (He et al. 2016, arXiv:1603.05027).

    ``shortcut_from="act"`` takes the shortcut behind the first activation, also where it is an identity, as the code
    of arXiv:2508.19819 does; ``"input"`` takes the raw input.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        skip: bool,
        norm: Norm,
        act: Activation,
        dropout: float,
        shortcut_from: Shortcut,
    ):
        super().__init__()
        self.norm1, self.conv1 = norm_layer(norm, inputs), _conv(inputs, width, 3, stride, norm)
        self.norm2, self.conv2 = norm_layer(norm, width), _conv(width, width, 3, 1, norm)
        self.act1, self.act2 = activation_layer(act), activation_layer(act)
        self.dropout = nn.Dropout(dropout)
        self.shortcut_from = shortcut_from
        self.shortcut: nn.Module | None = None
        if skip:
            same = stride == 1 and inputs == width
            self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` -> ``(N, width, H / stride, W / stride)``."""
        first = self.act1(self.norm1(x))
        out = self.conv2(self.dropout(self.act2(self.norm2(self.conv1(first)))))
        if self.shortcut is not None:
            out = out + self.shortcut(first if self.shortcut_from == "act" else x)
        return out


class ResNet(nn.Module):
    """A stem, stages of residual blocks that double the width and halve the resolution, mean pooling, a linear head."""

    def __init__(self, stem: nn.Module, stages: nn.Module, tail: nn.Module, width: int, classes: int):
        super().__init__()
        self.stem, self.stages, self.tail = stem, stages, tail
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` -> ``(N, classes)``."""
        out = self.tail(self.stages(self.stem(x)))
        return self.head(torch.flatten(out.mean((2, 3)), 1))


@models.add("resnet", examples=("resnet,blocks=1-1,width=8",))
def resnet(
    task: Task,
    *,
    blocks: Blocks = (2, 2, 2, 2),
    width: Size = 64,
    preact: bool = False,
    skip: bool = True,
    norm: Norm = "batch",
    activation: Activation = "relu",
    dropout: Rate = 0.0,
    stem: Stem = "small",
    shortcut_from: Shortcut = "input",
    final_norm: bool = False,
) -> ResNet:
    """A residual network.

    Args:
        task: Gives channels and classes.
        blocks: Residual blocks of each stage; each stage after the first doubles the width and halves the resolution.
        width: Channels of the first stage.
        preact: Normalize and activate in front of each convolution instead of behind it.
        skip: Whether the blocks have shortcuts.
        norm: The kind of normalization.
        activation: The activation function.
        dropout: Rate of the dropout between the two convolutions of each block.
        stem: ``small`` is a 3x3 convolution; ``imagenet`` 7x7 with stride 2 and a max pooling; ``patch`` 4x4, stride 4.
        shortcut_from: Where a pre-activation block takes its shortcut; with ``act`` the stem is normalized and
            activated, as in the code of arXiv:2508.19819.
        final_norm: Whether normalization and activation follow the last pre-activation block, as in He et al. 2016;
            off as in the code of arXiv:2508.19819. In training mode it removes the mean that the head pools.
    """
    channels = task.shape[0]
    if stem == "patch":
        first: list[nn.Module] = [nn.Conv2d(channels, width, 4, 4, bias=norm == "none")]
    else:
        imagenet = stem == "imagenet"
        first = [_conv(channels, width, 7 if imagenet else 3, 2 if imagenet else 1, norm)]
    if not (preact and shortcut_from == "input"):
        first += [norm_layer(norm, width), activation_layer(activation)]
    if stem == "imagenet":
        first.append(nn.MaxPool2d(3, 2, 1))

    layers: list[nn.Module] = []
    inputs = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            outputs = width * 2**stage
            stride = 2 if stage and not block else 1
            arguments = (inputs, outputs, stride, skip, norm, activation, dropout)
            layers.append(PreActivation(*arguments, shortcut_from) if preact else PostActivation(*arguments))
            inputs = outputs
    tail = nn.Identity()
    if preact and final_norm:
        tail = nn.Sequential(norm_layer(norm, inputs), activation_layer(activation))
    return ResNet(nn.Sequential(*first), nn.Sequential(*layers), tail, inputs, task.classes)
