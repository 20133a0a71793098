"""How far a simulated update is from the observed one, with the derivative in closed form.

A distance is given by its coefficients: from ``<g, g*>``, ``|g|`` and ``|g*|`` it returns the value ``D`` and the
numbers ``a, b`` such that ``dD/dg = a g* + b g``. So every engine gets its cotangent without a graph.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""``(dot, norm, target_norm) -> (D, a, b)``; 0-dim float64 tensors, nothing is read back to the host."""


def cosine(dot: Tensor, norm: Tensor, target_norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One minus the cosine over all tensors together; 1 with zero derivative where an update vanishes.

    Source: Geiping et al. 2020, arXiv:2003.14053, equation 4.
    """
    product = norm * target_norm
    alive = product > 0
    safe = torch.where(alive, product, torch.ones_like(product))
    c = torch.where(alive, (dot / safe).clamp(-1, 1), torch.zeros_like(dot))
    a = torch.where(alive, -1 / safe, torch.zeros_like(dot))
    b = torch.where(alive, c / torch.where(alive, norm, torch.ones_like(norm)).square(), torch.zeros_like(dot))
    return 1 - c, a, b


def squared(dot: Tensor, norm: Tensor, target_norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distance over the squared norm of the observed update.

    Source: Zhu et al. 2019, "Deep Leakage from Gradients", arXiv:1906.08935, scaled to be free of units.
    """
    scale = target_norm.square().clamp(min=1e-30)
    value = (norm.square() - 2 * dot + target_norm.square()) / scale
    return value.clamp(min=0), -2 / scale, 2 / scale


DISTANCES: dict[str, Distance] = {"cosine": cosine, "squared": squared}
