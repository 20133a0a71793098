"""From outcomes to the result: scores beside floors, flags, the ledger, the verdict."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leakmap import report
from leakmap.attacker.attacks import attacks
from leakmap.client.groups import Groups
from leakmap.gate import Gate
from leakmap.plan import ROLES, Plan, Prepared, command
from leakmap.registry import Spec
from leakmap.scoring.lineup import FEWEST_OF_A_CLASS
from leakmap.scoring.metrics import ALWAYS
from leakmap.scoring.score import likenesses
from leakmap.scoring.verdict import Client, Evidence, Level, Verdict, gain_over_floors, judge, line_up
from leakmap.store import finite, write_json
from leakmap.threat import letter_of
from leakmap.trial import Outcome, Trial, held_by

RESULT_SCHEMA = 1


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        result: The content of ``result.json``; see docs/result.md.
        rows: For each client, named pictures ``(N, C, H, W)`` in [0, 1]: the original first, then the reconstruction
            and the floors.
    """

    result: dict[str, Any]
    rows: list[dict[str, Tensor]]

    @property
    def level(self) -> Level:
        """The verdict's level."""
        return self.result["verdict"]["level"]

    def save(self, folder: Path | str) -> Path:
        """Writes ``result.json`` and the self-contained ``report.html``; returns the path of the report."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "result.json", self.result)
        return report.write(folder / "report.html", [report.Section(self.result, self.rows)])


@dataclass(frozen=True)
class _Finished:
    """A client all of whose runs finished: its numbers, pictures and row of the table."""

    judged: Client
    swapped: Client
    pictures: dict[str, Tensor]
    row: dict[str, Any]
    attacked: Outcome


def conclude(
    plan: Plan,
    prepared: Prepared,
    gate: Gate,
    planned: Mapping[str, list[Trial]],
    outcomes: Mapping[str, Outcome],
    seconds: float,
    resumed: int = 0,
) -> Audit:
    """Scores beside floors, the verdict, and everything that result.json and the report hold.

    Args:
        plan: The audit.
        prepared: Its stages.
        gate: What the update depends on.
        planned: Every run, by role.
        outcomes: Finished runs, by key.
        seconds: Wall time of this call.
        resumed: Runs that were found finished.
    """
    per_client = [_client(plan, prepared, planned, outcomes, v) for v in range(plan.victims)]
    finished = [found for found in per_client if isinstance(found, _Finished)]
    clients, swapped = [f.judged for f in finished], [f.swapped for f in finished]
    attacked = [f.attacked for f in finished]
    control = [
        Client(o.score.ranks, o.score.galleries, o.score.values)
        for o in (outcomes.get(trial.key) for trial in planned["control"])
        if o is not None and o.score is not None
    ]
    unfinished = sum(trial.key not in outcomes for of_role in planned.values() for trial in of_role)
    failures = [
        {"role": role, "client": trial.client, "kind": o.failure[0], "message": o.failure[1]}
        for role in ROLES
        for trial in planned[role]
        if (o := outcomes.get(trial.key)) is not None and o.failure
    ]
    blocking = gate.flags() | _missing(unfinished, failures)
    verdict = judge(Evidence(clients, swapped, control, blocking))
    sizes = [size for client in clients for size in client.galleries]
    result = {
        "schema": RESULT_SCHEMA,
        "verdict": {
            "level": verdict.level,
            "reasons": verdict.reasons,
            "statement": _statement(plan, verdict, clients, attacked),
        },
        "line_up": {
            "gallery": [min(sizes), max(sizes)] if sizes else None,
            "attack": _line_up(clients),
            "swapped": _line_up(swapped),
            "control": _line_up(control),
        },
        "metrics": {name: asdict(gain_over_floors(clients, name)) for name in _names(plan)} if clients else {},
        "flags": blocking | _flags(plan, prepared.main.groups, verdict, attacked),
        "gate": gate.as_dict(),
        "knowledge": _ledger(plan, attacked),
        "clients": [found.row if isinstance(found, _Finished) else found for found in per_client],
        "failures": failures,
        "unfinished": unfinished,
        "pictures": prepared.main.groups.counts(),
        "accuracy": prepared.accuracy,
        "plan": asdict(plan),
        "command": command(plan),
        "control_model": str(prepared.control.network.model),
        "seconds": seconds,
        "seconds_of_runs": sum(o.seconds for o in outcomes.values()),
        "resumed_runs": resumed,
        "versions": next((o.versions for o in outcomes.values()), {}),
    }
    return Audit(finite(result), [found.pictures for found in finished])


def _names(plan: Plan) -> list[str]:
    return [Spec.parse(name).name for name in (*ALWAYS, *plan.metrics)]


def _client(
    plan: Plan, prepared: Prepared, planned: Mapping[str, list[Trial]], outcomes: Mapping[str, Outcome], v: int
) -> _Finished | dict[str, Any]:
    """One client; no score without its floors, so a row with its failure where a run of it is missing or failed."""
    runs = [outcomes.get(planned[role][v].key) for role in ("attack", "swapped", "prior_only")]
    scored = [o for o in runs if o is not None and o.score is not None]
    if len(scored) < len(runs):
        failed = [": ".join(o.failure) for o in runs if o is not None and o.failure]
        return {"client": v, "failure": failed[0] if failed else "not finished"}
    own = scored[0]
    own_score, swap_score, prior_score = (o.score for o in scored if o.score is not None)
    truth = held_by(planned["attack"][v], prepared.main)
    still = _stills(truth.pictures, prepared.main.groups)
    of_still = {floor: likenesses(p, truth.pictures, (*ALWAYS, *plan.metrics)) for floor, p in still.items()}
    floors = {
        name: {
            "prior_only": prior_score.values[name],
            "swapped": swap_score.values[name],
            **{floor: values[name] for floor, values in of_still.items()},
        }
        for name in _names(plan)
    }
    row = {
        "client": v,
        "classes": [prepared.main.groups.classes[c] for c in truth.y],
        "ranks": own_score.ranks,
        "galleries": own_score.galleries,
        "scores": own_score.values,
        "floors": floors,
        "swapped_ranks": swap_score.ranks,
        "labels_right": own_score.labels_right,
        "objective": own.objective,
        "curve": own.curve,
        "seconds": own.seconds,
        "notes": own.notes,
    }
    pictures = {
        "original": truth.pictures,
        "reconstruction": own_score.pictures,
        "prior only": prior_score.pictures,
        "swapped update": swap_score.pictures,
        "mean picture": still["mean_picture"],
        "nearest public": still["nearest_public"],
    }
    return _Finished(
        Client(own_score.ranks, own_score.galleries, own_score.values, floors),
        Client(swap_score.ranks, swap_score.galleries, swap_score.values),
        pictures,
        row,
        own,
    )


def _missing(unfinished: int, failures: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    if unfinished:
        found["unfinished"] = f"{unfinished} runs are not finished; the same command continues."
    if failures:
        first = failures[0]
        found["failed_runs"] = f"{len(failures)} runs failed, the first with {first['kind']}: {first['message']}"
    return found


def _stills(truth: Tensor, groups: Groups) -> dict[str, Tensor]:
    """Floors that need no run: the mean public picture, and the public picture nearest to each original."""
    public = groups.pictures(groups.public)
    nearest = torch.cdist(truth.flatten(1), public.flatten(1)).argmin(1)
    return {"mean_picture": public.mean(0, keepdim=True).expand_as(truth), "nearest_public": public[nearest]}


def _line_up(clients: Sequence[Client]) -> dict[str, Any] | None:
    if not clients:
        return None
    found = line_up(clients)
    return {**asdict(found), "above_chance": found.above_chance}


def _flags(plan: Plan, groups: Groups, verdict: Verdict, attacked: Sequence[Outcome]) -> dict[str, str]:
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
            flags["matched_without_likeness"] = (
                f"The update is matched (median {final:.2g}) by pictures that are unlike the originals."
            )
    modes = {o.notes.get("mode simulated", plan.rule.mode) for o in attacked}
    if modes - {plan.rule.mode}:
        flags["mode_differs"] = (
            f"The attack simulates {' and '.join(sorted(modes))} mode, the client ran in {plan.rule.mode}."
        )
    if any("label order" in o.notes for o in attacked):
        flags["label_order_unknown"] = (
            "The order of the classes in the client's mini-batches is unknown; the attack simulates a sorted one."
        )
    of_class = torch.bincount(groups.labels[groups.distractors], minlength=len(groups.classes))
    mixed = int((of_class[groups.labels[groups.victims]] < FEWEST_OF_A_CLASS).sum())
    if mixed:
        flags["mixed_line_up"] = (
            f"{mixed} of {groups.victims.numel()} line-ups mix classes, as their class has too few pictures: knowing "
            "the class alone lifts the truth there. The swapped updates show by how much."
        )
    right = [o.score.labels_right for o in attacked if o.score]
    if right and statistics.mean(right) < 1:
        flags["labels_wrong"] = f"Inferred classes were right in {statistics.mean(right):.0%} of the cases."
    return flags


def _used(attacked: Sequence[Outcome]) -> list[str]:
    return sorted({fact for o in attacked for fact in str(o.notes.get("used", "")).split(", ") if fact})


def _ledger(plan: Plan, attacked: Sequence[Outcome]) -> dict[str, Any]:
    """What was granted, what the attack used, and what it inferred, how well."""
    threat, used = plan.threat, _used(attacked)
    inferred = {}
    if right := [o.score.labels_right for o in attacked if o.score and threat.labels != "known"]:
        rules = sorted({str(o.notes.get("labels", "")) for o in attacked})
        inferred["labels"] = {"rule": ", ".join(rules), "right": statistics.mean(right)}
    return {
        "attacker": threat.letter,
        "attacker_used": letter_of(used),
        "granted": {fact: getattr(threat, fact) for fact in ("labels", "count", "rule", "buffers", "public")},
        "used": used,
        "inferred": inferred,
    }


def _statement(plan: Plan, verdict: Verdict, clients: Sequence[Client], attacked: Sequence[Outcome]) -> str:
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
    if not clients:
        return f"{null}{what}."
    rate = line_up(clients).rank_one
    runner = attacks.build(plan.attack)
    steps, restarts = getattr(runner, "steps", None), getattr(runner, "restarts", 1)
    budget = f" ({steps} iterations, {restarts} start{'s' if restarts > 1 else ''})" if steps else ""
    return (
        f"{null}{what}: {plan.attack.name}{budget}, an attacker of kind {letter_of(_used(attacked))}, "
        f"n = {sum(len(client.ranks) for client in clients)}, first rank {rate.value:.0%} "
        f"(95 % interval {rate.low:.0%} to {rate.high:.0%})."
    )
