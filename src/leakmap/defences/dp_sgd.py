"""Differentially private SGD."""

from leakmap.defences import Defence, Gaussian, defences
from leakmap.defences.clip_noise import Bound, Multiplier


@defences.add("dp_sgd", examples=("dp_sgd,clip=0.5,noise=0", "dp_sgd,clip=0.5,noise=0.01"))
def dp_sgd(*, clip: Bound = 1.0, noise: Multiplier = 1.0) -> Defence:
    """In every local step, clips the gradient of each example to ``clip`` and adds Gaussian noise to their sum.

    The mean gradient of ``B`` examples gets noise of the standard deviation ``noise * clip / B``. Layers that mix
    examples (BatchNorm in training mode) and active dropout are refused.

    Args:
        clip: Largest norm of an example's gradient.
        noise: Noise multiplier.

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", arXiv:1607.00133.
    """
    gaussian = Gaussian(clip, noise, "one picture")
    return Defence(examples=gaussian, gaussian=gaussian, left="ratios", exact=noise == 0)
