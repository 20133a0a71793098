"""Structural similarity."""

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from leakmap.scoring.metrics import Metric, metrics


@metrics.add("ssim")
def ssim() -> Metric:
    """SSIM with an 11x11 Gaussian window (sigma 1.5), K = (0.01, 0.03), data range 1, valid region, channel mean.

    The floor of unrelated pictures is about 0.02, not 0. Pictures need at least 11 pixels a side.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity".
    """

    def metric(pictures: Tensor, originals: Tensor) -> Tensor:
        pairs = zip(pictures.cpu().double().numpy(), originals.cpu().double().numpy(), strict=True)
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        values = [float(structural_similarity(a, b, channel_axis=0, **settings)) for a, b in pairs]  # pyright: ignore
        return torch.tensor(values)

    return metric
