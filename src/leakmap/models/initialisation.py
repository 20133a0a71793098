"""What a library draws at the start and a study wants otherwise: the head's weights, the layer scales.

A head of zeros sends nothing below itself, and layer scales of 1e-6 send next to nothing through the residual branches:
then a first update hides the pictures for reasons that end with the first steps of training.
"""

import re
from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from leakmap.errors import ModelError

Deviation = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_SCALE = re.compile(r"(?:^|\.)(?:layer_scale|gamma)(?:_?\d+)?(?:\.scale)?\Z")
"""Names of layer scales: ``layer_scale`` (ConvNeXt of torchvision), ``gamma``, ``ls1.gamma``, ``gamma_1``,
``layer_scale1.scale`` (timm); normalization layers call theirs ``weight``."""


def output_layers(module: nn.Module, classes: int) -> list[nn.Linear | nn.Conv2d]:
    """The linear and convolutional layers of ``module`` with one output for each class, in its order."""
    return [
        layer
        for layer in module.modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == classes)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == classes)
    ]


def initialise(
    module: nn.Module,
    name: str,
    heads: Iterable[nn.Linear | nn.Conv2d],
    head_std: float | None,
    layer_scale: float | None,
) -> nn.Module:
    """Changes the start of a freshly built network in place, drawing from torch's global stream; returns it.

    Args:
        module: The network.
        name: What to call it in messages.
        heads: Its last layers.
        head_std: Their weights become N(0, head_std ** 2) and their biases 0; None leaves them.
        layer_scale: Every layer scale becomes this; None leaves them.

    Raises:
        ModelError: it has no such layer or scale.
    """
    if head_std is not None:
        heads = list(heads)
        if not heads:
            raise ModelError(f"{name} ends in no linear layer with one output for each class: leave head_std out.")
        for head in heads:
            nn.init.normal_(head.weight, std=head_std)
            if head.bias is not None:
                nn.init.zeros_(head.bias)
    if layer_scale is not None:
        scales = [parameter for own, parameter in module.named_parameters() if _SCALE.search(own)]
        if not scales:
            raise ModelError(f"{name} has no layer scales: leave layer_scale out.")
        with torch.no_grad():
            for scale in scales:
                scale.fill_(layer_scale)
    return module
