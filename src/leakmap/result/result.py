"""The content of ``result.json``, typed: what an audit writes, and what reports, terminal and studies read."""

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from leakmap.drawing import card
from leakmap.errors import LeakmapError, StoreError, check_type
from leakmap.files import JSON_LIMIT, read_limited, refusal
from leakmap.plan.plan import Plan
from leakmap.result.clients import FailedRun, FinishedClient, LostClient
from leakmap.result.evidence import (
    BandsResult,
    CeilingResult,
    CopiesResult,
    ExposureResult,
    GainResult,
    LineUps,
    ObjectLineUps,
    VerdictResult,
)
from leakmap.result.method import (
    ClosedForms,
    DefenceResult,
    Knowledge,
    LabelsResult,
    Settings,
    SuiteResult,
    UpdateCheck,
)
from leakmap.result.part import Number, Part

RESULT_SCHEMA = 4
"""Raised whenever a key is renamed, removed or changes its meaning; 1 had ``gate`` for ``update_check``, 2 counted the
auditor's reference pictures among the public ones."""

WHAT = "a result of a leakmap audit"


class Result(Part):
    """What an audit found.

    Args:
        schema_number: Number of this schema; another number means other keys.
        verdict: The verdict.
        exposure: How many clients and pictures are exposed; null if no client finished.
        line_up: The line-ups of pictures.
        ceiling: What no attacker can exceed, beside what was measured; null in results from before it was stated.
        bands: What leaks: colour, layout, detail; null if no client finished.
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
        copies: Near copies that were left out; null where there were too many pictures to look for them.
        accuracy: Of the network on the reference pictures; null for detectors.
        plan: All settings.
        command: The command line, or the call, that repeats the audit.
        control_model: Architecture of the planted control.
        seconds: Wall time of this call.
        seconds_of_runs: Sum over all runs.
        resumed_runs: Runs that were found finished.
        versions: Of leakmap, Python and torch, and the device.
    """

    schema_number: Literal[4] = Field(default=RESULT_SCHEMA, alias="schema")
    verdict: VerdictResult
    exposure: ExposureResult | None
    line_up: LineUps
    ceiling: CeilingResult | None = None
    bands: BandsResult | None
    objects: ObjectLineUps | None
    metrics: dict[str, GainResult]
    settings: Settings
    defence: DefenceResult | None
    suite: SuiteResult | None
    labels: LabelsResult
    flags: dict[str, str]
    update_check: UpdateCheck
    closed_forms: ClosedForms
    knowledge: Knowledge
    clients: tuple[FinishedClient | LostClient, ...]
    failures: tuple[FailedRun, ...]
    unfinished: int
    pictures: dict[str, int]
    copies: CopiesResult | None
    accuracy: Number
    plan: Plan
    command: str
    control_model: str
    seconds: float
    seconds_of_runs: float
    resumed_runs: int
    versions: dict[str, str]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        pictures = {one.client: len(one.ranks) for one in self.finished}
        for one in self.finished:
            try:
                one.check()
            except ValueError as error:
                raise ValueError(f"of client {one.client}, {error}") from None
            if missing := sorted(self.metrics.keys() - one.scores.keys()):
                raise ValueError(f"metrics holds {missing[0][:80]}, which client {one.client} has no scores of")
        for name, gain in self.metrics.items():
            if gain.best_floor not in gain.floors:
                raise ValueError(
                    f"the best floor of {name[:80]} is {gain.best_floor[:80]}, which is none of its floors"
                )
        for one in self.exposure.found if self.exposure else ():
            if not 0 <= one.picture < pictures.get(one.client, 0):
                raise ValueError(f"exposure names picture {one.picture} of client {one.client}, which is not there")
        return self

    @property
    def finished(self) -> list[FinishedClient]:
        """The clients that have all of their runs, in order."""
        return [client for client in self.clients if isinstance(client, FinishedClient)]

    def __repr__(self) -> str:
        return f"<Result: {self.verdict.level}. {self.verdict.statement}>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return card("Result of an audit", self.told())

    def told(self) -> dict[str, str]:
        """What a notebook shows of it: name -> in words; empty where there is nothing to say."""
        exposed, first = self.exposure, self.line_up.attack
        means = (f"{name} {row.value.value:.3g}" for name, row in self.metrics.items() if row.value.value is not None)
        return {
            "verdict": f"{self.verdict.level}. {self.verdict.statement}",
            "exposed": f"{exposed.clients} of {exposed.of_clients} clients" if exposed else "",
            "line-up": f"{first.hits} of {first.n} first; {first.chance:.1%} by chance" if first else "",
            "means": ", ".join(means),
            "flags": ", ".join(self.flags),
            "again": self.command,
        }

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
    check_type(path, (str, Path), "The path of a result", "text or a pathlib.Path")
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
