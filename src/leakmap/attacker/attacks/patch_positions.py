"""The closed form for a vision transformer with a learned position for each patch."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import floor_of_search
from leakmap.attacker.equations import facts_used, label_notes
from leakmap.attacker.gradients import mean_gradient
from leakmap.attacker.labels import told
from leakmap.attacker.patches import readable_patches
from leakmap.attacker.protocol import CLOSED_FORM, free_to_fit, nothing_to_fit, nothing_to_restore, trying_shows
from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.errors import NotApplicable
from leakmap.observation.observation import Observation
from leakmap.seeds import derive


@attacks.add("patch_positions")
@dataclass(frozen=True, kw_only=True)
class PatchPositions:
    """Solves for the patches by the gradients of their learned positions and of their embedding.

    A token is ``t_n = W x_n + b + p_n``, so with one picture the gradient of position ``p_n`` is that of the token,
    ``d_n``, and the gradient of the weight is ``dW = sum_n d_n x_n^T = D^T X``. With no more patches than a token is
    wide, ``D (patches, width)`` has a left inverse and ``X`` is found by least squares in float64. Normalization,
    attention, mode, depth and dropout behind the positions do not matter, nor do several local steps of SGD on the
    same picture or clipping. Rounding and noise blur the picture.

    Args:
        labels: ``auto``, or the name of a label rule.

    Applies: to one example, where learned positions are added right behind a linear or convolutional embedding of
    patches that do not overlap, as in ViT, DeiT, CLIP and DINOv2.

    Source: this project; the gradient of the positions as that of the tokens is from Lu et al. 2022, arXiv:2112.14087.
    """

    labels: str = "auto"

    needs = frozenset({"count"})
    leaky_model = "vit"
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
            NotApplicable: there is more than one example, no learned positions give patches away, or the update
                contradicts the closed form.
        """
        network = observation.network
        found = readable_patches(observation)
        gradient = mean_gradient(observation, (found.position, found.embedding))
        tokens, weight = found.of_tokens(gradient[found.position]), gradient[found.embedding].flatten(1)
        precision = torch.finfo(observation.update.tensors[found.embedding].dtype).eps
        solution = solve(tokens, weight, precision)
        labels = told(observation, self.labels, derive(seed, "labels"))
        pictures = network.task.denormalize(found.picture(solution.patches, network.task).to(network.dtype))
        tick(1.0)
        return Reconstruction(
            pictures,
            labels.y,
            math.nan,
            notes={
                "positions": found.position,
                "directions kept": solution.kept,
                "residual": solution.residual,
                **label_notes(observation, labels),
            },
            used=facts_used(observation, labels),
        )


@dataclass(frozen=True, eq=False)
class Solution:
    """Patches from gradients.

    Args:
        patches: ``(patches, values)``, normalized.
        kept: Directions in which they were solved for, at most their number.
        residual: Share of the norm of the weight's gradient that no patches explain.
    """

    patches: Tensor
    kept: int
    residual: float


def solve(tokens: Tensor, weight: Tensor, precision: float) -> Solution:
    """The patches ``X`` of ``tokens^T X = weight``, in the directions in which the equations say more than noise.

    Args:
        tokens: ``(patches, width)``, no more patches than width, float64.
        weight: ``(width, values)``, float64.
        precision: Relative rounding of the entries of both.

    Raises:
        NotApplicable: nothing stands above the noise.
    """
    left, values, right = torch.linalg.svd(tokens.T, full_matrices=False)
    # Rounding alone gives directions up to this size, in which the patches have no component that is known.
    held = values > precision * values[0]
    left, values, right = left[:, held], values[held], right[held]
    seen = left.T @ weight
    rest = weight - left @ seen
    # Outside of the span of the tokens the gradient of the weight holds noise only, that of the tokens included, which
    # is how large noise is without knowing the patches. Where the patches fill the width, rounding is all that is sure.
    spare = (len(weight) - len(values)) * weight.shape[1]
    noise = max(float(rest.square().sum()) / max(1, spare), precision**2 * float(weight.square().mean()))
    # A direction with singular value s brings the error noise / s^2 if it is kept and its signal / s^2 if it is not.
    # What is seen of it is signal plus noise, so it pays where that is more than twice the noise (Picard condition);
    # what is kept is shrunk by its share of noise. No fixed cut of singular values does both: 1e-4 of the largest loses
    # up to 40 dB of an exact gradient and drowns a rounded one in noise.
    power = seen.square().mean(dim=1)
    kept = power > 2 * noise
    if not bool(kept.any()):
        raise NotApplicable(
            "The gradient of the patch embedding says no more about that of the positions than noise would: an update "
            "of zeros below a zero head, strong noise or rounding, or other facts than the client's stand in the way."
        )
    shrunk = (1 - noise / power[kept]) / values[kept]
    patches = right[kept].T @ (shrunk[:, None] * seen[kept])
    return Solution(patches, int(kept.sum()), float(rest.norm() / weight.norm()))
