"""From outcomes to the result: scores beside floors, flags, the ledger, the verdict."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from leakmap import report
from leakmap.auditing.flags import flags_of, missing, pixels_known, tuning_flags
from leakmap.auditing.ledger import knowledge_of, labels_of, used_by
from leakmap.auditing.method import closed_forms, promised, settings_of, suite_of
from leakmap.auditing.prepare import Prepared
from leakmap.auditing.recipe import ROLES
from leakmap.auditing.update_check import UpdateCheck
from leakmap.auditing.words import statement
from leakmap.client.groups import Groups
from leakmap.files import write_text
from leakmap.plan.command import command
from leakmap.plan.plan import Plan
from leakmap.problem.objects import unpack
from leakmap.result.parts import (
    FailedRun,
    FinishedClient,
    GainResult,
    LineUpResult,
    LineUps,
    LostClient,
    ObjectLineUps,
    UpdateCheckResult,
    VerdictResult,
)
from leakmap.result.result import Result
from leakmap.runs.run import held_by
from leakmap.runs.trial import Outcome, Trial
from leakmap.scoring.metrics import ALWAYS
from leakmap.scoring.score import metric_values
from leakmap.scoring.verdict import Client, Evidence, Level, Verdict, gain_over_floors, judge, line_up


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        result: The content of ``result.json``; see docs/result.md.
        rows: For each client, named pictures ``(N, C, H, W)`` in [0, 1]: the original first, then the reconstruction
            and the floors.
    """

    result: Result
    rows: list[dict[str, Tensor]]

    @property
    def level(self) -> Level:
        """The verdict's level."""
        return self.result.verdict.level

    def save(self, folder: Path | str) -> Path:
        """Writes ``result.json`` and the self-contained ``report.html``; returns the path of the report."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "result.json", self.result.as_json() + "\n")
        return report.write(folder / "report.html", [report.Section(self.result, self.rows)])


@dataclass(frozen=True)
class _Finished:
    """A client all of whose runs finished: its numbers, pictures and row of the table."""

    judged: Client
    swapped: Client
    pictures: dict[str, Tensor]
    row: FinishedClient
    attacked: Outcome
    objects: Client | None = None
    swapped_objects: Client | None = None


def conclude(
    plan: Plan,
    prepared: Prepared,
    check: UpdateCheck,
    planned: Mapping[str, list[Trial]],
    outcomes: Mapping[str, Outcome],
    seconds: float,
    resumed: int = 0,
) -> Audit:
    """Scores beside floors, the verdict, and everything that result.json and the report hold.

    Args:
        plan: The audit.
        prepared: Its setups.
        check: What the update depends on.
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
    failures = _failures(planned, outcomes)
    blocking = check.flags() | missing(unfinished, failures) | dict(prepared.flags)
    if plan.threat.known_pixels:
        blocking |= {"known_pixels": pixels_known(plan.threat.known_pixels)}
        verdict = Verdict("inconclusive", tuple(blocking.values()))
    else:
        verdict = judge(Evidence(clients, swapped, control, blocking))
    result = Result(
        verdict=VerdictResult(
            level=verdict.level, reasons=verdict.reasons, statement=statement(plan, verdict, clients, attacked)
        ),
        line_up=line_ups(clients, swapped, control),
        objects=_objects(finished),
        metrics=gains(clients),
        settings=settings_of(plan),
        defence=promised(plan),
        suite=suite_of(attacked),
        labels=labels_of(plan, attacked),
        flags=blocking | flags_of(plan, prepared.main.groups, verdict, attacked) | tuning_flags(plan, prepared.main),
        update_check=UpdateCheckResult.model_validate(check),
        closed_forms=closed_forms(plan, prepared.main),
        knowledge=knowledge_of(plan, attacked),
        clients=tuple(found.row if isinstance(found, _Finished) else found for found in per_client),
        failures=failures,
        unfinished=unfinished,
        pictures=prepared.main.groups.counts(),
        accuracy=prepared.accuracy,
        plan=plan,
        command=command(plan),
        control_model=str(prepared.control.network.model),
        seconds=seconds,
        seconds_of_runs=sum(o.seconds for o in outcomes.values()),
        resumed_runs=resumed,
        versions=next((o.versions for o in outcomes.values()), {}),
    )
    return Audit(result, [found.pictures for found in finished])


def _client(
    plan: Plan, prepared: Prepared, planned: Mapping[str, list[Trial]], outcomes: Mapping[str, Outcome], v: int
) -> _Finished | LostClient:
    """One client; no score without its floors, so a row with its failure where a run of it is missing or failed."""
    runs = [outcomes.get(planned[role][v].key) for role in ("attack", "swapped", "prior_only")]
    scored = [o for o in runs if o is not None and o.score is not None]
    if len(scored) < len(runs):
        failed = [": ".join(o.failure) for o in runs if o is not None and o.failure]
        return LostClient(client=v, failure=failed[0] if failed else "not finished")
    own = scored[0]
    own_score, swap_score, prior_score = (o.score for o in scored if o.score is not None)
    truth = held_by(planned["attack"][v], prepared.main)
    still = _stills(truth.pictures, prepared.main.groups)
    of_still = {floor: metric_values(p, truth, (*ALWAYS, *plan.metrics)) for floor, p in still.items()}
    floors = {
        name: {
            "prior_only": prior_score.values[name],
            "swapped": swap_score.values[name],
            **{floor: values[name] for floor, values in of_still.items()},
        }
        for name in own_score.values
    }
    row = FinishedClient(
        client=v,
        classes=tuple(_told_classes(truth.y, prepared.main.groups.classes)),
        ranks=own_score.ranks,
        galleries=own_score.galleries,
        scores=own_score.values,
        floors=floors,
        swapped_ranks=swap_score.ranks,
        object_ranks=own_score.object_ranks,
        object_galleries=own_score.object_galleries,
        labels_right=own_score.labels_right,
        objective=own.objective,
        curve=own.curve,
        seconds=own.seconds,
        used=used_by([own]),
        notes=own.notes,
    )
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


def _failures(planned: Mapping[str, list[Trial]], outcomes: Mapping[str, Outcome]) -> tuple[FailedRun, ...]:
    return tuple(
        FailedRun(role=role, client=trial.client, kind=o.failure[0], message=o.failure[1])
        for role in ROLES
        for trial in planned[role]
        if (o := outcomes.get(trial.key)) is not None and o.failure
    )


def line_ups(clients: Sequence[Client], swapped: Sequence[Client], control: Sequence[Client]) -> LineUps:
    """The line-ups of the attack, of the same attack on swapped updates, and of the planted control."""
    sizes = [size for client in clients for size in client.galleries]
    return LineUps(
        gallery=(min(sizes), max(sizes)) if sizes else None,
        attack=_line_up(clients),
        swapped=_line_up(swapped),
        control=_line_up(control),
    )


def gains(clients: Sequence[Client]) -> dict[str, GainResult]:
    """Every metric beside its floors; empty without a client."""
    metrics = clients[0].scores if clients else ()
    return {name: GainResult.model_validate(gain_over_floors(clients, name)) for name in metrics}


def _objects(finished: Sequence[_Finished]) -> ObjectLineUps | None:
    """The line-ups of crops of the objects; None where nothing was detected, or no object is large enough."""
    own = [client for f in finished if (client := f.objects) is not None and client.ranks]
    if not own:
        return None
    swapped = [client for f in finished if (client := f.swapped_objects) is not None and client.ranks]
    return ObjectLineUps(attack=_line_up(own), swapped=_line_up(swapped))


def _stills(truth: Tensor, groups: Groups) -> dict[str, Tensor]:
    """Floors that need no run: the mean public picture, and the public picture nearest to each original."""
    public = groups.pictures(groups.public)
    nearest = torch.cdist(truth.flatten(1), public.flatten(1)).argmin(1)
    return {"mean_picture": public.mean(0, keepdim=True).expand_as(truth), "nearest_public": public[nearest]}


def _line_up(clients: Sequence[Client]) -> LineUpResult | None:
    return LineUpResult.model_validate(line_up(clients)) if clients else None
