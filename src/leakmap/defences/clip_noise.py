"""Clipping and noise on the finished update."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from leakmap.defences import Defence, Gaussian, Simulated, defences

Bound = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Multiplier = Annotated[float, Field(ge=0, allow_inf_nan=False)]
CLIENT = "a client with all its pictures"
"""Whose data the noise on a finished update hides."""


@defences.add("clip_noise", examples=("clip_noise,clip=0.1,noise=0", "clip_noise,clip=0.1,noise=0.001"))
def clip_noise(*, clip: Bound = 1.0, noise: Multiplier = 0.01) -> Defence:
    """Scales the whole update to a norm of at most ``clip`` and adds Gaussian noise to every entry.

    An epsilon counts for the client with all its pictures together.

    Args:
        clip: Largest norm of the update, all tensors together.
        noise: Standard deviation of the noise over ``clip``.

    Source: McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models", arXiv:1710.06963.
    """
    return clipped_with_noise(Gaussian(clip, noise, CLIENT))


def clipped_with_noise(gaussian: Gaussian) -> Defence:
    """The defence that scales a finished update to a norm and adds Gaussian noise to it."""

    def share(update: Sequence[Tensor], source: torch.Generator | None) -> list[Tensor]:
        factor = gaussian.factor(update)
        return gaussian.disturbed([tensor * factor for tensor in update], source)

    def simulate(update: Sequence[Tensor], observed: Sequence[Tensor]) -> Simulated:
        factor = gaussian.factor(update)
        # The factor is passed on as a constant slope: its own derivative is left out.
        return Simulated([tensor * factor for tensor in update], [factor] * len(update))

    return Defence(share, simulate, gaussian=gaussian, left="ratios", exact=gaussian.noise == 0)
