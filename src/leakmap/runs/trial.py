"""One run: a client, its update, an attack, a score.

A :class:`Trial` is all names and numbers. What these point to, the network and the pictures, is a
:class:`leakmap.runs.setup.Setup`, named in the trial by its digest: so a trial's key depends on contents, not on paths.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from leakmap.local_rule import LocalRule
from leakmap.registry.spec import Spec
from leakmap.runs.layout import SCHEMA
from leakmap.scoring import GALLERY
from leakmap.scoring.metrics import ALWAYS
from leakmap.scoring.score import Score
from leakmap.threat import ThreatModel


@dataclass(frozen=True)
class Trial:
    """One run, as names and numbers.

    Args:
        setup: Digest of the setup.
        rule: The client's local rule.
        threat: What the server is granted.
        attack: The attack.
        group: Whether the client is a victim, one of the planted control, or one that an attacker rehearses on.
        client: Index of the client in its group.
        swap: 0 for the client's own pictures; k for a victim's k-th set of swapped ones, scored against its own.
        seed: Every random stream derives from it.
        gallery: Candidates wanted in a line-up.
        metrics: What to compute.
        code: SHA-256 of the user's files that the attack names.
        scoring: ``full``, or what is asked of a floor: its ``line-ups`` too, or ``metrics`` alone; or ``informed`` for
            the line-up of :mod:`leakmap.runs.informed` in place of the attack's.
    """

    setup: str
    rule: LocalRule
    threat: ThreatModel
    attack: Spec
    group: Literal["victims", "controls", "rehearsals"] = "victims"
    client: int = 0
    swap: int = 0
    seed: int = 0
    gallery: int = GALLERY
    metrics: tuple[str, ...] = ALWAYS
    code: str = ""
    scoring: Literal["full", "line-ups", "metrics", "informed"] = "full"

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that decides the result, with the schema version."""
        parts = {"schema": str(SCHEMA)} | {one.name: _json(getattr(self, one.name)) for one in _FIELDS}
        text = ", ".join(f'"{name}": {part}' for name, part in sorted(parts.items()))
        return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()


_FIELDS = fields(Trial)
_HELD = 64
_texts: dict[int, tuple[object, str]] = {}
"""Rule, threat model or attack, by its id -> itself, so that the id stays its own, and its JSON."""


def _json(part: Any) -> str:
    """JSON of a field. What the many runs of a cell share is written once: it takes most of the time."""
    if not isinstance(part, (LocalRule, ThreatModel, Spec)):
        return json.dumps(part)
    held = _texts.get(id(part))
    if held is None:
        if len(_texts) >= _HELD:
            _texts.clear()
        held = _texts[id(part)] = part, json.dumps(asdict(part), sort_keys=True)
    return held[1]


@dataclass(frozen=True)
class Reached:
    """What one attack of a suite came to on a client.

    Args:
        name: Of the attack.
        term: The suite's update residual, by which its result is chosen; NaN if it has none.
        seconds: Wall time.
        note: Why it has none.
        failed: Whether it should have had one.
        ranks: In the line-up, of each picture.
        values: Metric -> value of each picture.
    """

    name: str
    term: float
    seconds: float
    note: str = ""
    failed: bool = False
    ranks: tuple[float, ...] = ()
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Deranged:
    """A reconstruction scored against the pictures of another client: what it shares with all of them is no leak.

    Args:
        ranks: In the line-up, of each of the other client's pictures.
        galleries: Candidates in each of these line-ups.
        pose_ranks: The same with any pose allowed.
        values: Metric -> value of each of these pictures.
    """

    ranks: tuple[float, ...]
    galleries: tuple[int, ...]
    pose_ranks: tuple[float, ...]
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: a score or a failure, never both.

    Args:
        trial: As it was asked for.
        score: How the reconstruction fared.
        objective: Its matching term; of a suite its update residual.
        curve: The matching term along the run.
        notes: What the attack recorded.
        used: The facts of the Observation that it rests on besides the update.
        failure: ``(kind, message)`` if it failed.
        reached: Of a suite, what each of its attacks came to.
        deranged: How it fares in the line-ups of the next client's pictures; None where there is no other client. Of
            an informed line-up how the update of other pictures fares in it.
        seconds: Wall time.
        versions: Of leakmap, Python and torch, and the device.
    """

    trial: Trial
    score: Score | None = None
    objective: float = float("nan")
    curve: tuple[float, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    used: frozenset[str] = frozenset()
    failure: tuple[str, str] | None = None
    reached: tuple[Reached, ...] = ()
    deranged: Deranged | None = None
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
