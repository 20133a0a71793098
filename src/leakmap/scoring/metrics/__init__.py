"""How alike reconstructions and originals are to originals, one metric per file.

A metric takes reconstructions and originals, both ``(N, C, H, W)`` in [0, 1] and already matched one to one, and
returns one value per pair. Higher is better for all of them (LPIPS is given as its negative).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from leakmap.registry.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    Metric = Callable[[Tensor, Tensor], Tensor]
else:  # what reads the options of an audit waits for no torch
    Metric = Callable

metrics: Registry[Metric] = Registry("metric", __name__)
ALWAYS = ("psnr", "ssim")
"""The metrics that every audit computes."""
