"""What a result tells besides its numbers: flags, settings, defence, suite, labels, ledger, the verdict in words."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from leakmap.attacker.attacks import attacks
from leakmap.attacker.closed_form import diagnose, summary
from leakmap.auditing.prepare import facts
from leakmap.client.groups import Groups
from leakmap.defences import NONE, defence_of
from leakmap.defences.accounting import INSTALL, epsilon
from leakmap.errors import BadSetting
from leakmap.plan.plan import Plan
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Outcome
from leakmap.scoring.lineup import FEWEST_OF_A_CLASS
from leakmap.scoring.verdict import Client, Verdict, line_up
from leakmap.threat import letter_of

DELTA = 1e-5
"""Of differential privacy, unless a client has so many pictures that one over their number is less."""


def flags_of(plan: Plan, groups: Groups, verdict: Verdict, attacked: Sequence[Outcome]) -> dict[str, str]:
    """Warnings that do not decide the verdict."""
    flags: dict[str, str] = {}
    curves = [o.curve for o in attacked if len(o.curve) >= 2]
    if curves:
        left = statistics.median(min(curve) / max(curve[0], 1e-30) for curve in curves)
        if left > 0.9:
            flags["matching_not_reduced"] = f"The matching term only fell to {left:.0%} of its start (median)."
        tail = statistics.median(1 - min(c) / max(min(c[: -math.ceil(len(c) / 10)]), 1e-30) for c in curves)
        if tail > 0.05:
            flags["still_falling"] = f"The matching term fell by another {tail:.0%} in the last tenth: raise --steps."
        final = statistics.median(min(curve) for curve in curves)
        if final < 0.05 and verdict.level == "none_found":
            flags["matched_without_similarity"] = (
                f"The update is matched (median {final:.2g}) by pictures that are unlike the originals."
            )
    if plan.rule.defence != NONE and not plan.threat.rule:
        flags["defence_withheld"] = (
            f"The attacker was not told of the defence {plan.rule.defence}: what holds against this attacker need not "
            "hold against one who knows it."
        )
    modes = {o.notes.get("mode simulated", plan.rule.mode) for o in attacked}
    if modes - {plan.rule.mode}:
        flags["mode_differs"] = (
            f"The attack simulates {' and '.join(sorted(modes))} mode, the client ran in {plan.rule.mode}."
        )
    if any("label order" in o.notes for o in attacked):
        flags["label_order_unknown"] = (
            "The order of the pictures in the client's mini-batches is unknown; the attack simulates one of its own."
        )
    of_class = torch.bincount(groups.labels[groups.distractors], minlength=len(groups.classes))
    mixed = int((of_class[groups.labels[groups.victims]] < FEWEST_OF_A_CLASS).sum())
    if mixed:
        flags["mixed_line_up"] = (
            f"{mixed} of {groups.victims.numel()} line-ups mix classes, as their class has too few pictures: knowing "
            "the class alone lifts the truth there. The swapped updates show by how much."
        )
    if lost := sorted({r.name for o in attacked for r in o.reached if r.failed}):
        flags["failed_members"] = f"Of the suite, {', '.join(lost)} failed where it should have come to a result."
    right = [o.score.labels_right for o in attacked if o.score]
    if right and statistics.mean(right) < 1:
        flags["labels_wrong"] = f"Inferred classes were right in {statistics.mean(right):.0%} of the cases."
    return flags


def tuning_flags(plan: Plan, setup: Setup) -> dict[str, str]:
    """Warnings about where the settings of a tuned attack come from."""
    if plan.tuned is None:
        return {}
    flags: dict[str, str] = {}
    if plan.tuned.column == "oracle-tuned":
        flags["oracle_tuned"] = (
            "The settings were chosen by looking at the truth of victims: an upper bound that no attacker reaches."
        )
    here, there = facts(plan, setup), plan.tuned.facts
    if differing := [name for name in here if name not in there or there[name] != here[name]]:
        flags["rehearsed_elsewhere"] = f"The settings were rehearsed where {', '.join(differing)} differed."
    return flags


def settings_of(plan: Plan) -> dict[str, Any]:
    """Where the attack's settings come from, for people and for machines."""
    typed = f"given, {str(plan.attack).partition(',')[2]}" if plan.attack.params else "default"
    found: dict[str, Any] = {"column": plan.column, "statement": str(plan.tuned or typed)}
    if plan.tuned is not None:
        names = ("budget", "clients", "objective", "score", "default")
        found |= {name: getattr(plan.tuned, name) for name in names}
    return found


def promised(plan: Plan) -> dict[str, Any] | None:
    """What the clients do to their updates and what it promises for one round; None where they do nothing."""
    rule, gaussian = plan.rule, defence_of(plan.rule.defence).gaussian
    if rule.defence == NONE:
        return None
    found: dict[str, Any] = {"specification": rule.defence, "epsilon": None, "delta": None}
    if gaussian is None or not gaussian.noise:
        return found | {"statement": f"{rule.defence}: no differential privacy"}
    delta = min(DELTA, 1 / plan.batch_size)
    steps = rule.epochs if defence_of(rule.defence).examples else 1
    try:
        value = epsilon(rule.defence, batch_size=1, dataset_size=1, rounds=steps, delta=delta)
    except BadSetting:
        told = f"epsilon unknown: {INSTALL}"
    else:
        found |= {"epsilon": value, "delta": delta}
        told = f"epsilon {value:.3g} at delta {delta:g} for {gaussian.unit}, in this one round"
    return found | {"statement": f"{rule.defence}: {told}"}


def suite_of(attacked: Sequence[Outcome]) -> dict[str, Any] | None:
    """What each attack of a suite reached over all clients; None where a single attack ran."""
    if not any(o.reached for o in attacked):
        return None
    members = []
    for name in dict.fromkeys(r.name for o in attacked for r in o.reached):
        of_name = [r for o in attacked for r in o.reached if r.name == name]
        ran = [r for r in of_name if r.ranks]
        ranks = [rank for r in ran for rank in r.ranks]
        members.append(
            {
                "name": name,
                "ran": len(ran),
                "failed": sum(r.failed for r in of_name),
                "won": sum(o.notes.get("won") == name for o in attacked),
                "why": next((r.note for r in of_name if r.note), ""),
                "term": statistics.median(r.term for r in ran) if ran else None,
                "first": sum(rank == 1 for rank in ranks),
                "pictures": len(ranks),
                "values": {m: statistics.fmean(v for r in ran for v in r.values[m]) for m in ran[0].values}
                if ran
                else {},
                "seconds": statistics.fmean(r.seconds for r in ran) if ran else None,
            }
        )
    return {"version": attacked[0].notes["suite"], "members": members}


def labels_of(plan: Plan, attacked: Sequence[Outcome]) -> dict[str, Any]:
    """Whether the classes were granted, an upper bound in this respect, or inferred, and how well."""
    source = {"known": "granted", "counts": "counts granted", "unknown": "inferred"}[plan.threat.labels]
    confidences = [c for o in attacked if isinstance(c := o.notes.get("label confidence"), float)]
    found = {
        "source": source,
        "rule": ", ".join(sorted({str(rule) for o in attacked if (rule := o.notes.get("labels"))})),
        "confidence": statistics.fmean(confidences) if confidences else None,
        "right": statistics.fmean(o.score.labels_right for o in attacked if o.score) if attacked else None,
    }
    if source != "inferred":
        statement = f"{source}: an upper bound for an attacker who does not know them"
    elif not attacked:
        statement = "to be inferred"
    else:
        sure = f", confidence {found['confidence']:.2f}" if confidences else ""
        statement = f"inferred by {found['rule']}{sure}, right in {found['right']:.0%}"
    return found | {"statement": statement}


def closed_forms(plan: Plan, setup: Setup) -> dict[str, Any]:
    """Which closed forms can read a layer, and one sentence for each with the reason."""
    findings = diagnose(setup.network, plan.batch_size, plan.rule)
    able = dict.fromkeys(f.attack for f in findings if f.qualifies)
    return {"qualify": list(able), "reasons": summary(findings)}


def _used(attacked: Sequence[Outcome]) -> list[str]:
    return sorted(frozenset[str]().union(*(o.used for o in attacked)))


def ledger(plan: Plan, attacked: Sequence[Outcome]) -> dict[str, Any]:
    """What was granted, and what the attack used."""
    threat, used = plan.threat, _used(attacked)
    return {
        "attacker": threat.letter,
        "attacker_used": letter_of(used),
        "granted": {
            fact: getattr(threat, fact) for fact in ("labels", "count", "rule", "buffers", "public", "known_pixels")
        },
        "used": used,
    }


def statement(plan: Plan, verdict: Verdict, clients: Sequence[Client], attacked: Sequence[Outcome]) -> str:
    """The verdict in plain words; "safe", "anonymous" and "private" are never among them."""
    what = {
        "inconclusive": "This audit does not show whether the update leaks",
        "none_found": "No reconstruction above the floors was found",
        "statistical": "The update tells pictures apart better than chance",
        "partial": "Pictures can be picked out of a line-up from the update alone",
        "visual": "Pictures can be recognised in what is recovered from the update",
        "exact": "Pictures are recovered almost pixel by pixel from the update",
    }[verdict.level]
    null = "Null audit: every update came from other pictures. " if plan.control == "swapped" else ""
    if plan.threat.known_pixels:
        null = f"{null}The server was given {plan.threat.known_pixels:.3g} of the true pixels. "
    if not clients:
        return f"{null}{what}."
    rate = line_up(clients).rank_one
    cost = attacks.build(plan.attack).cost
    starts = f"{cost.restarts} start{'s' if cost.restarts > 1 else ''}"
    told = [f"{cost.iterations} iterations", starts] if cost.iterations else []
    told += [f"suite {o.notes['suite']}" for o in attacked[:1] if "suite" in o.notes]
    told += [plan.column] if plan.tuned else []
    budget = f" ({', '.join(told)})" if told else ""
    return (
        f"{null}{what}: {plan.attack.name}{budget}, an attacker of kind {letter_of(_used(attacked))}, "
        f"n = {sum(len(client.ranks) for client in clients)}, first rank {rate.value:.0%} "
        f"(95 % interval {rate.low:.0%} to {rate.high:.0%})."
    )
