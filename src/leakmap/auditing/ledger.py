"""The ledger: what the server was granted, and what the attack used."""

import statistics
from collections.abc import Sequence
from typing import Literal

from leakmap.attacker.labels import UNREAD
from leakmap.client.groups import Groups
from leakmap.plan.plan import Plan
from leakmap.result.method import Knowledge, LabelsResult
from leakmap.runs.trial import Outcome
from leakmap.threat import letter_of

Source = Literal["granted", "counts granted", "inferred"]
SOURCES: dict[str, Source] = {"known": "granted", "counts": "counts granted", "unknown": "inferred"}


def used_by(attacked: Sequence[Outcome]) -> tuple[str, ...]:
    """Facts that the attack used on any client, sorted."""
    return tuple(sorted(frozenset[str]().union(*(outcome.used for outcome in attacked))))


def knowledge_of(plan: Plan, groups: Groups, attacked: Sequence[Outcome]) -> Knowledge:
    """What was granted, and what the attack used."""
    used = used_by(attacked)
    return Knowledge(
        attacker=plan.threat.letter,
        attacker_used=letter_of(used),
        granted=plan.threat,
        public=public_from(groups),
        used=used,
    )


def public_from(groups: Groups) -> str:
    """How many public pictures the server holds, and where they come from."""
    if not len(groups.public):
        return "no public pictures"
    return f"{len(groups.public)} public pictures from {'other photographs' if groups.elsewhere else 'the same source'}"


def labels_of(plan: Plan, attacked: Sequence[Outcome]) -> LabelsResult:
    """Whether the classes were granted, an upper bound in this respect, or inferred, and how well."""
    source = SOURCES[plan.threat.labels]
    confidences = [c for o in attacked if isinstance(c := o.notes.get("label confidence"), float)]
    rule = ", ".join(sorted({str(rule) for o in attacked if (rule := o.notes.get("labels"))}))
    confidence = statistics.fmean(confidences) if confidences else None
    right = statistics.fmean(o.score.labels_right for o in attacked if o.score) if attacked else None
    if source != "inferred":
        statement = f"{source}: an upper bound for an attacker who does not know them"
    elif right is None:
        statement = "to be inferred"
    elif rule in ("", UNREAD):
        statement = "not read"
    else:
        sure = "" if confidence is None else f", confidence {confidence:.2f}"
        statement = f"inferred by {rule}{sure}, right in {right:.0%}"
    return LabelsResult(source=source, rule=rule, confidence=confidence, right=right, statement=statement)
