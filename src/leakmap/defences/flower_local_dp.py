"""Flower's local differential privacy."""

import math
from typing import Annotated

from pydantic import Field

from leakmap.defences import Defence, Gaussian, defences
from leakmap.defences.clip_noise import CLIENT, Bound, Multiplier, clipped_with_noise


@defences.add(
    "flower_local_dp",
    examples=("flower_local_dp,clipping_norm=0.1,sensitivity=0.1,epsilon=4000,delta=1e-5",),
)
def flower_local_dp(
    *, clipping_norm: Bound, sensitivity: Multiplier, epsilon: Bound, delta: Annotated[float, Field(gt=0, lt=1)]
) -> Defence:
    """Flower's LocalDpMod: the update scaled to a norm of at most ``clipping_norm``, with Gaussian noise.

    The noise in every entry has the standard deviation ``sensitivity * sqrt(2 ln(1.25 / delta)) / epsilon``. What that
    promises follows from noise and clipping norm, and differs from the ``epsilon`` asked for where ``sensitivity`` is
    not the clipping norm, or ``epsilon`` is above 1. Flower clips and disturbs returned buffers together with the
    weights; here buffers are not defended.

    Args:
        clipping_norm: Largest norm of the update, all tensors together.
        sensitivity: As the client takes it to be.
        epsilon: As the client asks for it.
        delta: Likewise.

    Source: Flower 1.41, ``flwr.clientapp.mod.LocalDpMod``; Dwork and Roth 2014, "The Algorithmic Foundations of
    Differential Privacy", appendix A.
    """
    deviation = sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    return clipped_with_noise(Gaussian(clipping_norm, deviation / clipping_norm, CLIENT))
