"""Statistics of pictures in the BatchNorm layers of a network."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from leakmap.client_step import arrange
from leakmap.local_rule import LocalRule
from leakmap.models.network import Network

CALIBRATION = 32
"""Pictures that are set apart for it."""


def calibrated(network: Network, x: Tensor) -> Network:
    """The same network with the statistics of ``x`` in its BatchNorm layers."""
    module = arrange(network.module(), LocalRule(dropout=0.0))
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    with torch.no_grad():
        module(x)
    return replace(network, weights={name: tensor.detach().clone() for name, tensor in module.state_dict().items()})
