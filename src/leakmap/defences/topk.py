"""Sparsification by magnitude."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from leakmap.defences import Defence, Simulated, defences


@defences.add("topk")
def topk(*, keep: Annotated[float, Field(gt=0, le=1)] = 0.1) -> Defence:
    """Sends the largest entries of every tensor and zeros in place of the others.

    The attacker compares the entries that were sent.

    Args:
        keep: Share of the entries of a tensor, rounded up.

    Source: Lin et al. 2018, "Deep Gradient Compression", arXiv:1712.01887; as a defence Zhu et al. 2019,
    arXiv:1906.08935.
    """

    def share(update: Sequence[Tensor], source: torch.Generator | None) -> list[Tensor]:
        # Rounded up, so that every tensor sends at least one entry.
        return [_largest(tensor, math.ceil(keep * tensor.numel())) for tensor in update]

    def simulate(update: Sequence[Tensor], observed: Sequence[Tensor]) -> Simulated:
        # An entry that happens to be exactly 0 counts as not sent: the server cannot tell it from one.
        sent = [(tensor != 0).to(tensor.dtype) for tensor in observed]
        return Simulated([tensor * mask for tensor, mask in zip(update, sent, strict=True)], sent)

    return Defence(share, simulate, left="largest")


def _largest(tensor: Tensor, count: int) -> Tensor:
    flat = tensor.flatten()
    kept = flat.abs().topk(count).indices
    return torch.zeros_like(flat).scatter(0, kept, flat[kept]).view_as(tensor)
