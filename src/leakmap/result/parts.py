"""The parts of a result, typed.

Every model is frozen and refuses unknown keys. Numbers that are not finite become None on construction, so a result in
memory equals the one that is read back. The ``Args`` sections are published: docs/result.md and
docs/result.schema.json are made from them.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from leakmap.files import finite
from leakmap.plan.plan import Column
from leakmap.scoring.exposure import Openness
from leakmap.scoring.verdict import Level, Rule
from leakmap.threat import ThreatModel

Role = Literal["attack", "swapped", "prior_only", "control"]
"""What a run is for."""


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_number)]
"""None where it is not finite, which JSON cannot hold."""

Notes = Annotated[dict[str, Any], BeforeValidator(finite)]


class Part(BaseModel):
    """A part of a result; made from keywords, or by ``model_validate`` from an object with the same attributes."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True, allow_inf_nan=False)


class VerdictResult(Part):
    """The verdict.

    Args:
        level: How much leaked; ``inconclusive`` where this audit cannot say.
        rule: Which rule decided, see [The verdict](verdict.md).
        reasons: Why, in sentences.
        statement: The verdict in one sentence, with attack, attacker, and how many clients it concerns.
        worst: The worst picture in a sentence; empty if no client finished.
        typical: The typical picture in a sentence; empty likewise.
    """

    level: Level
    rule: Rule
    reasons: tuple[str, ...]
    statement: str
    worst: str
    typical: str


class Estimate(Part):
    """An estimate with its 95 % interval.

    Args:
        value: The estimate.
        low: Lower end; null where one client shows nothing about others.
        high: Upper end; null likewise.
    """

    value: Number
    low: Number
    high: Number


class Rate(Part):
    """A share with its exact 95 % interval.

    Args:
        value: The share.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


class ExposedPicture(Part):
    """A picture that an attack recovered: first in its line-up, above each of its own floors, and recognisable.

    Args:
        client: The number of its client, from 0.
        picture: Its place in the client's batch, from 0.
        level: ``exact`` above 30 dB PSNR, else ``visual``, above 0.5 SSIM.
        psnr: In dB.
        ssim: Up to 1.
    """

    client: int
    picture: int
    level: Openness
    psnr: Number
    ssim: Number


class ExposureResult(Part):
    """How many clients and pictures are exposed.

    Args:
        clients: Clients with at least one exposed picture.
        of_clients: Clients that finished.
        client_share: Their share; its upper end is what an audit that found none leaves possible.
        pictures: Exposed pictures.
        of_pictures: Pictures of clients that finished.
        picture_share: Their share; its interval counts clients as cases.
        found: Every exposed picture, the worst first.
    """

    clients: int
    of_clients: int
    client_share: Rate
    pictures: int
    of_pictures: int
    picture_share: Rate
    found: tuple[ExposedPicture, ...]


class CopiesResult(Part):
    """What leaving out near copies did: pictures that are one picture, saved, resized, mirrored or cropped again.

    Args:
        families: Pictures that had copies.
        left_out: Copies that were left out, so that no group holds a copy of another's picture.
    """

    families: int
    left_out: int


class LineUpResult(Part):
    """A line-up over all clients.

    Args:
        hits: Pictures that were ranked first.
        n: Pictures.
        rank_one: Share of first ranks.
        chance: Share expected without leakage.
        median_rank: Over all pictures; 1 is first.
        p: One-sided rank-sum test against chance.
        p_rank_one: One-sided test of the number of first ranks against chance.
        above_chance: Whether the ranks tell the true pictures from the others.
    """

    hits: int
    n: int
    rank_one: Rate
    chance: float
    median_rank: float
    p: float
    p_rank_one: float
    above_chance: bool


class LineUps(Part):
    """The line-ups of pictures.

    Args:
        gallery: Fewest and most candidates of a line-up; null if no client finished.
        attack: Of what the attack made of each client's update; null if no client finished.
        any_pose: The same, by the highest similarity over mirroring, quarter turns, small shifts and inversion.
        swapped: The same attack on updates from other pictures, which must be at chance; null likewise.
        deranged: Every reconstruction among the candidates of the next client, which must be at chance too; null with
            one client only.
        control: The planted control, which must be found; null if none of its runs finished.
    """

    gallery: tuple[int, int] | None
    attack: LineUpResult | None
    any_pose: LineUpResult | None
    swapped: LineUpResult | None
    deranged: LineUpResult | None
    control: LineUpResult | None


class BandsResult(Part):
    """What leaks: line-ups by one aspect of the pictures alone, see [The verdict](verdict.md#what-leaks).

    Args:
        colour: The means of the channels; of grey pictures the brightness.
        layout: Coarse shapes without their mean: the 8 slowest cosine waves along each axis of the grey picture.
        detail: What the grey picture holds beyond that.
        statement: The aspects above chance, in a sentence.
    """

    colour: LineUpResult
    layout: LineUpResult
    detail: LineUpResult
    statement: str


class ObjectLineUps(Part):
    """The line-ups of crops of large objects.

    Args:
        attack: Of what the attack made of each client's update.
        swapped: The same attack on updates from other pictures; null if there is none.
    """

    attack: LineUpResult | None
    swapped: LineUpResult | None


class GainResult(Part):
    """A metric beside its floors.

    Args:
        value: Mean over clients.
        floors: Floor -> its mean.
        best_floor: The floor with the highest mean.
        gain: Mean difference to that floor, client by client.
        above_every_floor: Whether the difference to every floor is positive, sign-flip p < 0.005.
    """

    value: Estimate
    floors: dict[str, Number]
    best_floor: str
    gain: Estimate
    above_every_floor: bool


class Settings(Part):
    """Where the settings of the attack come from; see [Tuning](tuning.md).

    Args:
        column: Results of different columns are not compared.
        statement: The same in words.
        budget: Of tuned ones: settings that were tried; else null, like all that follow.
        clients: Clients that each was rehearsed on.
        objective: What was maximised.
        score: Its mean with these settings.
        default: Its mean with the default settings.
    """

    column: Literal["default", "given"] | Column
    statement: str
    budget: int | None = None
    clients: int | None = None
    objective: str | None = None
    score: Number = None
    default: Number = None


class DefenceResult(Part):
    """What the clients do to their updates, and what that promises for one round; see [Defences](defences.md).

    Args:
        specification: The defence with its settings.
        statement: The same in words, with what it promises.
        epsilon: Of differential privacy; null where unknown or without noise.
        delta: The delta of that epsilon; null likewise.
    """

    specification: str
    statement: str
    epsilon: Number = None
    delta: Number = None


class SuiteMember(Part):
    """What one attack of a suite reached over all clients.

    Args:
        name: Of the attack.
        ran: Clients on which it came to a result.
        failed: Clients on which it should have come to a result and did not.
        won: Clients whose result is this attack's.
        why: Why it did not run; empty if it did.
        term: Median of what it leaves unexplained of what the clients sent; null if it did not run.
        first: Pictures that it ranked first.
        pictures: Pictures.
        values: Metric -> its mean.
        seconds: Of a client, mean; null if it did not run.
    """

    name: str
    ran: int
    failed: int
    won: int
    why: str
    term: Number
    first: int
    pictures: int
    values: dict[str, Number]
    seconds: Number


class SuiteResult(Part):
    """What each attack of a suite reached.

    Args:
        version: Of the suite.
        members: Its attacks.
    """

    version: str
    members: tuple[SuiteMember, ...]


class LabelsResult(Part):
    """Where the classes that the attack used come from.

    Args:
        source: Granted ones are an upper bound for an attacker who does not know them.
        rule: The rule that inferred them, or several.
        confidence: Of the rule, mean over clients; null where it gives none.
        right: Share that was right, mean over clients; null if no client finished.
        statement: The same in words.
    """

    source: Literal["granted", "counts granted", "inferred"]
    rule: str
    confidence: Number
    right: Number
    statement: str


class UpdateCheckResult(Part):
    """What the update depends on; medians over the probed clients.

    Args:
        norm: Norm of the update.
        head_fraction: Share of its squared norm in the last layer.
        zero_below: Whether every tensor below the last layer is exactly zero.
        zero_tensors: Tensors that are exactly zero.
        tiny_tensors: Tensors below 1e-5 of the total norm.
        tensors: Tensors in the update.
        cos_other: Cosine to the update of other pictures with the same labels.
        cos_noise: Cosine to the update of noise with the same labels.
        cos_precise: Cosine to the same update computed in float64; null where the model cannot compute in it.
        loss: The client's loss in its own mode before training.
    """

    norm: Number
    head_fraction: Number
    zero_below: bool
    zero_tensors: Number
    tiny_tensors: Number
    tensors: int
    cos_other: Number
    cos_noise: Number
    cos_precise: Number
    loss: Number


class ClosedForms(Part):
    """Which attacks that solve equations can read a layer.

    Args:
        qualify: Their names.
        reasons: A sentence for each closed form, R-GAP's rank condition included.
    """

    qualify: tuple[str, ...]
    reasons: tuple[str, ...]


class Knowledge(Part):
    """What the server knew.

    Args:
        attacker: The nearest attacker of Carletti et al. (2025) by what was granted.
        attacker_used: The nearest one by what the attack used.
        granted: Every fact of the threat model.
        used: Facts that the attack used.
    """

    attacker: str
    attacker_used: str
    granted: ThreatModel
    used: tuple[str, ...]


class FinishedClient(Part):
    """A client all of whose runs finished.

    Args:
        client: Its number, from 0.
        classes: The class of each picture, or which objects it holds.
        ranks: In the line-up, of each picture; 1 is first.
        galleries: Candidates in each of these line-ups, the true picture included.
        scores: Metric -> value of each picture.
        floors: Metric -> floor -> value of each picture; null where the floor came to no reconstruction.
        pose_ranks: Ranks with any pose allowed.
        band_ranks: Band -> rank of each picture by that band alone.
        swapped_ranks: Ranks of the same pictures by the attack on a swapped update.
        object_ranks: In the line-up of crops, of each large object.
        object_galleries: Candidates in each of these.
        labels_right: Share of the classes that were right.
        objective: The matching term that the attack reached; of a suite its update residual.
        curve: The matching term along the run.
        seconds: Of the attack.
        used: Facts that the attack used.
        notes: What the attack recorded.
    """

    client: int
    classes: tuple[str, ...]
    ranks: tuple[float, ...]
    galleries: tuple[int, ...]
    scores: Mapping[str, tuple[Number, ...]]
    floors: Mapping[str, Mapping[str, tuple[Number, ...] | None]]
    pose_ranks: tuple[float, ...]
    band_ranks: Mapping[str, tuple[float, ...]]
    swapped_ranks: tuple[float, ...]
    object_ranks: tuple[float, ...]
    object_galleries: tuple[int, ...]
    labels_right: Number
    objective: Number
    curve: tuple[Number, ...]
    seconds: float
    used: tuple[str, ...]
    notes: Notes


class LostClient(Part):
    """A client of which a run failed or is missing: without its floors there is no score.

    Args:
        client: Its number, from 0.
        failure: Why.
    """

    client: int
    failure: str


class FailedRun(Part):
    """A run that failed.

    Args:
        role: What it was for.
        client: The number of its client, from 0.
        kind: Of the failure.
        message: What it said.
    """

    role: Role
    client: int
    kind: str
    message: str
