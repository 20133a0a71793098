"""Fully connected networks, whose first layer gives its input away in closed form."""

import math

from torch import nn

from leakmap.models import models
from leakmap.models.blocks import Activation, Rate, Sizes, activation_layer
from leakmap.problem.task import Task


@models.add("mlp", examples=("mlp,hidden=16",))
def mlp(
    task: Task,
    *,
    hidden: Sizes = (256,),
    activation: Activation = "relu",
    dropout: Rate = 0.0,
    bias: bool = True,
) -> nn.Module:
    """A multilayer perceptron on the flattened picture.

    Args:
        task: Gives the input shape and the classes.
        hidden: Width of each hidden layer, ``512-256``.
        activation: The activation function.
        dropout: Rate behind each hidden layer.
        bias: Whether the linear layers have a bias.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = math.prod(task.shape)
    for width in hidden:
        layers += [nn.Linear(inputs, width, bias=bias), activation_layer(activation), nn.Dropout(dropout)]
        inputs = width
    layers.append(nn.Linear(inputs, task.classes, bias=bias))
    return nn.Sequential(*layers)
