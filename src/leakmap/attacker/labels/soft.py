"""The label distribution of a single example."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.head import (
    Head,
    check_magnitudes,
    check_scale,
    facts_used,
    head_gradient,
    rescaled,
    rows_of,
)
from leakmap.errors import NotApplicable
from leakmap.observation.observation import Observation

NORMS = torch.logspace(-4, 0.151, 4000, dtype=torch.float64)
"""Tried for the norm of ``p - y``, which is at most the square root of 2."""
ZOOM = torch.linspace(0.997, 1.003, 1001, dtype=torch.float64)
"""Factors tried around the best of them."""
DIPS = 8
"""How many of them: long features that saturate the softmax fit a hard label nearly as well as the true ones."""


@label_rules.add("soft")
def soft(*, shape: Literal["smoothing", "mixup"] = "smoothing") -> LabelRule:
    """The label distribution of one example, as label smoothing or mixup makes it; the class is its largest entry.

    For one example ``dW = (p - y) h`` and ``db = p - y``. With a bias and a known scale ``h``, then ``p``, then ``y``
    follow exactly. Without a bias ``h``, or without the scale ``p - y``, is known up to one scalar: that one is taken
    whose distribution comes closest to entries of at least 0 that are all equal but for the largest (``smoothing``) or
    the two largest (``mixup``). One local step. The confidence falls with the part of the gradient that is not of rank
    one and with the probability mass that departs from that shape.

    Args:
        shape: What the distribution looks like.

    Source: Wang et al. 2024, "Towards Eliminating Hard Label Constraints in Gradient Inversion Attacks", ICLR,
    arXiv:2402.03124.
    """
    several = 1 if shape == "smoothing" else 2

    def rule(observation: Observation, seed: int) -> Labels:
        observation.need("count")
        steps = observation.rule.steps(observation.count or 1) if observation.rule else 1
        if observation.count != 1 or steps > 1:
            raise NotApplicable(
                f"soft reads the label of one example after one local step; this client has {observation.count} and "
                f"takes {steps}: use counts or dimitrov."
            )
        check_magnitudes(observation, "soft")
        head = head_gradient(observation)
        if not float(head.weight.norm()) > 0:
            raise NotApplicable("soft reads the gradient of the last layer, which is zero in this update.")
        found = torch.stack([_closest(family, norms, several) for family, norms in _families(observation, head)])
        y = found[misshape(found, several).argmin()]
        energy = torch.linalg.svdvals(head.weight).square()
        confidence = float(energy[0] / energy.sum().clamp(min=1e-300) * (1 - misshape(y, several)).clamp(min=0))
        y = y.clamp(min=0) / y.clamp(min=0).sum()
        used = facts_used(observation, "rule")
        return Labels(y.argmax().view(1), "soft", confidence, used, y[None].to(observation.network.dtype))

    return rule


def misshape(y: Tensor, several: int) -> Tensor:
    """Mass below 0, and by which all but the ``several`` largest entries differ: ``(..., classes)`` -> ``(...)``."""
    rest = y.sort(-1).values[..., : y.shape[-1] - several]
    return (-y).clamp(min=0).sum(-1) + (rest - rest.mean(-1, keepdim=True)).abs().sum(-1)


Family = Callable[[Tensor], Tensor]
"""Norms ``(n,)`` of ``p - y`` -> the distributions ``(n, classes)`` with which they fit the gradient."""


def _families(observation: Observation, head: Head) -> list[tuple[Family, Tensor]]:
    """What fits the gradient, each with the norms to try."""
    weights = observation.network.weights
    # The gradient of one example is (p - y) h, of rank one: its first singular vectors are both up to sign and scale.
    left, sizes, right = torch.linalg.svd(head.weight, full_matrices=False)
    logits = rows_of(weights[f"{head.name}.weight"].double()) @ right[0]
    if head.bias is None:
        check_scale(observation)

        def mirrored(sign: float) -> Family:
            return lambda norms: (
                (sign * sizes[0] / norms[:, None] * logits).softmax(1) - sign * norms[:, None] * left[:, 0]
            )

        return [(mirrored(sign), NORMS.to(left.device)) for sign in (1.0, -1.0)]
    norm = head.bias.norm().clamp(min=1e-300)
    length = sizes[0] * (left[:, 0] @ head.bias) / norm.square()
    predicted = (length * logits + rows_of(weights[f"{head.name}.bias"].double())).softmax(0)
    known = (observation.update.kind == "gradient" or observation.rule is not None) and not rescaled(observation)
    norms = norm[None] if known else NORMS.to(left.device)
    direction = head.bias / norm
    return [(lambda norms: predicted - norms[:, None] * direction, norms)]


def _closest(family: Family, norms: Tensor, several: int) -> Tensor:
    """The distribution ``(classes,)`` of a family that is closest to the shape."""
    if len(norms) > 1:
        distance = misshape(family(norms), several)
        dips = 1 + ((distance[1:-1] <= distance[:-2]) & (distance[1:-1] <= distance[2:])).nonzero()[:, 0]
        dips = torch.cat([dips, distance.argmin()[None]])
        # On the coarse grid a false dip can be as deep as the true one, so several are searched finely.
        dips = dips[distance[dips].argsort()[:DIPS]]
        norms = (norms[dips, None] * ZOOM.to(norms.device)).flatten()
    y = family(norms)
    return y[misshape(y, several).argmin()]
