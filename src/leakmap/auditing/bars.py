"""What a picture must exceed to count as exposed, besides its floors: what the other clients' reconstructions reach.

Among many pictures some are alike by chance, so a reconstruction of another picture may be first in a line-up and above
0.5 SSIM. If no update said anything, a client's own reconstruction would be no nearer to its picture than that of any
other client, and exchanging reconstructions among clients would change nothing. So both are tried.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from leakmap.scoring.exposure import VISIBLE_SSIM, exposed
from leakmap.scoring.lineup import rank
from leakmap.scoring.metrics import ALWAYS, metrics
from leakmap.scoring.verdict import Client

RIVALS = 63
"""Other clients whose reconstructions are compared: with one's own a line-up of 64."""
EXCHANGES = 19
"""Exchanges of reconstructions among clients: more visible pictures than in all of them happen by chance in 1 of 20."""

Bars = dict[str, tuple[float, ...]]
"""Metric -> what each picture must exceed; minus infinity asks nothing."""


def bars_of(
    clients: Sequence[Client], rows: Sequence[Mapping[str, Tensor]], line_ups: Sequence[Sequence[Tensor]]
) -> list[Bars]:
    """The bars of every client; only those of pictures that would be exposed otherwise are computed.

    Args:
        clients: Those that finished.
        rows: Their pictures by name, ``original`` and ``reconstruction`` ``(N, C, H, W)`` in [0, 1] among them.
        line_ups: For each client and picture the distractors, ``(G - 1, C, H, W)``.
    """
    found = [{name: [-math.inf] * len(client.ranks) for name in ALWAYS} for client in clients]
    open_ones = exposed(clients)
    visible = [one for one in open_ones if one.level == "visual"]
    by_chance = bool(visible) and len(visible) <= _most_by_chance(clients, rows, line_ups)
    for one in open_ones:
        others = [row["reconstruction"] for k, row in enumerate(rows) if k != one.client][:RIVALS]
        bars = found[one.client]
        if others:
            pictures = torch.cat(others).cpu()
            truth = rows[one.client]["original"][one.picture].cpu().expand_as(pictures)
            for name in ALWAYS:
                bars[name][one.picture] = float(metrics.build(name)(pictures, truth).max())
        if by_chance:
            bars["ssim"][one.picture] = math.inf
    return [{name: tuple(values) for name, values in bars.items()} for bars in found]


def _most_by_chance(
    clients: Sequence[Client], rows: Sequence[Mapping[str, Tensor]], line_ups: Sequence[Sequence[Tensor]]
) -> int:
    """The most pictures that would be visible if clients exchanged reconstructions, or got those of swapped updates."""
    n = len(clients)
    exchanges = [[rows[(k + shift) % n]["reconstruction"] for k in range(n)] for shift in range(1, n)][:EXCHANGES]
    exchanges.append([row.get("swapped update", row["mean picture"]) for row in rows])
    return max(
        sum(_visible(*one) for one in zip(clients, rows, line_ups, pictures, strict=True)) for pictures in exchanges
    )


def _visible(client: Client, row: Mapping[str, Tensor], line_up: Sequence[Tensor], pictures: Tensor) -> int:
    """Pictures of a client that others' reconstructions show: above 0.5 SSIM and each floor, and first in the line-up.

    Of a batch the most similar reconstruction counts, as no assignment is made.
    """
    pictures, ssim, count = pictures.cpu(), metrics.build("ssim"), 0
    for place, others in enumerate(line_up):
        truth = row["original"][place].cpu()
        value = float(ssim(pictures, truth.expand_as(pictures)).max())
        floors = [of[place] for name, of in client.floors["ssim"].items() if of is not None and name != "swapped"]
        above = value > VISIBLE_SSIM and all(value > floor for floor in floors)
        count += above and rank(pictures, truth, others) == 1
    return count


def with_bars(clients: Sequence[Client], bars: Sequence[Bars]) -> list[Client]:
    """The clients with their bars."""
    return [replace(client, bars=of_client) for client, of_client in zip(clients, bars, strict=True)]
