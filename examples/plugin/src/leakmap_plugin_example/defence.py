"""Half precision."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leakmap.defences import Defence, defences


@defences.add("plugin_defence")
def build() -> Defence:
    """Sends every entry as a number of 16 bits. An attack descends on the update before rounding.

    Source: Micikevicius et al. 2018, "Mixed Precision Training", arXiv:1710.03740.
    """

    def share(update: Sequence[Tensor], source: torch.Generator | None) -> list[Tensor]:
        return [tensor.half().to(tensor.dtype) for tensor in update]

    return Defence(share, exact=False)
