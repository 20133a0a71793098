"""How far a simulated update is from the observed one, with the derivative in closed form.

A distance is given by its coefficients: from ``<g, g*>``, ``|g|^2`` and ``|g*|^2`` of every tensor it returns the value
``D`` and the numbers ``a, b`` such that ``dD/dg = a g* + b g``. So every engine gets its cotangent without a graph.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

VANISHED = 1e-24
"""Squared size of an update, over that of the observed one, below which it counts as none. A trained network can be so
sure of a guess that its update has entries of 1e-20, whose float32 squares underflow: their cosine is noise."""

Distance = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""``(dots, squares, target_squares) -> (D, a, b)``: float64, ``(tensors,)`` each; D is 0-dim, a and b are 0-dim or
``(tensors,)``; nothing is read back to the host."""


def cosine(dots: Tensor, squares: Tensor, target_squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One minus the cosine over all tensors together; 1 with zero derivative where an update vanishes beside the other.

    Source: Geiping et al. 2020, arXiv:2003.14053, equation 4.
    """
    return _cosine(dots.sum(), squares.sum(), target_squares.sum())


def layer_cosine(dots: Tensor, squares: Tensor, target_squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One minus the cosine of each tensor, averaged over the tensors.

    Source: Wei et al. 2020, arXiv:2004.10397, compare layer by layer.
    """
    value, a, b = _cosine(dots, squares, target_squares)
    return value.mean(), a / len(dots), b / len(dots)


def angular(dots: Tensor, squares: Tensor, target_squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Angle between the updates over pi.

    Source: a metric form of the cosine distance of Geiping et al. 2020, arXiv:2003.14053.
    """
    value, a, b = _cosine(dots.sum(), squares.sum(), target_squares.sum())
    cos = 1 - value
    # The angle has an infinite slope at cosine 1, which is the truth; the clamp keeps the derivative finite.
    slope = 1 / (math.pi * (1 - cos.square()).clamp(min=1e-12).sqrt())
    return cos.acos() / math.pi, a * slope, b * slope


def squared(dots: Tensor, squares: Tensor, target_squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distance over the squared norm of the observed update.

    Source: Zhu et al. 2019, "Deep Leakage from Gradients", arXiv:1906.08935, scaled to be free of units.
    """
    scale = target_squares.sum().clamp(min=1e-30)
    value = (squares.sum() - 2 * dots.sum() + target_squares.sum()) / scale
    # Near the truth the three sums cancel, and rounding can leave less than 0.
    return value.clamp(min=0), -2 / scale, 2 / scale


def _cosine(dot: Tensor, square: Tensor, target_square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Roots first: the product of two squares would underflow for updates that are small but not zero.
    product = square.sqrt() * target_square.sqrt()
    # NaN counts as alive, so a search that left the finite numbers is noticed.
    alive = ((product > 0) & (square > VANISHED * target_square)) | product.isnan()
    safe = torch.where(alive, product, torch.ones_like(product))
    c = torch.where(alive, (dot / safe).clamp(-1, 1), torch.zeros_like(dot))
    a = torch.where(alive, -1 / safe, torch.zeros_like(dot))
    b = torch.where(alive, c / torch.where(alive, square, torch.ones_like(square)), torch.zeros_like(dot))
    return 1 - c, a, b


DISTANCES: dict[str, Distance] = {
    "cosine": cosine,
    "layer_cosine": layer_cosine,
    "angular": angular,
    "squared": squared,
}
