"""When may we say that an update leaks?

False alarms are shared out so that a null audit reaches ``statistical`` or more in at most 5 % of runs: the rank-sum
test may err in 3 %, the count of first ranks in 1 %, and the gains over the floors in 1 % together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from leakmap.scoring.exposure import EXACT_PSNR, VISIBLE_SSIM
from leakmap.scoring.statistics import Interval, mean_interval, paired_p, proportion_interval, rank_one_p, rank_sum_p

Level = Literal["inconclusive", "none_found", "statistical", "partial", "visual", "exact"]
LEVELS: tuple[Level, ...] = ("inconclusive", "none_found", "statistical", "partial", "visual", "exact")

RANK_SUM_ALPHA = 0.03
RANK_ONE_ALPHA = 0.01
GAIN_ALPHA = 0.005
"""Of each of the two metrics."""
OVER_SWAPPED_ALPHA = 0.01
TIMES_CHANCE = 10
SHARE = 0.1
"""Share of the pictures that must be recovered visibly, or exactly, for that level; at least one picture."""


@dataclass(frozen=True)
class Client:
    """How one client fared.

    Args:
        ranks: In the line-up, of each of its pictures.
        galleries: Candidates in each of these line-ups.
        scores: Metric -> value of each picture.
        floors: Metric -> floor -> value of each picture.
    """

    ranks: tuple[float, ...]
    galleries: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]
    floors: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class LineUp:
    """The line-up over all clients.

    Args:
        hits: Pictures ranked first.
        n: Pictures.
        rank_one: Their share with its 95 % interval.
        chance: Share expected without leakage.
        median_rank: Over all pictures.
        p: One-sided rank-sum test.
        p_rank_one: One-sided test of the number of first ranks.
    """

    hits: int
    n: int
    rank_one: Interval
    chance: float
    median_rank: float
    p: float
    p_rank_one: float

    @property
    def above_chance(self) -> bool:
        """Whether the ranks tell the truth from the distractors."""
        return self.p < RANK_SUM_ALPHA or self.p_rank_one < RANK_ONE_ALPHA


def line_up(clients: Sequence[Client]) -> LineUp:
    """Sums up the line-ups of several clients."""
    ranks = sorted(rank for client in clients for rank in client.ranks)
    hits, n = sum(rank == 1 for rank in ranks), len(ranks)
    galleries = [client.galleries for client in clients]
    sizes = [size for client in galleries for size in client]
    return LineUp(
        hits,
        n,
        proportion_interval(hits, n, len(clients)),
        sum(1 / size for size in sizes) / len(sizes),
        (ranks[(n - 1) // 2] + ranks[n // 2]) / 2,
        rank_sum_p([client.ranks for client in clients], galleries),
        rank_one_p(hits, n, galleries),
    )


@dataclass(frozen=True)
class Gain:
    """A metric beside its floors.

    Args:
        value: Mean over clients, with its 95 % interval.
        floors: Mean of each floor.
        best_floor: Name of the floor with the highest mean.
        gain: Mean paired difference to that floor, 95 % interval.
        above_every_floor: Whether the paired difference to every floor is positive, sign-flip p < 0.005; fewer than
            eight clients cannot show it.
    """

    value: Interval
    floors: Mapping[str, float]
    best_floor: str
    gain: Interval
    above_every_floor: bool


def gain_over_floors(clients: Sequence[Client], metric: str) -> Gain:
    """The paired difference of a metric to its floors."""
    own = _per_client([client.scores[metric] for client in clients])
    floors = _floors(clients, metric)
    means = {name: sum(values) / len(values) for name, values in floors.items()}
    best = max(means, key=lambda name: means[name])
    gain = [a - b for a, b in zip(own, floors[best], strict=True)]
    return Gain(mean_interval(own), means, best, mean_interval(gain), above_every_floor(clients, metric))


def above_every_floor(clients: Sequence[Client], metric: str) -> bool:
    """Whether the paired difference to every floor is positive, by the sign-flip test."""
    own = _per_client([client.scores[metric] for client in clients])
    return all(
        paired_p([a - b for a, b in zip(own, floor, strict=True)]) < GAIN_ALPHA
        for floor in _floors(clients, metric).values()
    )


def _floors(clients: Sequence[Client], metric: str) -> dict[str, list[float]]:
    """Floor -> mean of each client."""
    return {name: _per_client([c.floors[metric][name] for c in clients]) for name in clients[0].floors[metric]}


def _per_client(values: Sequence[Sequence[float]]) -> list[float]:
    return [sum(of_client) / len(of_client) for of_client in values]


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on.

    Args:
        clients: The audited clients that finished.
        swapped: The same attack on swapped updates, client by client.
        control: The planted positive control.
        blocking: Flags under which neither an unsuccessful attack nor a weak signal is evidence.
    """

    clients: Sequence[Client]
    swapped: Sequence[Client]
    control: Sequence[Client]
    blocking: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """The level and why."""

    level: Level
    reasons: tuple[str, ...]


def over_swapped(evidence: Evidence) -> float:
    """One-sided p-value that real updates rank the truth better than swapped ones, client by client."""

    def fraction(client: Client) -> float:
        return sum(r / g for r, g in zip(client.ranks, client.galleries, strict=True)) / len(client.ranks)

    pairs = zip(evidence.clients, evidence.swapped, strict=True)
    return paired_p([fraction(swapped) - fraction(own) for own, swapped in pairs])


def recovered(clients: Sequence[Client], metric: str, threshold: float) -> int:
    """Pictures ranked first in their line-up, above every floor of theirs, and above the threshold."""
    return sum(
        rank == 1 and value > threshold and all(value > floor[i] for floor in client.floors[metric].values())
        for client in clients
        for i, (rank, value) in enumerate(zip(client.ranks, client.scores[metric], strict=True))
    )


def judge(evidence: Evidence) -> Verdict:
    """The verdict, by the rules listed in docs/verdict.md; never "safe"."""
    if not evidence.clients:
        return Verdict("inconclusive", ("No client has all of its runs.", *evidence.blocking.values()))
    found = line_up(evidence.clients)
    swapped = line_up(evidence.swapped)
    # At least one picture, or a share of a small audit would round to none.
    needed = max(1, math.ceil(SHARE * found.n))
    exact = recovered(evidence.clients, "psnr", EXACT_PSNR)
    visible = recovered(evidence.clients, "ssim", VISIBLE_SSIM)
    ranks = (
        f"The line-up ranks the true picture first in {found.hits} of {found.n} cases (chance {found.chance:.1%}, "
        f"rank-sum p = {found.p:.2g}); on swapped updates in {swapped.hits} of {swapped.n} (p = {swapped.p:.2g})."
    )
    # Swapped updates know nothing of the truth. If they rank it above chance, the line-up is not fair.
    if swapped.above_chance and over_swapped(evidence) >= OVER_SWAPPED_ALPHA:
        return Verdict(
            "inconclusive", (ranks, "Swapped updates rank above chance too: audit more clients, or with another seed.")
        )
    # Recovered pictures are evidence whatever the flags say, so these levels come before the blocking flags.
    if exact >= needed and found.above_chance:
        return Verdict("exact", (f"{exact} of {found.n} pictures are recovered above {EXACT_PSNR:.0f} dB PSNR.", ranks))
    if visible >= needed and found.above_chance:
        return Verdict("visual", (f"{visible} of {found.n} pictures are recovered above {VISIBLE_SSIM} SSIM.", ranks))
    beats_swapped = found.rank_one.value > swapped.rank_one.value
    if found.rank_one.value >= TIMES_CHANCE * found.chance and found.rank_one.low > found.chance and beats_swapped:
        return Verdict("partial", (ranks,))
    # From here on only weak signals are left, which a flag may explain.
    if evidence.blocking:
        return Verdict("inconclusive", (ranks, *evidence.blocking.values()))
    # A weak signal must also be stronger than that of updates which cannot hold the pictures.
    if found.above_chance and found.p < swapped.p:
        return Verdict("statistical", (ranks,))
    above = [m for m in ("psnr", "ssim") if above_every_floor(evidence.clients, m)]
    if above:
        return Verdict("statistical", (f"{' and '.join(above).upper()} lie above every floor.", ranks))
    return _nothing_found(evidence, ranks)


def _nothing_found(evidence: Evidence, ranks: str) -> Verdict:
    """Nothing was found: is that evidence, or did the measurement fail?"""
    if not evidence.control:
        return Verdict("inconclusive", (ranks, "The planted positive control did not finish."))
    control = line_up(evidence.control)
    if not control.above_chance:
        return Verdict(
            "inconclusive",
            (
                ranks,
                f"The planted control, known to leak, was not found either (p = {control.p:.2g}): attack too weak.",
            ),
        )
    return Verdict(
        "none_found",
        (ranks, f"The planted control was found: first in {control.hits} of {control.n} line-ups."),
    )
