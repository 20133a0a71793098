"""The content of ``watch.json``, typed: a row for every capture in a watched folder."""

import logging
from pathlib import Path
from typing import Literal

from pydantic import Field

from leakmap.errors import StoreError
from leakmap.files import read_typed, write_text
from leakmap.result.part import Number, Part
from leakmap.scoring.verdict import Level

WATCH_SCHEMA = 2
_log = logging.getLogger("leakmap")
RISKS = frozenset({"last_batch"})
"""Names of checks that say what such clients give away, though no fact is wrong."""


class CheckedFact(Part):
    """What one check of the doctor came to.

    Args:
        name: What was looked at.
        level: ``wrong``: the facts contradict the update.
        sentence: What was found, what it means, what to do.
    """

    name: str
    level: Literal["fine", "notice", "wrong"]
    sentence: str


class Digests(Part):
    """SHA-256 of all that each step follows from: what changes is done again.

    Args:
        checking: Of the capture and the code that was typed for it.
        auditing: Also of the attack and the sources of pictures.
    """

    checking: str
    auditing: str


class Watched(Part):
    """A capture and what became of it; see docs/watch.md.

    Args:
        name: ``round-0001/client-0``: its path in the watched folder.
        round: Its round.
        client: Its client.
        file: Where it lies.
        digests: Of what each step follows from.
        done: Steps that are done.
        findings: What the doctor's checks found.
        level: Of the verdict; None while not scored.
        rank_score: Share of the other candidates that the true picture beats; 0.5 is chance.
        gain: PSNR over the best floor, dB.
        note: Why it is not scored, or inconclusive.
        report: Its ``report.html``, relative to ``watch.json``; None while not scored.
    """

    name: str
    round: int
    client: str
    file: str
    digests: Digests
    done: tuple[Literal["checking", "auditing"], ...] = ()
    findings: tuple[CheckedFact, ...] = ()
    level: Level | None = None
    rank_score: Number = None
    gain: Number = None
    note: str = ""
    report: str | None = None


class _WatchFile(Part):
    schema_number: Literal[2] = Field(default=WATCH_SCHEMA, alias="schema")
    captures: dict[str, Watched]


def read_watched(path: Path) -> dict[str, Watched]:
    """The rows of a ``watch.json`` by name; none where it is absent, and none with a word where it is damaged."""
    if not path.exists():
        return {}
    try:
        return read_typed(path, _WatchFile, "the captures of a watched folder").captures
    except StoreError as error:
        _log.warning("%s All captures are looked at again; what was audited is kept.", error)
        return {}


def write_watched(path: Path, rows: list[Watched]) -> None:
    """Writes a ``watch.json``."""
    whole = _WatchFile(captures={row.name: row for row in rows})
    write_text(path, whole.model_dump_json(by_alias=True, indent=2) + "\n")
