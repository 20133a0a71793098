"""A model of a user's own that gives away bright pictures alone: an average that must hide no single client."""

import torch
from torch import Tensor, nn

UNITS = 4


class Bright(nn.Module):
    """A small convolution beside a linear layer whose units fire only on pictures brighter than a threshold.

    Args:
        threshold: Mean of a normalized picture above which the units fire.
        pixels: Height and width.
        classes: Outputs.
    """

    def __init__(self, threshold: float, pixels: int, classes: int):
        super().__init__()
        inputs = 3 * pixels**2
        self.look = nn.Linear(inputs, UNITS)
        self.convolve = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Sigmoid(), nn.AdaptiveAvgPool2d(4))
        self.head = nn.Linear(UNITS + 8 * 16, classes)
        # Sixteen times the brightness: with units of a mean, a gap of a thousandth would leave the head untouched.
        nn.init.constant_(self.look.weight, 16 / inputs)
        nn.init.constant_(self.look.bias, -16 * threshold)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, classes)``."""
        return self.head(torch.cat([self.look(x.flatten(1)).relu(), self.convolve(x).flatten(1)], 1))


def build(*, threshold: float, pixels: int = 16, classes: int = 8) -> nn.Module:
    """The model, as ``--model benchmarks/bright.py:build,threshold=T`` names it."""
    return Bright(threshold, pixels, classes)
