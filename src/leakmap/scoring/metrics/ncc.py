"""Normalized cross-correlation."""

from torch import Tensor

from leakmap.scoring.lineup import cross_correlation
from leakmap.scoring.metrics import Metric, metrics


@metrics.add("ncc")
def ncc() -> Metric:
    """Correlation of all values of both pictures, in [-1, 1]: brightness and contrast do not count.

    It is what line-ups rank by, and has no ceiling where all line-ups are won. Unrelated pictures have about 0, as a
    constant one has.

    Source: the usual definition, Pearson's correlation over pixels and channels.
    """

    def metric(pictures: Tensor, originals: Tensor) -> Tensor:
        return cross_correlation(pictures, originals).diagonal().float()

    return metric
