"""Peak signal-to-noise ratio."""

from torch import Tensor

from leakmap.scoring.metrics import Metric, metrics

CAP = 60.0


@metrics.add("psnr")
def psnr() -> Metric:
    """``10 log10(1 / mse)`` in dB on pictures in [0, 1], capped at 60 (a perfect copy). One value per picture.

    Source: the usual definition with data range 1; on normalized tensors it would read about 12 dB lower.
    """

    def metric(pictures: Tensor, originals: Tensor) -> Tensor:
        return decibels((pictures.double() - originals.double()).square().flatten(1).mean(1)).float()

    return metric


def decibels(error: Tensor) -> Tensor:
    """Mean squared errors of pictures in [0, 1] as PSNR."""
    return -10 * error.clamp(min=10 ** (-CAP / 10)).log10()
