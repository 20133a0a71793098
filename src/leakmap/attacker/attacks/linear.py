"""The closed form for a linear layer with a bias."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import floor_of_search
from leakmap.attacker.closed_form import qualifying_layer
from leakmap.attacker.equations import facts_used, label_notes, ordered
from leakmap.attacker.gradients import mean_gradient
from leakmap.attacker.labels import told
from leakmap.attacker.protocol import CLOSED_FORM, free_to_fit, nothing_to_fit, nothing_to_restore, trying_shows
from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.defences import defence_of
from leakmap.errors import NotApplicable
from leakmap.observation.observation import Observation
from leakmap.seeds import derive

MEMORY_SHARE = 1e-3
"""Rows whose bias gradient is below this share of the largest one are rounding, not signal."""


@attacks.add("linear")
@dataclass(frozen=True, kw_only=True)
class Linear:
    """Reads the input of a first linear layer off its gradient: ``dW_i / db_i``, row by row.

    Exact for one example; for several, a row that is active for a single example gives that example and other rows
    give mixtures, so rows are grouped and the purest groups are returned first. One local step of SGD only changes the
    scale, which cancels, and so does clipping; noise and rounding blur the rows. Of a sparse update only rows that were
    sent whole are read.

    Applies: where a linear layer with a bias sees the pictures themselves.

    Source: Phong et al. 2018, "Privacy-Preserving Deep Learning via Additively Homomorphic Encryption".
    """

    labels: str = "auto"

    needs = frozenset({"count"})
    leaky_model = "mlp"
    cost = CLOSED_FORM
    blind = floor_of_search
    why_not = trying_shows
    fits = ""
    fit_cost = free_to_fit
    fit = nothing_to_fit
    restored = nothing_to_restore

    def __call__(self, observation: Observation, seed: int, tick: Tick) -> Reconstruction:
        """Attacks.

        Raises:
            NotApplicable: no linear layer with a bias sees the pictures themselves, its gradient vanishes, or a defence
                left signs or parts of it.
        """
        layer = qualifying_layer(observation, "linear")
        gradient = mean_gradient(observation, (f"{layer}.weight", f"{layer}.bias"))
        labels = told(observation, self.labels, derive(seed, "labels"))
        y = labels.y
        weight, bias = gradient[f"{layer}.weight"], gradient[f"{layer}.bias"]
        if observation.rule is not None and defence_of(observation.rule.defence).left == "largest":
            bias = bias * (weight != 0).all(dim=1)
            if not bias.any():
                raise NotApplicable(f"The defence {observation.rule.defence} left no row of {layer!r} whole.")
        rows, dz = candidates(weight, bias, len(y))
        network = observation.network
        again = torch.arange(len(y), device=rows.device) % len(rows)
        inputs = rows.to(network.dtype).view(-1, *network.task.shape)[again]
        tick(1.0)
        return Reconstruction(
            network.task.denormalize(inputs),
            ordered(y, network, f"{layer}.bias", inputs, dz[:, again]),
            math.nan,
            notes={"layer": layer, "rows found": len(rows), **label_notes(observation, labels)},
            used=facts_used(observation, labels),
        )


def candidates(weight: Tensor, bias: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Up to ``count`` different inputs ``(n, features)``, those that most rows agree on first, and ``(outputs, n)`` the
    gradient of the outputs that belong to each, 0 elsewhere.

    Args:
        weight: ``(outputs, features)`` gradient, float64.
        bias: ``(outputs,)`` gradient, float64.
        count: Examples of the client.

    Raises:
        NotApplicable: the gradient of the bias vanishes, as it does in front of a BatchNorm layer.
    """
    strongest = bias.abs().max()
    if not float(strongest) > 0:
        raise NotApplicable("The gradient of the first layer's bias is zero, so its input cannot be read off.")
    order = bias.abs().argsort(descending=True)
    order = order[bias.abs()[order] >= MEMORY_SHARE * strongest]
    rows = weight[order] / bias[order, None]
    scale = rows.norm(dim=1).clamp(min=1e-12)
    chosen: list[int] = []
    groups: list[Tensor] = []
    taken = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for i in range(len(rows)):
        if taken[i]:
            continue
        same = ((rows - rows[i]).norm(dim=1) <= 1e-2 * scale[i]) & ~taken
        taken |= same
        chosen.append(i)
        groups.append(order[same])
    ranked = sorted(range(len(chosen)), key=lambda k: -len(groups[k]))[:count]
    dz = bias.new_zeros(len(bias), len(ranked))
    for place, k in enumerate(ranked):
        dz[groups[k], place] = bias[groups[k]]
    return rows[[chosen[k] for k in ranked]], dz
