"""A plain convolutional network, the shallow and wide extreme."""

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from leakmap.models import models
from leakmap.models.blocks import Activation, Norm, Rate, Size, activation_layer, norm_layer
from leakmap.problem.task import Task


@models.add("convnet", examples=("convnet,width=8",))
def convnet(
    task: Task,
    *,
    depth: Annotated[int, Field(ge=1, le=32)] = 3,
    width: Size = 64,
    norm: Norm = "none",
    activation: Activation = "relu",
    dropout: Rate = 0.0,
    head: Literal["flatten", "pool"] = "flatten",
) -> nn.Module:
    """A stack of 3x3 convolutions and a linear head; every second convolution has stride 2.

    Args:
        task: Gives the input shape and the classes.
        depth: Number of convolutions.
        width: Channels of each convolution.
        norm: Normalization behind each convolution.
        activation: The activation function.
        dropout: Rate in front of the head.
        head: ``flatten`` feeds every position to the linear layer, ``pool`` their mean.
    """
    channels, height, width_in = task.shape
    layers: list[nn.Module] = []
    inputs = channels
    for i in range(depth):
        stride = 1 + i % 2
        layers += [nn.Conv2d(inputs, width, 3, stride, 1, bias=norm == "none"), norm_layer(norm, width)]
        layers.append(activation_layer(activation))
        inputs, height, width_in = width, -(-height // stride), -(-width_in // stride)
    if head == "pool":
        layers.append(nn.AdaptiveAvgPool2d(1))
        height = width_in = 1
    layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(width * height * width_in, task.classes)]
    return nn.Sequential(*layers)
