"""Which pictures lie open: the worst case of an audit, which no mean and no share may hide."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from leakmap.scoring.statistics import Interval, clopper_pearson, share_interval

EXACT_PSNR = 30.0
VISIBLE_SSIM = 0.5
Openness = Literal["visual", "exact"]
RULES: tuple[tuple[Openness, str, float], ...] = (("exact", "psnr", EXACT_PSNR), ("visual", "ssim", VISIBLE_SSIM))
"""Level, metric, and what the metric must exceed; the worst first."""


class Fared(Protocol):
    """How one client fared; :class:`leakmap.scoring.verdict.Client` is one."""

    @property
    def ranks(self) -> Sequence[float]:
        """In the line-up, of each picture; 1 is first."""
        ...

    @property
    def scores(self) -> Mapping[str, Sequence[float]]:
        """Metric -> value of each picture; ``psnr`` and ``ssim`` are needed."""
        ...

    @property
    def bars(self) -> Mapping[str, Sequence[float]]:
        """Metric -> what each picture must exceed besides, as chance alone reaches it; empty: nothing."""
        ...

    @property
    def floors(self) -> Mapping[str, Mapping[str, Sequence[float | None] | None]]:
        """Metric -> floor -> value of each picture; None where the floor came to no reconstruction."""
        ...


@dataclass(frozen=True)
class Exposed:
    """A picture that an attack recovered.

    Args:
        client: Its place among the audited clients, from 0.
        picture: Its place in the client's batch, from 0.
        level: ``exact`` above 30 dB PSNR, else ``visual``, above 0.5 SSIM.
        psnr: In dB.
        ssim: Up to 1.
    """

    client: int
    picture: int
    level: Openness
    psnr: float
    ssim: float


def exposed(clients: Sequence[Fared]) -> list[Exposed]:
    """Every exposed picture, the worst first.

    A picture is exposed if it is first in its line-up without a tie, its metric exceeds the threshold of the level, and
    also each of the picture's own floors in that metric, and its bar, what chance reaches on it. A floor that came
    to no reconstruction is below everything.

    Args:
        clients: Of one audit, in order.

    Returns:
        ``exact`` ones by PSNR, then ``visual`` ones by SSIM, from high to low.
    """
    found = [
        one
        for place, client in enumerate(clients)
        for picture in range(len(client.ranks))
        if (one := _look(client, place, picture))
    ]
    return sorted(found, key=lambda one: (-one.psnr, -one.ssim) if one.level == "exact" else (math.inf, -one.ssim))


def _look(client: Fared, place: int, picture: int) -> Exposed | None:
    if client.ranks[picture] != 1:
        return None
    for level, metric, threshold in RULES:
        value = client.scores[metric][picture]
        floors = [floor[picture] for floor in client.floors[metric].values() if floor is not None]
        floors += [client.bars[metric][picture]] if metric in client.bars else []
        if value > threshold and all(floor is None or value > floor for floor in floors):
            return Exposed(place, picture, level, client.scores["psnr"][picture], client.scores["ssim"][picture])
    return None


@dataclass(frozen=True)
class Exposure:
    """How many clients and pictures lie open.

    Args:
        clients: Clients with at least one exposed picture.
        of_clients: All clients.
        client_share: Their share with its exact 95 % interval; its upper end is what finding none leaves possible.
        pictures: Exposed pictures.
        of_pictures: All pictures.
        picture_share: Their share with its 95 % interval, which counts clients as the cases.
    """

    clients: int
    of_clients: int
    client_share: Interval
    pictures: int
    of_pictures: int
    picture_share: Interval


def clients_exposed(clients: Sequence[Fared], level: Openness = "visual") -> Exposure:
    """Clients and pictures exposed at a level or a worse one.

    Args:
        clients: Of one audit.
        level: ``visual`` counts every exposed picture.
    """
    counted = [one for one in exposed(clients) if level in ("visual", one.level)]
    sizes = [len(client.ranks) for client in clients]
    hits = [sum(one.client == place for one in counted) for place in range(len(clients))]
    open_clients = sum(hit > 0 for hit in hits)
    return Exposure(
        open_clients,
        len(clients),
        clopper_pearson(open_clients, len(clients)),
        len(counted),
        sum(sizes),
        share_interval(hits, sizes),
    )
