"""NVFlare's filter by size."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from leakmap.defences import Defence, Simulated, defences
from leakmap.defences.clip_noise import Bound

Steps = Annotated[int, Field(ge=1)]
FLATTER = 3
"""Cutoffs over which an attack's stand-in rises at least: entries that became 0 must not lie on its flat part."""


@defences.add("percentile", examples=("percentile", "percentile,percentile=90,gamma=0.001"))
def percentile(
    *, percentile: Annotated[float, Field(ge=0, le=100)] = 10, gamma: Bound = 0.01, steps: Steps = 1
) -> Defence:
    """NVFlare's PercentilePrivacy: small entries become 0, the others are cut off at ``gamma``. No guarantee.

    Entries whose magnitude is below the percentile of all entries together become 0. Single numbers, without a
    dimension, stay as they are. An attack descends on entries that are softly cut off, which came out best.

    Args:
        percentile: Share of the entries that become 0, in percent.
        gamma: Largest magnitude of an entry of the update divided by ``steps``.
        steps: Local steps that the client says it took, as NVFlare divides the update by them and multiplies it again.

    Source: NVFlare 2.9, ``nvflare.app_common.filters.PercentilePrivacy``, after Shokri and Shmatikov 2015,
    "Privacy-Preserving Deep Learning", CCS.
    """
    bound = gamma * steps

    def cutoff_of(update: Sequence[Tensor]) -> float:
        sizes = torch.cat([tensor.detach().abs().flatten() for tensor in update])
        # torch.quantile refuses more than 2 ** 24 entries.
        return float(np.percentile(sizes.cpu().numpy(), percentile))

    def share(update: Sequence[Tensor], source: torch.Generator | None) -> list[Tensor]:
        cutoff = cutoff_of(update)
        return [t if not t.ndim else t.where(t.abs() >= cutoff, 0.0).clamp(-bound, bound) for t in update]

    def simulate(update: Sequence[Tensor], observed: Sequence[Tensor]) -> Simulated:
        return softly_cut(update, max(bound, FLATTER * cutoff_of(update)), bound)

    return Defence(share, simulate, left="largest", exact=False)


def softly_cut(update: Sequence[Tensor], scale: float, bound: float) -> Simulated:
    """``bound tanh(g / scale)`` in place of entries that are cut off at a bound; of one dimension or more.

    Where the mean magnitude of a tensor is above the scale it takes its place: nearly all of it is cut off, and
    ``g / scale`` would have no slope.
    """
    scales = [t.detach().abs().mean().clamp(min=scale) if t.ndim else torch.ones_like(t) for t in update]
    soft = [torch.tanh(t / own) if t.ndim else t for t, own in zip(update, scales, strict=True)]
    slopes = [
        bound / own * (1 - one * one) if one.ndim else torch.ones_like(one)
        for one, own in zip(soft, scales, strict=True)
    ]
    return Simulated([bound * one if one.ndim else one for one in soft], slopes)
