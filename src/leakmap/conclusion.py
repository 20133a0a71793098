"""From outcomes to the result: scores beside floors, flags, the ledger, the verdict."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leakmap import report
from leakmap.attacker.attacks import attacks
from leakmap.attacker.closed_form import diagnose, summary
from leakmap.client.groups import Groups
from leakmap.defences import NONE, defence_of
from leakmap.defences.accounting import INSTALL, epsilon
from leakmap.errors import BadSetting
from leakmap.gate import Gate
from leakmap.objects import unpack
from leakmap.plan import ROLES, Plan, command
from leakmap.preparation import Prepared, facts
from leakmap.scoring.lineup import FEWEST_OF_A_CLASS
from leakmap.scoring.metrics import ALWAYS
from leakmap.scoring.score import likenesses
from leakmap.scoring.verdict import Client, Evidence, Level, Verdict, gain_over_floors, judge, line_up
from leakmap.store import finite, write_json
from leakmap.threat import letter_of
from leakmap.trial import Outcome, Stage, Trial, held_by

RESULT_SCHEMA = 1
DELTA = 1e-5
"""Of differential privacy, unless a client has so many pictures that one over their number is less."""


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
    objects: Client | None = None
    swapped_objects: Client | None = None


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
    if plan.threat.hint:
        blocking |= {"hinted": _hinted(plan.threat.hint)}
        verdict = Verdict("inconclusive", tuple(blocking.values()))
    else:
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
        "objects": _objects(finished),
        "metrics": {name: asdict(gain_over_floors(clients, name)) for name in clients[0].scores} if clients else {},
        "settings": _settings(plan),
        "defence": _defence(plan),
        "suite": _suite(attacked),
        "labels": _labels(plan, attacked),
        "flags": blocking | _flags(plan, prepared.main.groups, verdict, attacked) | _tuning_flags(plan, prepared.main),
        "gate": gate.as_dict(),
        "closed_forms": _closed_forms(plan, prepared.main),
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
    of_still = {floor: likenesses(p, truth, (*ALWAYS, *plan.metrics)) for floor, p in still.items()}
    floors = {
        name: {
            "prior_only": prior_score.values[name],
            "swapped": swap_score.values[name],
            **{floor: values[name] for floor, values in of_still.items()},
        }
        for name in own_score.values
    }
    row = {
        "client": v,
        "classes": _told_classes(truth.y, prepared.main.groups.classes),
        "ranks": own_score.ranks,
        "galleries": own_score.galleries,
        "scores": own_score.values,
        "floors": floors,
        "swapped_ranks": swap_score.ranks,
        "object_ranks": own_score.object_ranks,
        "object_galleries": own_score.object_galleries,
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
        Client(own_score.object_ranks, own_score.object_galleries, {}),
        Client(swap_score.object_ranks, swap_score.object_galleries, {}),
    )


def _told_classes(y: Tensor, names: Sequence[str]) -> list[str]:
    """The class of each picture, or which objects it holds: ``2 person, dog``."""
    if y.ndim == 1:
        return [str(names[c]) for c in y.tolist()]
    found = []
    for own in y:
        counts = Counter(str(names[c]) for c in unpack(own[None])[1].tolist())
        found.append(", ".join(f"{n} {name}" if n > 1 else name for name, n in counts.items()))
    return found


def _objects(finished: Sequence[_Finished]) -> dict[str, Any] | None:
    """The line-ups of crops of the objects; None where nothing was detected, or no object is large enough."""
    own = [client for f in finished if (client := f.objects) is not None and client.ranks]
    if not own:
        return None
    swapped = [client for f in finished if (client := f.swapped_objects) is not None and client.ranks]
    return {"attack": _line_up(own), "swapped": _line_up(swapped)}


def _hinted(share: float) -> str:
    return (
        f"The server was given true pixels ({share:.3g} of them), as in a study of starts: line-ups and the planted "
        "control are no evidence; only the gain over the prior-only and swapped floors, which were given the same, is."
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


def _tuning_flags(plan: Plan, stage: Stage) -> dict[str, str]:
    if plan.tuned is None:
        return {}
    flags: dict[str, str] = {}
    if plan.tuned.column == "oracle-tuned":
        flags["oracle_tuned"] = (
            "The settings were chosen by looking at the truth of victims: an upper bound that no attacker reaches."
        )
    here, there = facts(plan, stage), plan.tuned.facts
    if differing := [name for name in here if name not in there or there[name] != here[name]]:
        flags["rehearsed_elsewhere"] = f"The settings were rehearsed where {', '.join(differing)} differed."
    return flags


def _settings(plan: Plan) -> dict[str, Any]:
    """Where the attack's settings come from, for people and for machines."""
    typed = f"given, {str(plan.attack).partition(',')[2]}" if plan.attack.params else "default"
    found: dict[str, Any] = {"column": plan.column, "statement": str(plan.tuned or typed)}
    if plan.tuned is not None:
        names = ("budget", "clients", "objective", "score", "default")
        found |= {name: getattr(plan.tuned, name) for name in names}
    return found


def _defence(plan: Plan) -> dict[str, Any] | None:
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


def _suite(attacked: Sequence[Outcome]) -> dict[str, Any] | None:
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


def _labels(plan: Plan, attacked: Sequence[Outcome]) -> dict[str, Any]:
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


def _closed_forms(plan: Plan, stage: Stage) -> dict[str, Any]:
    """Which closed forms can read a layer, and one sentence for each with the reason."""
    findings = diagnose(stage.network, plan.batch_size, plan.rule)
    able = dict.fromkeys(f.attack for f in findings if f.qualifies)
    return {"qualify": list(able), "reasons": summary(findings)}


def _used(attacked: Sequence[Outcome]) -> list[str]:
    return sorted({fact for o in attacked for fact in str(o.notes.get("used", "")).split(", ") if fact})


def _ledger(plan: Plan, attacked: Sequence[Outcome]) -> dict[str, Any]:
    """What was granted, and what the attack used."""
    threat, used = plan.threat, _used(attacked)
    return {
        "attacker": threat.letter,
        "attacker_used": letter_of(used),
        "granted": {fact: getattr(threat, fact) for fact in ("labels", "count", "rule", "buffers", "public", "hint")},
        "used": used,
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
    if plan.threat.hint:
        null = f"{null}The server was given {plan.threat.hint:.3g} of the true pixels. "
    if not clients:
        return f"{null}{what}."
    rate = line_up(clients).rank_one
    runner = attacks.build(plan.attack)
    steps, restarts = getattr(runner, "steps", None), getattr(runner, "restarts", 1)
    told = [f"{steps} iterations", f"{restarts} start{'s' if restarts > 1 else ''}"] if steps else []
    told += [f"suite {o.notes['suite']}" for o in attacked[:1] if "suite" in o.notes]
    told += [plan.column] if plan.tuned else []
    budget = f" ({', '.join(told)})" if told else ""
    return (
        f"{null}{what}: {plan.attack.name}{budget}, an attacker of kind {letter_of(_used(attacked))}, "
        f"n = {sum(len(client.ranks) for client in clients)}, first rank {rate.value:.0%} "
        f"(95 % interval {rate.low:.0%} to {rate.high:.0%})."
    )
