"""When may we say that an update leaks? The worst picture decides the level, then what all of them show together.

False alarms of the group rules are divided so that a null audit reaches ``statistical`` or more in at most 5 % of runs:
the rank-sum tests may err in 3 % (2 % plain, 1 % in any pose), the counts of first ranks in 1 %, and the gains over the
floors in 1 % together. An exposed picture must exceed what other clients' reconstructions reach by chance
(:mod:`leakmap.auditing.bars`). docs/results/verdict.md holds the measured rates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from leakmap.scoring.exposure import EXACT_PSNR, VISIBLE_SSIM, exposed
from leakmap.scoring.statistics import (
    Interval,
    mean_interval,
    paired_p,
    rank_one_p,
    rank_sum_p,
    share_interval,
    spread,
)

Level = Literal["inconclusive", "none_found", "statistical", "partial", "visual", "exact"]
LEVELS: tuple[Level, ...] = ("inconclusive", "none_found", "statistical", "partial", "visual", "exact")
Pose = Literal["plain", "any"]
"""How a line-up ranks: by plain NCC, or by the highest |NCC| over mirroring, turns and small shifts."""
Rule = Literal[
    "no_clients", "no_evidence", "exposure", "control", "first_ranks", "ceiling", "flag", "ranks", "floors", "nothing"
]
"""Which rule of docs/verdict.md fired."""

JUDGED = 1
"""Raised whenever a rule of the verdict, a test or an interval changes: what was concluded before is concluded anew."""
# The version of leakmap would do as well, but most releases change no rule, and a claim takes days to measure.
RANK_SUM_ALPHA: Mapping[Pose, float] = {"plain": 0.02, "any": 0.01}
RANK_ONE_ALPHA: Mapping[Pose, float] = {"plain": 0.006, "any": 0.004}
GAIN_ALPHA = 0.005
"""Of each of the two metrics."""
BEATS_ALPHA = 0.01
"""Of the test that real updates rank the truth better than a control, client by client."""
TIMES_CHANCE = 10
BROKEN = "defence_broken"
"""The flag of a result in which a defence hides less than its noise allows; it fails every gate."""
SWAPPED_LEAK = "Swapped updates rank above chance too: audit more clients, or with another seed."
OTHER_CAMERA = (
    "Reconstructions rank above chance in the line-ups of other clients too: the clients' pictures differ from the "
    "others as a whole, as those of another camera do. Give others from the same source."
)


@dataclass(frozen=True)
class Client:
    """How one client fared.

    Args:
        ranks: In the line-up, of each of its pictures.
        galleries: Candidates in each of these line-ups.
        scores: Metric -> value of each picture.
        floors: Metric -> floor -> value of each picture; None where the floor came to no reconstruction.
        pose_ranks: Ranks in the line-up that allows any pose; empty where it was not computed.
        band_ranks: Band -> rank of each picture in the line-up of that band.
        bars: Metric -> what each picture must exceed to count as exposed, besides its floors; empty: nothing.
        distractors: Which pictures stood in each of these line-ups beside the true one; empty: no two share any.
    """

    ranks: tuple[float, ...]
    galleries: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]
    floors: Mapping[str, Mapping[str, tuple[float, ...] | None]] = field(default_factory=dict)
    pose_ranks: tuple[float, ...] = ()
    band_ranks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    bars: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    distractors: tuple[tuple[int, ...], ...] = ()

    def posed(self) -> "Client":
        """The same with the ranks of the line-up that allows any pose, where it was computed."""
        return replace(self, ranks=self.pose_ranks or self.ranks)


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
        pose: How it ranks.
    """

    hits: int
    n: int
    rank_one: Interval
    chance: float
    median_rank: float
    p: float
    p_rank_one: float
    pose: Pose = "plain"

    @property
    def above_chance(self) -> bool:
        """Whether the ranks tell the truth from the distractors."""
        return self.p < RANK_SUM_ALPHA[self.pose] or self.p_rank_one < RANK_ONE_ALPHA[self.pose]

    @property
    def many_first(self) -> bool:
        """Whether the truth is first ten times as often as by chance, and surely more often than by chance."""
        return self.rank_one.value >= TIMES_CHANCE * self.chance and self.rank_one.low > self.chance


def line_up(clients: Sequence[Client], pose: Pose = "plain") -> LineUp:
    """Sums up the line-ups of several clients.

    Args:
        clients: At least one.
        pose: Which of their ranks count.
    """
    clients = [client.posed() for client in clients] if pose == "any" else clients
    ranks = sorted(rank for client in clients for rank in client.ranks)
    hits, n = [sum(rank == 1 for rank in client.ranks) for client in clients], len(ranks)
    galleries = [client.galleries for client in clients]
    sizes = [size for client in galleries for size in client]
    sharing = [client.distractors for client in clients if client.distractors]
    wider = spread(sharing) if sharing else 1.0
    return LineUp(
        sum(hits),
        n,
        share_interval(hits, [len(client.ranks) for client in clients]),
        sum(1 / size for size in sizes) / len(sizes),
        (ranks[(n - 1) // 2] + ranks[n // 2]) / 2,
        rank_sum_p([client.ranks for client in clients], galleries, wider),
        rank_one_p(hits, galleries, wider),
        pose,
    )


@dataclass(frozen=True)
class Gain:
    """A metric beside its floors.

    Args:
        value: Mean over clients, with its 95 % interval.
        floors: Mean of each floor, over the clients that have it.
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
    own, floors = _means(clients, metric), _floors(clients, metric)
    means = {name: sum(value for _, value in pairs) / len(pairs) for name, pairs in floors.items()}
    best = max(means, key=lambda name: means[name])
    gain = [a - b for a, b in floors[best]]
    return Gain(mean_interval(own), means, best, mean_interval(gain), above_every_floor(clients, metric))


def above_every_floor(clients: Sequence[Client], metric: str) -> bool:
    """Whether the paired difference to every floor is positive, by the sign-flip test."""
    return all(paired_p([a - b for a, b in pairs]) < GAIN_ALPHA for pairs in _floors(clients, metric).values())


def _means(clients: Sequence[Client], metric: str) -> list[float]:
    return [_mean(client.scores[metric]) for client in clients]


def _floors(clients: Sequence[Client], metric: str) -> dict[str, list[tuple[float, float]]]:
    """Floor -> mean of each client, its own and the floor's; without clients where the floor came to nothing."""
    names = dict.fromkeys(name for client in clients for name in client.floors[metric])
    found = {
        name: [
            (_mean(client.scores[metric]), _mean(values))
            for client in clients
            if (values := client.floors[metric].get(name)) is not None
        ]
        for name in names
    }
    return {name: pairs for name, pairs in found.items() if pairs}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on.

    Args:
        clients: The audited clients that finished.
        swapped: The same attack on swapped updates, client by client.
        deranged: Every reconstruction in the line-up of the next client's pictures, in the order of ``clients``; empty
            where there is one client only.
        control: The planted positive control.
        void: Flags under which nothing is evidence, not even a recovered picture.
        blocking: Flags under which neither an unsuccessful attack nor a weak signal is evidence.
        mixed: Whether line-ups mix classes, so that knowing the class alone lifts the truth.
        broken: What lies above the ceiling of the clients' defence, in sentences.
    """

    clients: Sequence[Client]
    swapped: Sequence[Client]
    control: Sequence[Client]
    deranged: Sequence[Client] = ()
    void: Mapping[str, str] = field(default_factory=dict)
    blocking: Mapping[str, str] = field(default_factory=dict)
    mixed: bool = False
    broken: Sequence[str] = ()


@dataclass(frozen=True)
class Verdict:
    """The level and why.

    Args:
        level: How much leaked.
        reasons: Sentences.
        rule: The rule that fired.
    """

    level: Level
    reasons: tuple[str, ...]
    rule: Rule


def beats(clients: Sequence[Client], control: Sequence[Client], pose: Pose = "plain") -> bool:
    """Whether clients rank the truth better than a control, client by client (sign-flip test)."""

    def fraction(client: Client) -> float:
        ranks = client.posed().ranks if pose == "any" else client.ranks
        return _mean([rank / size for rank, size in zip(ranks, client.galleries, strict=True)])

    pairs = zip(clients, control, strict=True)
    return paired_p([fraction(other) - fraction(own) for own, other in pairs]) < BEATS_ALPHA


def judge(evidence: Evidence) -> Verdict:
    """The verdict, by the rules listed in docs/verdict.md; never "safe"."""
    if not evidence.clients:
        blocking = (*evidence.void.values(), *evidence.blocking.values())
        return Verdict("inconclusive", ("No client has all of its runs.", *blocking), "no_clients")
    if evidence.void:
        return Verdict("inconclusive", tuple(evidence.void.values()), "no_evidence")
    found = tuple(exposed(evidence.clients))
    ranks, (poses, why) = _ranks(evidence), _fair_poses(evidence)
    if found and ((level := found[0].level) == "exact" or "plain" in poses):
        open_ones = [one for one in found if one.level == level]
        above = f"{EXACT_PSNR:.0f} dB PSNR" if level == "exact" else f"{VISIBLE_SSIM} SSIM"
        n = sum(len(client.ranks) for client in evidence.clients)
        reason = f"{len(open_ones)} of {n} pictures are first in their line-up, above each of their floors and {above}."
        return Verdict(level, (reason, ranks), "exposure")
    if not poses and not evidence.broken:
        return Verdict("inconclusive", (ranks, why), "control")
    for pose in poses:
        others = [line_up(control, pose) for control in (evidence.swapped, evidence.deranged) if control]
        own = line_up(evidence.clients, pose)
        if own.many_first and all(own.rank_one.value > other.rank_one.value for other in others):
            return Verdict("partial", (*_posed(own), ranks), "first_ranks")
    if evidence.broken:  # which has controls of its own
        return Verdict("statistical", (*evidence.broken, ranks), "ceiling")
    if evidence.blocking:
        return Verdict("inconclusive", (ranks, *evidence.blocking.values()), "flag")
    verdict = _weak(evidence, poses, ranks)
    # A picture that is visible in an unfair line-up is no finding, but finding nothing it is neither.
    return Verdict("inconclusive", (ranks, why), "control") if found and verdict.level == "none_found" else verdict


def _fair_poses(evidence: Evidence) -> tuple[list[Pose], str]:
    """The poses in which ranks are evidence, and why the others are none.

    A control that is above chance in either pose says that the line-up measures something else than the update. Ranks
    are then evidence only in a pose in which the clients beat that control.
    """
    poses: list[Pose] = list(RANK_SUM_ALPHA)
    reasons: list[str] = []
    for control, why in ((evidence.swapped, SWAPPED_LEAK), (evidence.deranged, OTHER_CAMERA)):
        if control and any(line_up(control, pose).above_chance for pose in RANK_SUM_ALPHA):
            poses = [pose for pose in poses if beats(evidence.clients, control, pose)]
            reasons.append(why)
    return poses, " ".join(reasons)


def _weak(evidence: Evidence, poses: Sequence[Pose], ranks: str) -> Verdict:
    """What all clients show together where no picture, and no share of first ranks, speaks for itself."""
    for pose in poses:
        own, swapped = line_up(evidence.clients, pose), line_up(evidence.swapped, pose)
        sure = not evidence.mixed or beats(evidence.clients, evidence.swapped, pose)
        if sure and own.above_chance and own.p < swapped.p:
            return Verdict("statistical", (*_posed(own), ranks), "ranks")
    above = [metric for metric in ("psnr", "ssim") if above_every_floor(evidence.clients, metric)]
    if above:
        names = " and ".join(above).upper()
        reason = f"{names} lie above every floor, although the ranks are at chance: brightness or blur, not layout."
        return Verdict("statistical", (reason, ranks), "floors")
    return _nothing_found(evidence, ranks)


def _posed(found: LineUp) -> tuple[str, ...]:
    if found.pose == "plain":
        return ()
    told = f"first in {found.hits} of {found.n} cases (rank-sum p = {found.p:.2g})"
    return (f"With mirroring, quarter turns, small shifts and inversion allowed, the true picture is {told}.",)


def _ranks(evidence: Evidence) -> str:
    own, swapped = line_up(evidence.clients), line_up(evidence.swapped)
    told = (
        f"The line-up ranks the true picture first in {own.hits} of {own.n} cases (chance {own.chance:.1%}, "
        f"rank-sum p = {own.p:.2g}); on swapped updates in {swapped.hits} of {swapped.n} (p = {swapped.p:.2g})"
    )
    if not evidence.deranged:
        return f"{told}."
    other = line_up(evidence.deranged)
    return f"{told}; reconstructions of other clients in {other.hits} of {other.n} (p = {other.p:.2g})."


def _nothing_found(evidence: Evidence, ranks: str) -> Verdict:
    """Nothing was found: is that evidence, or did the measurement fail?"""
    if not evidence.control:
        return Verdict("inconclusive", (ranks, "The planted positive control did not finish."), "control")
    control = line_up(evidence.control)
    if not control.above_chance:
        why = f"The planted control, known to leak, was not found either (p = {control.p:.2g}): attack too weak."
        return Verdict("inconclusive", (ranks, why), "control")
    seen = f"The planted control was found: first in {control.hits} of {control.n} line-ups."
    return Verdict("none_found", (ranks, seen), "nothing")
