"""The content of ``result.json``, typed: what an audit writes, and what reports, terminal and studies read.

Every model is frozen and refuses unknown keys. Numbers that are not finite become None on construction, so a result in
memory equals the one that is read back. The ``Args`` sections are published: docs/result.md and
docs/result.schema.json are made from them.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from leakmap.errors import LeakmapError, StoreError
from leakmap.files import JSON_LIMIT, finite, read_limited, refusal
from leakmap.plan.plan import Column, Plan
from leakmap.scoring.verdict import Level
from leakmap.threat import ThreatModel

RESULT_SCHEMA = 2
"""Raised whenever a key is renamed, removed or changes its meaning; 1 had ``gate`` for ``update_check``."""

Role = Literal["attack", "swapped", "prior_only", "control"]
"""What a run is for."""

WHAT = "a result of a leakmap audit"


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
        reasons: Why, in sentences.
        statement: The verdict in one sentence, with attack, attacker and rate.
    """

    level: Level
    reasons: tuple[str, ...]
    statement: str


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
        swapped: The same attack on updates from other pictures, which must be at chance; null likewise.
        control: The planted control, which must be found; null if none of its runs finished.
    """

    gallery: tuple[int, int] | None
    attack: LineUpResult | None
    swapped: LineUpResult | None
    control: LineUpResult | None


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
        floors: Metric -> floor -> value of each picture.
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
    floors: Mapping[str, Mapping[str, tuple[Number, ...]]]
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


class Result(Part):
    """What an audit found.

    Args:
        schema_number: Number of this schema; another number means other keys.
        verdict: The verdict.
        line_up: The line-ups of pictures.
        objects: The line-ups of objects; null where none were detected.
        metrics: Metric -> it beside its floors: ``psnr``, ``ssim``, with objects ``psnr_in_boxes`` and
            ``psnr_around_boxes``, and those that were asked for; empty if no client finished.
        settings: Where the settings of the attack come from.
        defence: What the clients do to their updates; null if nothing.
        suite: What each attack of a suite reached; null for a single attack.
        labels: Where the classes come from.
        flags: Name -> a sentence, of everything that limits or qualifies the verdict.
        update_check: What the update depends on.
        closed_forms: Which attacks that solve equations can read a layer.
        knowledge: What the server knew.
        clients: Every client, in order.
        failures: Every failed run.
        unfinished: Runs that are missing after an interruption.
        pictures: Group -> its size; no picture is in two groups.
        accuracy: Of the network on the public pictures; null for detectors.
        plan: All settings.
        command: The command line, or the call, that repeats the audit.
        control_model: Architecture of the planted control.
        seconds: Wall time of this call.
        seconds_of_runs: Sum over all runs.
        resumed_runs: Runs that were found finished.
        versions: Of leakmap, Python and torch, and the device.
    """

    schema_number: Literal[2] = Field(default=RESULT_SCHEMA, alias="schema")
    verdict: VerdictResult
    line_up: LineUps
    objects: ObjectLineUps | None
    metrics: dict[str, GainResult]
    settings: Settings
    defence: DefenceResult | None
    suite: SuiteResult | None
    labels: LabelsResult
    flags: dict[str, str]
    update_check: UpdateCheckResult
    closed_forms: ClosedForms
    knowledge: Knowledge
    clients: tuple[FinishedClient | LostClient, ...]
    failures: tuple[FailedRun, ...]
    unfinished: int
    pictures: dict[str, int]
    accuracy: Number
    plan: Plan
    command: str
    control_model: str
    seconds: float
    seconds_of_runs: float
    resumed_runs: int
    versions: dict[str, str]

    @property
    def finished(self) -> list[FinishedClient]:
        """The clients that have all of their runs, in order."""
        return [client for client in self.clients if isinstance(client, FinishedClient)]

    def as_json(self) -> str:
        """The content of ``result.json``."""
        return json.dumps(self.model_dump(mode="json", by_alias=True, warnings=False), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "This text") -> Self:
        """Reads what :meth:`as_json` made; anybody may have written it, and nothing in it is run.

        Args:
            text: At most 16 MiB.
            where: What holds it, for messages.

        Raises:
            StoreError: it is no result, or one of another schema.
        """
        if len(text) > JSON_LIMIT:
            raise StoreError(f"{where} is larger than {JSON_LIMIT} bytes; expected {WHAT}.")
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise StoreError(_other_schema(error, where) or refusal(error, where, WHAT)) from None
        except LeakmapError as error:
            raise StoreError(f"{where} holds a plan that cannot be audited ({error}); make it again.") from None


def read_result(path: Path | str) -> Result:
    """Reads the ``result.json`` of an audit; nothing in it is run.

    Args:
        path: The file.

    Raises:
        StoreError: there is none, or it does not hold a result of this schema.
    """
    return Result.from_json(read_limited(Path(path), WHAT), str(path))


def _other_schema(error: ValidationError, where: str) -> str:
    """The sentence for a result of another schema; empty if that is not what is wrong."""
    for one in error.errors(include_url=False):
        if one["loc"] == ("schema",) and type(number := one["input"]) is int and 0 < number < 1000:
            return (
                f"{where} has schema {number}, this version of leakmap reads schema {RESULT_SCHEMA}; "
                "run its command again, finished runs are kept."
            )
    return ""
