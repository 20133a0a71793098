"""What a picture must exceed to count as exposed, besides its floors: what the other clients' reconstructions reach.

Among many pictures some are alike by chance, so a reconstruction of another picture may be first in a line-up and above
0.5 SSIM. If no update said anything, a client's own reconstruction would be no nearer to its picture than that of any
other client, and exchanging reconstructions among clients would change nothing. So both are tried.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leakmap.client.simulate import Batch
from leakmap.scoring.exposure import VISIBLE_SSIM, exposed
from leakmap.scoring.lineup import rank
from leakmap.scoring.metrics import ALWAYS, metrics
from leakmap.scoring.regions import cut
from leakmap.scoring.verdict import Client

RIVALS = 63
"""Other clients whose reconstructions are compared: with one's own a line-up of 64."""
EXCHANGES = 19
"""Exchanges of reconstructions among clients: more visible pictures than in all of them happen by chance in 1 of 20."""

Bars = dict[str, tuple[float, ...]]
"""Metric -> what each picture must exceed; minus infinity asks nothing."""


@dataclass(frozen=True)
class Held:
    """What a client held, as its reconstructions are scored.

    Args:
        client: How it fared.
        truths: Its pictures, ``(C, h, w)`` in [0, 1] each: what lies between letterbox bars, where there are any.
        line_up: For each picture the distractors, ``(G - 1, C, h, w)``.
        areas: Of each picture what lies between its bars, ``(4,)``; None without bars.
    """

    client: Client
    truths: Sequence[Tensor]
    line_up: Sequence[Tensor]
    areas: Sequence[Tensor | None]


def held(client: Client, truth: Batch, line_up: Sequence[Tensor]) -> Held:
    """What a client held, cut to what is scored."""
    areas = [None] * len(truth.pictures) if truth.areas is None else list(truth.areas)
    pairs = zip(truth.pictures.cpu(), areas, strict=True)
    return Held(client, [cut(picture, area) for picture, area in pairs], line_up, areas)


def bars_of(all_held: Sequence[Held], rows: Sequence[Mapping[str, Tensor]]) -> list[Bars]:
    """The bars of every client; only those of pictures that would be exposed otherwise are computed.

    Args:
        all_held: What each client that finished held.
        rows: Their pictures by name, ``reconstruction`` ``(N, C, H, W)`` in [0, 1] among them.
    """
    found = [{name: [-math.inf] * len(one.truths) for name in ALWAYS} for one in all_held]
    open_ones = exposed([one.client for one in all_held])
    visible = [one for one in open_ones if one.level == "visual"]
    by_chance = bool(visible) and len(visible) <= _most_by_chance(all_held, rows)
    for one in open_ones:
        others = [row["reconstruction"] for k, row in enumerate(rows) if k != one.client][:RIVALS]
        bars = found[one.client]
        if others:
            for name in ALWAYS:
                bars[name][one.picture] = _nearest(name, torch.cat(others), all_held[one.client], one.picture)
        if by_chance:
            bars["ssim"][one.picture] = math.inf
    return [{name: tuple(values) for name, values in bars.items()} for bars in found]


def _nearest(metric: str, pictures: Tensor, own: Held, place: int) -> float:
    """The highest value that any of some pictures ``(N, C, H, W)`` reaches on one that a client held."""
    shown = cut(pictures.cpu(), own.areas[place])
    return float(metrics.build(metric)(shown, own.truths[place].expand_as(shown)).max())


def _most_by_chance(all_held: Sequence[Held], rows: Sequence[Mapping[str, Tensor]]) -> int:
    """The most pictures that would be visible if clients exchanged reconstructions, or got those of swapped updates."""
    n = len(all_held)
    exchanges = [[rows[(k + shift) % n]["reconstruction"] for k in range(n)] for shift in range(1, n)][:EXCHANGES]
    exchanges.append([row.get("swapped update", row["mean picture"]) for row in rows])
    return max(sum(_visible(*one) for one in zip(all_held, pictures, strict=True)) for pictures in exchanges)


def _visible(own: Held, pictures: Tensor) -> int:
    """Pictures of a client that others' reconstructions show: above 0.5 SSIM and each floor, and first in the line-up.

    Of a batch the most similar reconstruction counts, as no assignment is made.
    """
    count = 0
    for place, others in enumerate(own.line_up):
        value = _nearest("ssim", pictures, own, place)
        # A floor that is itself one of the exchanges would be compared with itself.
        kept = {name: of for name, of in own.client.floors["ssim"].items() if name not in ("swapped", "other_client")}
        above = value > VISIBLE_SSIM and all(value > of[place] for of in kept.values() if of is not None)
        count += above and rank(cut(pictures.cpu(), own.areas[place]), own.truths[place], others) == 1
    return count


def with_bars(clients: Sequence[Client], bars: Sequence[Bars]) -> list[Client]:
    """The clients with their bars."""
    return [replace(client, bars=of_client) for client, of_client in zip(clients, bars, strict=True)]
