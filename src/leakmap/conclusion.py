"""From outcomes to the result: scores beside floors, flags, the ledger, the verdict."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leakmap import report
from leakmap.client.groups import Groups
from leakmap.gate import Gate
from leakmap.plan import ROLES, Plan, Prepared, command
from leakmap.registry import Spec
from leakmap.scoring.metrics import ALWAYS
from leakmap.scoring.score import likenesses
from leakmap.scoring.verdict import Client, Evidence, Level, Verdict, gain_over_floors, judge, line_up
from leakmap.store import finite, write_json
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


def conclude(
    plan: Plan,
    prepared: Prepared,
    gate: Gate,
    planned: Mapping[str, list[Trial]],
    outcomes: Mapping[str, Outcome],
    seconds: float,
    resumed: int = 0,
) -> Audit:
    """Scores beside floors, the verdict, and everything that result.json and the report hold."""
    names = [Spec.parse(name).name for name in (*ALWAYS, *plan.metrics)]
    clients: list[Client] = []
    swapped: list[Client] = []
    rows: list[dict[str, Tensor]] = []
    table: list[dict[str, Any]] = []
    attacked: list[Outcome] = []
    for v in range(plan.victims):
        own, swap, prior = (outcomes.get(planned[role][v].key) for role in ("attack", "swapped", "prior_only"))
        row: dict[str, Any] = {"client": v}
        if own is not None and own.failure:
            row["failure"] = ": ".join(own.failure)
        if own is None or swap is None or prior is None or not (own.score and swap.score and prior.score):
            row.setdefault("failure", "not finished" if own is None or own.score else "")
            table.append(row)
            continue
        truth = held_by(planned["attack"][v], prepared.main).pictures
        still = _stills(truth, prepared.main.groups)
        floors = {
            name: {
                "prior_only": prior.score.values[name],
                "swapped": swap.score.values[name],
                **{floor: likenesses(pictures, truth, (spec,))[name] for floor, pictures in still.items()},
            }
            for name, spec in zip(names, (*ALWAYS, *plan.metrics), strict=True)
        }
        clients.append(Client(own.score.ranks, own.score.gallery, own.score.values, floors))
        swapped.append(Client(swap.score.ranks, swap.score.gallery, swap.score.values))
        attacked.append(own)
        rows.append(
            {
                "original": truth,
                "reconstruction": own.score.pictures,
                "prior only": prior.score.pictures,
                "swapped update": swap.score.pictures,
                "mean picture": still["mean_picture"],
                "nearest public": still["nearest_public"],
            }
        )
        table.append(
            row
            | {
                "classes": [prepared.main.groups.classes[c] for c in held_by(planned["attack"][v], prepared.main).y],
                "ranks": own.score.ranks,
                "gallery": own.score.gallery,
                "scores": own.score.values,
                "floors": floors,
                "swapped_ranks": swap.score.ranks,
                "labels_right": own.score.labels_right,
                "objective": own.objective,
                "curve": own.curve,
                "seconds": own.seconds,
                "notes": own.notes,
            }
        )
    control = [
        Client(o.score.ranks, o.score.gallery, o.score.values)
        for o in (outcomes.get(trial.key) for trial in planned["control"])
        if o is not None and o.score is not None
    ]
    unfinished = sum(trial.key not in outcomes for trials in planned.values() for trial in trials)
    failures = [
        {"role": role, "client": trial.client, "kind": o.failure[0], "message": o.failure[1]}
        for role in ROLES
        for trial in planned[role]
        if (o := outcomes.get(trial.key)) is not None and o.failure
    ]
    blocking = gate.flags()
    if unfinished:
        blocking["unfinished"] = f"{unfinished} runs are not finished; the same command continues."
    for failure in failures[:1]:
        blocking["failed_runs"] = f"{len(failures)} runs failed, the first with {failure['kind']}: {failure['message']}"
    verdict = judge(Evidence(clients, swapped, control, blocking, len(failures)))
    flags = blocking | _flags(plan, verdict, attacked)
    result = {
        "schema": RESULT_SCHEMA,
        "verdict": {
            "level": verdict.level,
            "reasons": verdict.reasons,
            "statement": _statement(plan, verdict, clients),
        },
        "line_up": {
            "gallery": [min(sizes), max(sizes)] if (sizes := [c.gallery for c in clients]) else None,
            "attack": _line_up(clients),
            "swapped": _line_up(swapped),
            "control": _line_up(control),
        },
        "metrics": {name: _gain(clients, name) for name in names} if clients else {},
        "flags": flags,
        "gate": gate.as_dict(),
        "knowledge": _ledger(plan, attacked),
        "clients": table,
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
    return Audit(finite(result), rows)


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


def _gain(clients: Sequence[Client], metric: str) -> dict[str, Any]:
    found = gain_over_floors(clients, metric)
    return {**asdict(found), "floors": dict(found.floors)}


def _flags(plan: Plan, verdict: Verdict, attacked: Sequence[Outcome]) -> dict[str, str]:
    """Warnings that do not decide the verdict."""
    flags: dict[str, str] = {}
    curves = [o.curve for o in attacked if len(o.curve) >= 20]
    if curves:
        left = statistics.median(min(curve) / max(curve[0], 1e-30) for curve in curves)
        if left > 0.9:
            flags["matching_not_reduced"] = f"The matching term only fell to {left:.0%} of its start (median)."
        tail = statistics.median(1 - min(c) / max(min(c[: -len(c) // 10]), 1e-30) for c in curves)
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
    right = [o.score.labels_right for o in attacked if o.score]
    if right and statistics.mean(right) < 1:
        flags["labels_wrong"] = f"Inferred classes were right in {statistics.mean(right):.0%} of the cases."
    return flags


def _ledger(plan: Plan, attacked: Sequence[Outcome]) -> dict[str, Any]:
    """What was granted, what the attack used, and what it inferred, how well."""
    threat, notes = plan.threat, [o.notes for o in attacked]
    used = {fact for note in notes for fact in str(note.get("used", "")).split(", ") if fact}
    right = [o.score.labels_right for o in attacked if o.score]
    facts: dict[str, Any] = {
        "labels": threat.labels,
        "count": threat.count,
        "rule": threat.rule,
        "buffers": threat.buffers,
        "public": threat.public,
    }
    inferred = {}
    if threat.labels != "known" and right:
        rules = sorted({str(note.get("labels", "")) for note in notes})
        inferred["labels"] = {"rule": ", ".join(rules), "right": statistics.mean(right)}
    return {"attacker": threat.letter, "granted": facts, "used": sorted(used), "inferred": inferred}


def _statement(plan: Plan, verdict: Verdict, clients: Sequence[Client]) -> str:
    """The verdict in plain words; "safe", "anonymous" and "private" are never among them."""
    n = sum(len(client.ranks) for client in clients)
    knowledge = f"an attacker of kind {plan.threat.letter} (labels {plan.threat.labels}) with {plan.attack}"
    what = {
        "inconclusive": "This audit does not show whether the update leaks.",
        "none_found": f"No reconstruction above the floor was found by {knowledge}, n = {n}.",
        "statistical": f"The update tells pictures apart better than chance, by {knowledge}, n = {n}.",
        "partial": f"Pictures can be picked out of a line-up from the update alone, by {knowledge}, n = {n}.",
        "visual": f"Pictures can be recognised in what is recovered from the update, by {knowledge}, n = {n}.",
        "exact": f"Pictures are recovered almost pixel by pixel from the update, by {knowledge}, n = {n}.",
    }[verdict.level]
    null = "Null audit: every update came from other pictures. " if plan.control == "swapped" else ""
    return null + what
