"""NVFlare's sparse vector technique."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from leakmap.defences import Defence, Simulated, defences
from leakmap.defences.clip_noise import Bound
from leakmap.defences.percentile import Steps, softly_cut

PASSES = 1000
"""After which all entries count as accepted: NVFlare would go on for ever where the threshold is out of reach."""


@defences.add("svt", examples=("svt,noise_var=100,gamma=0.001", "svt,fraction=0.5,noise_var=1000,gamma=0.01"))
def svt(
    *,
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.1,
    epsilon: Bound = 0.1,
    noise_var: Bound = 0.1,
    gamma: Bound = 1e-5,
    tau: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-6,
    steps: Steps = 1,
) -> Defence:
    """NVFlare's SVTPrivacy: a share of the entries, drawn with noise and sent with noise, else 0. No guarantee.

    An entry is accepted where its magnitude, cut off at ``gamma``, with Laplace noise reaches a noisy threshold. Of
    the accepted, ``n = ceil(fraction * entries)`` are drawn with replacement and sent, cut off and with Laplace noise
    of the scale ``2 gamma / noise_var``. NVFlare itself counts ``epsilon + n noise_var`` for each round, which promises
    nothing for a network of any size. An attack descends on entries that are softly cut off.

    Args:
        fraction: Of the entries that are drawn.
        epsilon: Of the choice of entries.
        noise_var: Epsilon of the noise on each entry that is sent.
        gamma: Largest magnitude of an entry of the update divided by ``steps``.
        tau: The threshold before noise.
        steps: Local steps that the client says it took, as NVFlare divides the update by them and multiplies it again.

    Source: NVFlare 2.9, ``nvflare.app_common.filters.SVTPrivacy``, after Dwork and Roth 2014, "The Algorithmic
    Foundations of Differential Privacy", section 3.6, with the split of Lyu et al. 2017, arXiv:1603.01699.
    """
    bound = gamma * steps

    def share(update: Sequence[Tensor], source: torch.Generator | None) -> list[Tensor]:
        cut = [tensor.clamp(-bound, bound) if tensor.ndim else tensor for tensor in update]
        if source is None:
            # What is sent on average, but for a factor, as every entry is nearly as likely to be drawn.
            return cut
        values = torch.cat([tensor.flatten() for tensor in cut]).double().cpu() / steps
        count = min(math.ceil(fraction * len(values)), len(values))
        share_of_queries = (2 * count) ** (2 / 3) / (1 + (2 * count) ** (2 / 3))
        threshold = tau + laplace(1, gamma / (epsilon * (1 - share_of_queries)), source)
        accepted = torch.zeros(len(values), dtype=torch.bool)
        for _ in range(PASSES):
            noise = laplace(len(values), 2 * gamma * count / (epsilon * share_of_queries), source)
            accepted |= values.abs() + noise >= threshold
            if int(accepted.sum()) >= count:
                break
        else:
            accepted[:] = True
        able = accepted.nonzero()[:, 0]
        # An entry that is drawn twice is sent once.
        drawn = able[torch.randint(len(able), (count,), generator=source)].unique()
        sent = torch.zeros_like(values)
        sent[drawn] = (values[drawn] + laplace(len(drawn), 2 * gamma / noise_var, source)) * steps
        parts = sent.split([tensor.numel() for tensor in update])
        return [p.view(t.shape).to(t) if t.ndim else t for p, t in zip(parts, update, strict=True)]

    def simulate(update: Sequence[Tensor], observed: Sequence[Tensor]) -> Simulated:
        return softly_cut(update, bound, bound)

    return Defence(share, simulate, left="signs", exact=False)


def laplace(count: int, scale: float, source: torch.Generator) -> Tensor:
    """``(count,)`` draws of Laplace's distribution around 0, float64."""
    uniform = torch.rand(count, generator=source, dtype=torch.float64) - 0.5
    # A draw of exactly -1/2 would be infinite.
    return -scale * uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.5 - 2**-54))
