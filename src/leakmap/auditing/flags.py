"""The flags of an audit: sentences about what limits or qualifies its verdict."""

import math
import statistics
from collections.abc import Sequence

import torch

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.strongest import MEMBERS, member_specs
from leakmap.attacker.labels import UNREAD
from leakmap.auditing.prepare import facts
from leakmap.client.copies import CLOSE
from leakmap.client.groups import FEWEST_OF_A_CLASS, Groups
from leakmap.defences import NONE
from leakmap.plan.plan import Plan
from leakmap.result.clients import FailedRun
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Outcome
from leakmap.scoring.verdict import Verdict


def missing(unfinished: int, failures: Sequence[FailedRun]) -> dict[str, str]:
    """Flags of runs without a score, under which finding nothing is no evidence."""
    found: dict[str, str] = {}
    if unfinished:
        found["unfinished"] = f"{unfinished} runs are not finished; the same command continues."
    if failures:
        first = failures[0]
        found["failed_runs"] = f"{len(failures)} runs failed, the first with {first.kind}: {first.message}"
    return found


def pixels_known(share: float) -> str:
    """Why line-ups are no evidence where the server was given a share of the true pixels."""
    return (
        f"The server was given true pixels ({share:.3g} of them), as in a study of starts: line-ups and the planted "
        "control are no evidence; only the gain over the prior-only and swapped floors, which were given the same, is."
    )


def mixed_line_ups(groups: Groups) -> int:
    """How many line-ups mix classes, because the class of the true picture has too few others."""
    of_class = torch.bincount(groups.labels[groups.distractors], minlength=len(groups.classes))
    return int((of_class[groups.labels[groups.victims]] < FEWEST_OF_A_CLASS).sum())


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
    if missing_facts := _unfitted(plan, bool(groups.objects.numel())):
        flags["fitting_withheld"] = (
            f"{missing_facts} An attacker who has this may find more: the suite then also fits an inverse to simulated "
            "clients, and rehearses which of its attacks answers."
        )
    if close := int((groups.nearest[1] > CLOSE).sum()):
        flags["public_copy"] = (
            f"{close} of {groups.victims.numel()} pictures of clients have a public picture within {CLOSE:.0f} dB: "
            "what the server knew beforehand is no leak. Give public pictures of other subjects."
        )
    if mixed := mixed_line_ups(groups):
        flags["mixed_line_up"] = (
            f"{mixed} of {groups.victims.numel()} line-ups mix classes, as their class has too few pictures: knowing "
            "the class alone lifts the truth there. The swapped updates show by how much."
        )
    if lost := sorted({r.name for o in attacked for r in o.reached if r.failed}):
        flags["failed_members"] = f"Of the suite, {', '.join(lost)} failed where it should have come to a result."
    if places := next((o.score.places for o in attacked if o.score and o.score.places), ()):
        partial = len(places) < len(plan.rule.held_by(0, plan.batch_size))
        drop = "Such a partial step is left out by drop_last=True in the data loader. " if partial else ""
        flags["last_step"] = (
            f"Only the pictures of a client's last local step are answered for and judged: {len(places)} of "
            f"{plan.batch_size}. {drop}Buffers that stay on the client send nothing of it."
        )
    # An attack that reads no classes was not wrong about them.
    right = [o.score.labels_right for o in attacked if o.score and o.notes.get("labels", UNREAD) != UNREAD]
    if right and statistics.mean(right) < 1:
        flags["labels_wrong"] = f"Inferred classes were right in {statistics.mean(right):.0%} of the cases."
    return flags


def _unfitted(plan: Plan, objects: bool) -> str:
    """Which facts attacks of the suite lack that are fitted before any client answers, and how to grant them."""
    built = [attacks.build(spec) for spec in member_specs(plan.attack)] if plan.attack.name in MEMBERS else []
    # One that can be fitted is enough; else what the least demanding lacks.
    facts = min((one.needs - plan.threat.facts for one in built if one.fits), key=len, default=frozenset[str]())
    if not facts or objects:
        return ""
    if "public" not in facts:
        return f"The server is not granted: {', '.join(sorted(facts))}."
    spare = "--others" if plan.captured else "the spare pictures of --data, where it has more than the clients need"
    return f"The server holds no public pictures (--public auto takes them from {spare})."


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
