"""The content of an entry, typed: one audited client with its figures, and the files that anybody can score again."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from leakmap.client.data import holds_objects
from leakmap.defences import NONE
from leakmap.errors import LeakmapError, StoreError
from leakmap.evidence.evidence import Quantity, Record
from leakmap.files import read_limited, refusal
from leakmap.models.network import IN_MEMORY
from leakmap.plan.plan import Plan
from leakmap.registry.user_code import user_code_in
from leakmap.result.clients import Role
from leakmap.result.part import Part
from leakmap.result.schema import schema_of
from leakmap.runs.setup import Setup
from leakmap.scoring.verdict import Level

ENTRY_SCHEMA = 1
"""Raised whenever a key is renamed, removed or changes its meaning."""
WHAT = "a leakmap entry"
ATTACHED_LIMIT = 2**28
"""Bytes of attached reconstructions."""
Board = Literal["inference", "training", "FedAvg", "defended", "detection"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Words = Annotated[str, Field(max_length=200)]


class Claimed(Part):
    """A figure that somebody else stated, beside which the measured one stands.

    Args:
        key: The key of a measured figure, such as `line_up_attack`.
        value: What was stated.
        source: Where.
    """

    key: Words
    value: float
    source: Words


class Where(Part):
    """With what, on which machine and when the audit was run.

    Args:
        leakmap: Version.
        commit: Of leakmap's source, where it ran from a checkout; else empty.
        python: Version.
        platform: Operating system and architecture.
        processor: Its name.
        cores: That the process could use.
        device: Where the runs were computed.
        versions: Of the packages that results depend on.
        started: UTC, ISO 8601.
        finished: Likewise.
    """

    leakmap: Words
    commit: Words
    python: Words
    platform: Words
    processor: Words
    cores: int
    device: Words
    versions: dict[Words, Words]
    started: Words
    finished: Words


class RunOf(Part):
    """A run of the audit.

    Args:
        role: What it was for.
        client: The number of its client, from 0.
        last: Whether it speaks of the pictures of the last local step alone.
        used: Facts that the attack used.
        failure: Kind and message, if it failed; else null, and the file holds its pictures.
    """

    role: Role
    client: Annotated[int, Field(ge=0, le=10**6)]
    last: bool
    used: tuple[Words, ...]
    failure: tuple[Words, Annotated[str, Field(max_length=2000)]] | None


class Attached(Part):
    """The file beside the entry that holds the reconstructions.

    Args:
        file: Its name.
        bytes: Its size.
        sha256: Of its content.
    """

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors$")]
    bytes: Annotated[int, Field(ge=8, le=ATTACHED_LIMIT)]
    sha256: Digest


class Entry(Part):
    """One audited client.

    Args:
        schema_number: Number of this schema.
        title: A line that says what was audited.
        by: Who made it; empty where nobody said.
        where: With what and where it was measured.
        architecture: SHA-256 of the specification and of the names, types and shapes of the weights.
        weights: SHA-256 of the weights that the clients got.
        parameters: Trained parameters.
        data: SHA-256 of all pictures and how they were divided.
        truth: SHA-256 of the victims' pictures.
        attacker: Nearest attacker of Carletti et al. (2025) by what was granted.
        suite: Version of the attack suite; empty for a single attack.
        plan: All settings of the audit: architecture, local rule, threat model, source of the pictures, attack, seed.
        command: The command line that repeats it.
        claimed: Figures that others stated.
        level: Of the verdict.
        flags: Everything that limits or qualifies the verdict.
        figures: Every number that the verdict rests on, with its interval.
        records: What became of each picture of each client.
        runs: Every run, in order.
        reconstructions: The file with the pictures of the runs.
    """

    schema_number: Literal[1] = Field(default=ENTRY_SCHEMA, alias="schema")
    title: Annotated[str, Field(min_length=1, max_length=120)]
    by: Words
    where: Where
    architecture: Digest
    weights: Digest
    parameters: int
    data: Digest
    truth: Digest
    attacker: Words
    suite: Words
    plan: Plan
    command: str
    claimed: tuple[Claimed, ...]
    level: Level
    flags: dict[str, str]
    figures: tuple[Quantity, ...]
    records: tuple[Record, ...]
    runs: Annotated[tuple[RunOf, ...], Field(max_length=10**5)]
    reconstructions: Attached

    @property
    def board(self) -> Board:
        """Where on the board it stands, by what its clients do."""
        return board_of(self.plan)

    def figure(self, key: str) -> Quantity | None:
        """The measured figure of this key."""
        return next((figure for figure in self.figures if figure.key == key), None)

    def as_json(self) -> str:
        """The content of the entry's file."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def board_of(plan: Plan) -> Board:
    """The threat model under which an audit is listed: the first that applies."""
    if holds_objects(plan.data):
        return "detection"
    if plan.rule.defence != NONE:
        return "defended"
    if plan.rule.share == "delta":
        return "FedAvg"
    return "training" if plan.rule.mode == "train" else "inference"


def why_not_repeatable(plan: Plan) -> str:
    """Why nobody else can repeat a plan, as the rest of a sentence; empty if they can."""
    if plan.captured is not None:
        return "its updates were captured from real clients, whose pictures others do not have"
    if IN_MEMORY in (plan.model, plan.data):
        return "its model or its pictures were in memory"
    if own := user_code_in(asdict(plan)):
        return f"{own[0]} is a file of its maker's own, which no entry holds; make it a package with an entry point"
    return ""


def read_entry(path: Path | str) -> Entry:
    """Reads an entry that anybody may have written; nothing in it is run.

    Args:
        path: The JSON file.

    Raises:
        StoreError: there is none, or it is no entry of this schema.
    """
    path = Path(path)
    content = read_limited(path, WHAT)
    try:
        return Entry.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise StoreError(refusal(error, str(path), WHAT)) from None
    except LeakmapError as error:
        raise StoreError(f"{path} holds a plan that cannot be audited ({error}); make it again.") from None


def read_entries(folder: Path | str) -> list[tuple[str, Entry]]:
    """The entries in a folder by name, in order of name.

    Raises:
        StoreError: there is no such folder, or a file in it is no entry.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(f"There is no folder {folder}; give the one that holds the entries.")
    return [(path.stem, read_entry(path)) for path in sorted(folder.glob("*.json"))]


def tensor_name(role: Role, client: int) -> str:
    """What the pictures of a run are called in the attached file."""
    return f"{role}.{client}"


def expected_names(runs: Iterable[RunOf]) -> set[str]:
    """Names of all tensors that the attached file must hold, and no other."""
    # An informed line-up has no reconstruction: it is computed again.
    return {tensor_name(run.role, run.client) for run in runs if run.failure is None and run.role != "informed"}


def truth_digest(setup: Setup) -> str:
    """SHA-256 of the victims' pictures, in order."""
    return hashlib.sha256("".join(setup.groups.digests(setup.groups.victims)).encode()).hexdigest()


def entry_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of an entry."""
    return schema_of(TypeAdapter(Entry))
