"""How alike reconstructions and originals are to originals, one metric per file.

A metric takes reconstructions and originals, both ``(N, C, H, W)`` in [0, 1] and already matched one to one, and
returns one value per pair. Higher is better for all of them (LPIPS is given as its negative).
"""

from collections.abc import Callable

from torch import Tensor

from leakmap.registry.registry import Registry

Metric = Callable[[Tensor, Tensor], Tensor]

metrics: Registry[Metric] = Registry("metric", __name__)
ALWAYS = ("psnr", "ssim")
"""The metrics that every audit computes."""
