"""The mean absolute error."""

from leakmap.scoring.metrics import Metric, metrics


@metrics.add("plugin_metric")
def build() -> Metric:
    """Minus the mean absolute error.

    Source: the usual definition.
    """
    return lambda pictures, originals: -(pictures - originals).abs().flatten(1).mean(1)
