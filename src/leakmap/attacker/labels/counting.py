"""From real numbers to labels: rounding, the greedy assignment, and how well either explains what was seen."""

import math

import torch
from torch import Tensor

from leakmap.observation.observation import Observation


def label_smoothing(observation: Observation) -> float:
    """The smoothing of the client's loss, in [0, 1): a public fact of the task."""
    return float(observation.network.task.loss.params.get("label_smoothing", 0.0))


def counts_from_mean_label(mean_label: Tensor, observation: Observation) -> Tensor:
    """``(classes,)`` real counts from the mean, possibly smoothed, label distribution ``mean_k(p_k) - db``."""
    smoothing, classes = label_smoothing(observation), observation.network.task.labels
    return (observation.count or 0) * (mean_label - smoothing / classes) / (1 - smoothing)


def solve_counts(confusion: Tensor, bias: Tensor, observation: Observation) -> Tensor:
    """``(classes,)`` real counts ``n`` with ``sum(n) = B`` and ``mean_k(p_k) - db`` as mean label, by least squares.

    Args:
        confusion: ``(classes, classes)``, row ``c`` the mean prediction for examples of class ``c``.
        bias: ``(classes,)`` mean gradient of the bias.
        observation: Gives the number of examples and the label smoothing.
    """
    total, classes, smoothing = observation.count or 0, len(bias), label_smoothing(observation)
    identity = torch.eye(classes, dtype=bias.dtype, device=bias.device)
    # The first equation says that the counts sum to the number of examples.
    system = torch.cat([torch.ones_like(bias)[None], confusion.T - (1 - smoothing) * identity])
    values = torch.cat([bias.new_tensor([1.0]), bias + smoothing / classes]) * total
    # Classes that are predicted alike make the system singular; pinv then takes the solution of least norm.
    return torch.linalg.pinv(system) @ values


def largest_remainder(real: Tensor, total: int) -> Tensor:
    """Rounds non-negative numbers to whole ones that sum to ``total``, after scaling them to that sum."""
    scaled = real * (total / real.sum().clamp(min=1e-30)) if float(real.sum()) > 0 else real
    whole = scaled.floor().long()
    missing = total - int(whole.sum())
    if missing > 0:
        # Where all counts are 0, more labels are missing than there are classes: the order repeats.
        order = (scaled - whole).argsort(descending=True, stable=True)
        whole[order.repeat(missing // len(order) + 1)[:missing]] += 1
    return whole


def greedy(signal: Tensor, impact: float, offset: Tensor | float, total: int) -> Tensor:
    """``(classes,)`` whole counts: each negative class once, then again and again the most negative one.

    Each label that is given out takes its ``impact`` off its own class, so a class can come several times.

    Args:
        signal: ``(classes,)`` gradient of each class, negative where it is present.
        impact: What one example adds to its class, negative.
        offset: What a class has without any example, taken off before the second stage.
        total: Number of labels to give out.
    """
    present = signal.argsort(stable=True)[:total]
    present = present[signal[present] < 0]
    counts = torch.zeros(len(signal), dtype=torch.long, device=signal.device)
    counts[present] = 1
    left = signal - impact * counts - offset
    for _ in range(total - len(present)):
        lowest = left.argmin()
        counts[lowest] += 1
        left[lowest] -= impact
    return counts


def repeated(classes: Tensor, total: int) -> Tensor:
    """``(total,)`` labels in ascending order: the given classes in turn, the first ones first."""
    return classes.repeat(total // len(classes) + 1)[:total].sort().values


def listed(counts: Tensor) -> Tensor:
    """``(total,)`` labels in ascending order from ``(classes,)`` counts."""
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def agreement(real: Tensor, whole: Tensor, noise: float) -> float:
    """In [0, 1]: the share of the labels that neither rounding moved nor noise is expected to.

    Args:
        real: ``(classes,)`` counts before rounding.
        whole: ``(classes,)`` counts after it.
        noise: Standard deviation that the noise in the update gives each real count.
    """
    rounded = float((real - whole).abs().sum())
    # Gaussian noise of deviation 1 has a mean magnitude of sqrt(2 / pi).
    expected = len(whole) * noise * (2 / math.pi) ** 0.5
    # A label in the wrong class is missing from one class and too much in another, so it counts twice in the sum.
    return max(0.0, 1.0 - 0.5 * max(rounded, expected) / int(whole.sum()))
