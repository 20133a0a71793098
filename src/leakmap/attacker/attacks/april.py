"""The closed form for a vision transformer whose first attention sees embedding plus position."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import floor_of_search
from leakmap.attacker.closed_form import first_attention
from leakmap.attacker.equations import facts_used, label_notes
from leakmap.attacker.gradients import mean_gradient
from leakmap.attacker.labels import told
from leakmap.attacker.protocol import CLOSED_FORM, free_to_fit, nothing_to_fit, nothing_to_restore, trying_shows
from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.errors import NotApplicable
from leakmap.models.network import Network
from leakmap.observation.observation import Observation
from leakmap.seeds import derive

RESIDUAL = 1e-3
"""Relative residual above which the update contradicts the closed form; rounding leaves 1e-6."""


@attacks.add("april")
@dataclass(frozen=True, kw_only=True)
class April:
    """Solves for the tokens that the first attention sees, and inverts the embedding of the patches.

    With ``A`` the transposed gradient of the learned positions, the tokens ``z`` of one example obey
    ``A z = Wq^T dWq + Wk^T dWk + Wv^T dWv``, provided that nothing stands between position and attention, neither
    LayerNorm nor shortcut nor dropout. Both steps are least squares in float64: exact while there are no more tokens
    than the width of one, and no more values in a patch.

    Args:
        labels: ``auto``, or the name of a label rule.

    Applies: to one example and one local step, where the first attention has neither a LayerNorm in front nor a
    shortcut around it.

    Source: Lu et al. 2022, "APRIL", arXiv:2112.14087.
    """

    labels: str = "auto"

    needs = frozenset({"count"})
    leaky_model = "vit,prenorm=false,skip=false"
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
            NotApplicable: there is more than one example, the architecture does not qualify, or the update
                contradicts the closed form.
        """
        names = first_attention(observation)
        labels = told(observation, self.labels, derive(seed, "labels"))
        network = observation.network
        read = (names.position, *names.readers)
        if missing := [name for name in read if name not in observation.update.tensors]:
            raise NotApplicable(f"APRIL needs the gradient of {missing[0]!r}, which the client does not share.")
        matrix, right = names.system(network, mean_gradient(observation, read))
        tokens = torch.linalg.pinv(matrix) @ right
        residual = float((matrix @ tokens - right).norm() / right.norm())
        if not residual < RESIDUAL:
            raise NotApplicable(
                f"APRIL's equations leave a residual of {residual:.1e}, not rounding: noise, dropout behind the "
                "positions, or several local steps contradict them."
            )
        values = torch.linalg.svdvals(matrix)
        embedded = tokens - network.weights[names.position].double().reshape(tokens.shape)
        pictures = network.task.denormalize(unembed(network, embedded, names.embedding).to(network.dtype))
        tick(1.0)
        return Reconstruction(
            pictures,
            labels.y,
            math.nan,
            notes={
                "attention": names.readers[0],
                "residual": residual,
                "condition": float(values[0] / values[-1]),
                **label_notes(observation, labels),
            },
            used=facts_used(observation, labels),
        )


def unembed(network: Network, tokens: Tensor, embedding: str) -> Tensor:
    """The normalized picture ``(1, C, H, W)`` whose patches embed to the last tokens, by least squares.

    Args:
        network: Gives shape and weights.
        tokens: ``(tokens, dim)`` without positions; class tokens come first.
        embedding: Name of the weight of the patch convolution.
    """
    weights, (_, height, width) = network.weights, network.task.shape
    kernel = weights[embedding].double()
    bias = weights.get(f"{embedding.removesuffix('weight')}bias")
    rows, columns = kernel.shape[2:]
    count = (height // rows) * (width // columns)
    values = tokens[-count:] if bias is None else tokens[-count:] - bias.double()
    patches = torch.linalg.pinv(kernel.flatten(1)) @ values.T
    inner = F.fold(
        patches[None], (height // rows * rows, width // columns * columns), (rows, columns), stride=(rows, columns)
    )
    return F.pad(inner, (0, width % columns, 0, height % rows))
