"""The content of ``evidence.json``, typed: statements about an audit, each with where it comes from."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from leakmap.result.schema import schema_of
from leakmap.scoring.exposure import Openness
from leakmap.scoring.verdict import Level

EVIDENCE_SCHEMA = 1
"""Raised whenever a key is renamed, removed or changes its meaning."""
WHAT = "the evidence of a leakmap bundle"
_STRICT = ConfigDict(extra="forbid", strict=True)

Origin = Literal["profile", "measured", "shipped"]
Number = Annotated[float, Field(allow_inf_nan=False)] | None
Value = str | int | float | bool | list[str] | None


@dataclass(frozen=True)
class Statement:
    """One statement.

    Args:
        key: Its name for programs.
        label: Its name for people.
        origin: `profile`: filled in by the institution, null where it left it empty; `measured`: from the run, null
            where the run does not tell; `shipped`: the same in every bundle of this version of leakmap.
        value: What is stated.
    """

    key: str
    label: str
    origin: Origin
    value: Value

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Topic:
    """Statements about one matter.

    Args:
        key: Its name for programs.
        title: Its heading.
        why: The document that asks for it.
        statements: What is stated.
    """

    key: str
    title: str
    why: str
    statements: tuple[Statement, ...]

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Quantity:
    """A measured number with its interval, beside what it is read against.

    Args:
        key: Its name for programs.
        label: Its name for people.
        value: The number.
        low: Lower end of its 95 % interval; null where there is none.
        high: Upper end; null likewise.
        counted: What was counted, such as `3 of 12`; empty for a mean.
        reference: What it is read against: chance, or the best floor; null where there is none.
        reference_is: What that is.
        p: One-sided p-value against it; null where none was computed.
    """

    key: str
    label: str
    value: Number
    low: Number
    high: Number
    counted: str
    reference: Number
    reference_is: str
    p: Number

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Record:
    """What became of one picture of one client. Which picture that is, only who holds the data can tell.

    Args:
        client: Pseudonym: the number of the client in this audit, from 1.
        picture: Pseudonym: its place in the client's batch, from 1.
        rank: In its line-up; 1 is first.
        candidates: In that line-up.
        psnr: Of the reconstruction, dB; null where infinite.
        ssim: Likewise, up to 1.
        exposed: The level at which it was recovered; null where it was not.
    """

    client: int
    picture: int
    rank: float
    candidates: int
    psnr: Number
    ssim: Number
    exposed: Openness | None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Evidence:
    """What an institution files about an audit.

    Args:
        made: When the bundle was made, UTC, ISO 8601.
        leakmap: Version that made it.
        level: Of the verdict.
        headline: The verdict in a sentence.
        pictures: Whether pictures of clients and reconstructions are in the bundle.
        topics: Every statement.
        quantities: Every number that the verdict rests on.
        records: Every picture of every client that finished.
        lost: Clients without a result, with the reason.
        schema: Number of this schema.
    """

    made: str
    leakmap: str
    level: Level
    headline: str
    pictures: bool
    topics: tuple[Topic, ...]
    quantities: tuple[Quantity, ...]
    records: tuple[Record, ...]
    lost: tuple[str, ...]
    schema: Literal[1] = EVIDENCE_SCHEMA

    __pydantic_config__ = _STRICT


def evidence_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``evidence.json``."""
    return schema_of(TypeAdapter(Evidence))
