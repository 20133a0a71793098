"""The content of ``watch.json``, typed: a row for every capture in a watched folder."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from leakmap.errors import StoreError
from leakmap.files import read_typed, write_text
from leakmap.result.part import Number, Part
from leakmap.scoring.rounds import ERROR, pooled
from leakmap.scoring.verdict import Level

WATCH_SCHEMA = 3
_log = logging.getLogger("leakmap")
EXPOSED = ("visual", "exact")
"""Levels at which a person sees a picture."""
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
        advantage: By what share of a line-up the true pictures rank better from this update than from one of other
            pictures, in [-1, 1]; 0 is chance.
        gain: PSNR over the best floor, dB.
        note: Why it is not scored, or inconclusive.
        report: Its ``report.html``, relative to ``watch.json``; None while not scored.
        place: Its place among all captures in the order in which they were first scored, from 1; None while not scored.
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
    advantage: Number = None
    gain: Number = None
    note: str = ""
    report: str | None = None
    place: Annotated[int, Field(ge=1)] | None = None

    @property
    def exposed(self) -> bool:
        """Whether a picture came back so that it can be seen."""
        return self.level in EXPOSED


class Alarm(Part):
    """Why somebody should look now.

    Args:
        capture: Its name.
        kind: ``exposed``: a picture of this capture came back; ``pooled``: with this capture all of them together say
            that updates give pictures away.
        sentence: What was found.
    """

    capture: str
    kind: Literal["exposed", "pooled"]
    sentence: str


class PooledRounds(Part):
    """What all captures say together, see :mod:`leakmap.scoring.rounds`.

    Args:
        captures: That were scored beside a swapped update.
        evidence: The highest wealth of the bets so far, from 1.
        p: Its inverse: a p-value that holds however often one looks.
        alarms: The first exposed capture and the one at which the pooled evidence sufficed, in the order in
            which captures were scored.
    """

    captures: int
    evidence: float
    p: float
    alarms: tuple[Alarm, ...]


def pooled_rounds(rows: Sequence[Watched]) -> PooledRounds:
    """Pools captures in the order in which they were scored: of whatever round one comes late, it undoes no alarm.

    Inconclusive ones count: leaving out what failed would choose by outcome.
    """
    rows = sorted(rows, key=lambda row: row.place or len(rows) + 1)
    scored = [row for row in rows if row.advantage is not None]
    found = pooled([row.advantage or 0.0 for row in scored])
    alarms: list[Alarm] = []
    if found.alarm is not None:
        sentence = (
            f"Over {found.alarm + 1} captures the true pictures rank better from their own updates than from others, "
            f"by more than chance allows anybody who looks after every capture (error {ERROR:.0%})."
        )
        alarms.append(Alarm(capture=scored[found.alarm].name, kind="pooled", sentence=sentence))
    first = next((row for row in rows if row.exposed), None)
    if first is not None:
        sentence = f"A picture of {first.name} came back from its update so that it can be seen ({first.level})."
        alarms.append(Alarm(capture=first.name, kind="exposed", sentence=sentence))
    places = {row.name: place for place, row in enumerate(rows)}
    return PooledRounds(
        captures=found.captures,
        evidence=found.evidence,
        p=found.p,
        alarms=tuple(sorted(alarms, key=lambda alarm: places[alarm.capture])),
    )


class _WatchFile(Part):
    schema_number: Literal[3] = Field(default=WATCH_SCHEMA, alias="schema")
    pooled: PooledRounds
    captures: dict[str, Watched]


def read_watched(path: Path) -> dict[str, Watched]:
    """The rows of a ``watch.json`` by name; none where it is absent, and none with a word where it is damaged.

    Scored captures without a place, as leakmap 0.1.0 left them, get those in which they are stored.
    """
    if not path.exists():
        return {}
    try:
        rows = read_typed(path, _WatchFile, "the captures of a watched folder").captures
        last = last_place(rows.values())
        without = [row for row in rows.values() if row.level is not None and row.place is None]
        return rows | {row.name: row.model_copy(update={"place": place}) for place, row in enumerate(without, last + 1)}
    except StoreError as error:
        _log.warning("%s All captures are looked at again; what was audited is kept.", error)
        return {}


def last_place(rows: Iterable[Watched]) -> int:
    """The highest place of a capture that was scored; 0 while none was."""
    return max((row.place for row in rows if row.place is not None), default=0)


def write_watched(path: Path, rows: Sequence[Watched]) -> None:
    """Writes a ``watch.json``."""
    write_text(path, watch_json(rows))


def watch_json(rows: Sequence[Watched]) -> str:
    """The content of a ``watch.json``."""
    whole = _WatchFile(pooled=pooled_rounds(rows), captures={row.name: row for row in rows})
    return whole.model_dump_json(by_alias=True, indent=2) + "\n"
