"""Whether another client's reconstruction is as near to a picture as its own: then that nearness is no leak."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leakmap.scoring.exposure import exposed
from leakmap.scoring.metrics import ALWAYS, metrics
from leakmap.scoring.verdict import Client

RIVALS = 63
"""Other clients whose reconstructions are compared: with one's own a line-up of 64."""


def rivals_of(clients: Sequence[Client], rows: Sequence[Mapping[str, Tensor]]) -> list[dict[str, tuple[float, ...]]]:
    """For every client metric -> the most that the reconstruction of any other client reaches, of each picture.

    Computed only for pictures that would be exposed otherwise; of others minus infinity, which changes nothing.

    Args:
        clients: Those that finished.
        rows: Their pictures by name, ``original`` and ``reconstruction`` ``(N, C, H, W)`` in [0, 1] among them.
    """
    found = [{name: [-math.inf] * len(client.ranks) for name in ALWAYS} for client in clients]
    for one in exposed(clients):
        others = [row["reconstruction"] for k, row in enumerate(rows) if k != one.client][:RIVALS]
        if others:
            pictures = torch.cat(others)
            truth = rows[one.client]["original"][one.picture].cpu().expand_as(pictures)
            for name in ALWAYS:
                found[one.client][name][one.picture] = float(metrics.build(name)(pictures, truth).max())
    return [{name: tuple(values) for name, values in of_client.items()} for of_client in found]
