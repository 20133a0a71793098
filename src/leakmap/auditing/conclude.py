"""From outcomes to the result: scores beside floors, flags, the ledger, the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from leakmap.auditing.bars import bars_of, held, with_bars
from leakmap.auditing.ceilings import ceiling_of
from leakmap.auditing.flags import flags_of, missing, mixed_line_ups, pixels_known, tuning_flags
from leakmap.auditing.found import Audit
from leakmap.auditing.ledger import knowledge_of, labels_of, used_by
from leakmap.auditing.method import closed_forms, promised, settings_of, suite_of
from leakmap.auditing.prepare import Prepared
from leakmap.auditing.recipe import ROLES
from leakmap.auditing.update_check import degenerate
from leakmap.auditing.words import statement, told_labels, typical, what_leaks, worst
from leakmap.client.groups import Groups
from leakmap.client.simulate import Batch
from leakmap.errors import NotApplicable
from leakmap.plan.command import command
from leakmap.plan.plan import Plan
from leakmap.result.clients import FailedRun, FinishedClient, LostClient
from leakmap.result.evidence import (
    BandsResult,
    CopiesResult,
    ExposedPicture,
    ExposureResult,
    GainResult,
    LineUpResult,
    LineUps,
    ObjectLineUps,
    VerdictResult,
)
from leakmap.result.method import UpdateCheck
from leakmap.result.part import Rate
from leakmap.result.result import Result
from leakmap.runs.run import chosen_for, distractors_for, held_by, places_of
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Outcome, Trial
from leakmap.scoring.bands import BANDS
from leakmap.scoring.exposure import clients_exposed, exposed
from leakmap.scoring.metrics import ALWAYS
from leakmap.scoring.score import Score, metric_values
from leakmap.scoring.verdict import BROKEN, Client, Evidence, Pose, gain_over_floors, judge, line_up

FLOORS = ("swapped", "prior_only")
"""Roles that are floors of the attack."""


@dataclass(frozen=True)
class _Finished:
    """A client all of whose runs finished: its numbers, pictures and row of the table.

    ``deranged`` is its reconstruction in the line-ups of the next client, ``places`` which pictures are scored; empty:
    all.
    """

    judged: Client
    swapped: Client
    deranged: Client | None
    pictures: dict[str, Tensor]
    row: FinishedClient
    attacked: Outcome
    objects: Client | None = None
    swapped_objects: Client | None = None
    places: tuple[int, ...] = ()


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
    clients = _with_bars(finished, prepared.main, planned["attack"])
    swapped = [f.swapped for f in finished]
    deranged = [f.deranged for f in finished if f.deranged is not None]
    attacked = [f.attacked for f in finished]
    control = [
        Client(
            o.score.ranks,
            o.score.galleries,
            o.score.values,
            distractors=chosen_for(trial, prepared.control, o.score.places),
        )
        for trial in planned["control"]
        if (o := outcomes.get(trial.key)) is not None and o.score is not None
    ]
    unfinished = sum(trial.key not in outcomes for of_role in planned.values() for trial in of_role)
    failures = _failures(planned, outcomes)
    void = dict(prepared.flags)
    if plan.threat.known_pixels:
        void |= {"known_pixels": pixels_known(plan.threat.known_pixels)}
    blocking = degenerate(check) | missing(unfinished, failures)
    mixed = bool(mixed_line_ups(prepared.main.groups))
    numbers = [found.row.client for found in finished]
    by_number = dict(zip(numbers, clients, strict=True))
    ceiling = ceiling_of(plan, prepared.main, planned, outcomes, by_number, (swapped, deranged))
    broken = () if void else ceiling.broken
    verdict = judge(Evidence(clients, swapped, control, deranged, void, blocking, mixed, broken))
    result = Result(
        verdict=VerdictResult(
            level=verdict.level,
            rule=verdict.rule,
            reasons=verdict.reasons,
            statement=statement(plan, verdict, clients, attacked),
            worst=worst(clients, numbers),
            typical=typical(clients),
        ),
        exposure=exposure_of(clients, numbers),
        line_up=line_ups(clients, swapped, deranged, control),
        ceiling=ceiling,
        bands=bands_of(clients),
        objects=_objects(finished),
        metrics=gains(clients),
        settings=settings_of(plan),
        defence=promised(plan),
        suite=suite_of(attacked),
        labels=labels_of(plan, attacked),
        flags=void
        | ({BROKEN: " ".join(broken)} if broken else {})
        | blocking
        | flags_of(plan, prepared.main.groups, verdict, attacked)
        | tuning_flags(plan, prepared.main),
        update_check=check,
        closed_forms=closed_forms(plan, prepared.main),
        knowledge=knowledge_of(plan, prepared.main.groups, attacked),
        clients=tuple(found.row if isinstance(found, _Finished) else found for found in per_client),
        failures=failures,
        unfinished=unfinished,
        pictures=prepared.main.groups.counts(),
        copies=None if (merged := prepared.main.groups.merged) is None else CopiesResult.model_validate(merged),
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
    own, *floor_runs = (outcomes.get(planned[role][v].key) for role in ("attack", "swapped", "prior_only"))
    lost = [o for o in floor_runs if o is None or (o.score is None and not does_not_apply(o))]
    if own is None or own.score is None or lost:
        failed = [": ".join(o.failure) for o in (own, *lost) if o is not None and o.failure]
        return LostClient(client=v, failure=failed[0] if failed else "not finished")
    own_score = own.score
    swap_score, prior_score = (None if o is None else o.score for o in floor_runs)
    trial, places = planned["attack"][v], own_score.places
    if any(floor is not None and floor.places != places for floor in (swap_score, prior_score)):
        return LostClient(client=v, failure="its floors speak of other pictures of the client than the attack does")
    other_trial = planned["attack"][(v + 1) % plan.victims]
    truth, chosen = held_by(trial, prepared.main, places), chosen_for(trial, prepared.main, places)
    still = stills(prepared.main.groups, v, places)
    of_still = {floor: metric_values(p, truth, (*ALWAYS, *plan.metrics)) for floor, p in still.items()}
    other = _of_other_client(plan, planned["attack"], outcomes, v, truth)
    floors = {
        name: {
            "prior_only": prior_score and prior_score.values[name],
            "swapped": swap_score and swap_score.values[name],
            "other_client": other and other[name],
            **{floor: values[name] for floor, values in of_still.items()},
        }
        for name in own_score.values
    }
    swapped = _swapped(swap_score, own_score.galleries, chosen)
    row = FinishedClient(
        client=v,
        classes=tuple(told_labels(truth.y, prepared.main.network.task, prepared.main.groups.classes)),
        ranks=own_score.ranks,
        galleries=own_score.galleries,
        scores=own_score.values,
        floors=floors,
        pose_ranks=own_score.pose_ranks,
        band_ranks=own_score.band_ranks,
        swapped_ranks=swapped.ranks,
        object_ranks=own_score.object_ranks,
        object_galleries=own_score.object_galleries,
        labels_right=own_score.labels_right,
        objective=own.objective,
        curve=own.curve,
        seconds=own.seconds,
        used=used_by([own]),
        notes=own.notes,
    )
    pictures = row_of(truth.pictures, own_score, prior_score, swap_score, still)
    return _Finished(
        Client(
            own_score.ranks,
            own_score.galleries,
            own_score.values,
            floors,
            own_score.pose_ranks,
            own_score.band_ranks,
            distractors=chosen,
        ),
        swapped,
        own.deranged
        and Client(
            own.deranged.ranks,
            own.deranged.galleries,
            {},
            pose_ranks=own.deranged.pose_ranks,
            distractors=chosen_for(other_trial, prepared.main, places_of(bool(places), other_trial, prepared.main)),
        ),
        pictures,
        row,
        own,
        Client(own_score.object_ranks, own_score.object_galleries, {}),
        swap_score and Client(swap_score.object_ranks, swap_score.object_galleries, {}),
        places,
    )


def _of_other_client(
    plan: Plan, planned: Sequence[Trial], outcomes: Mapping[str, Outcome], v: int, truth: Batch
) -> Mapping[str, tuple[float, ...]] | None:
    """What the reconstruction of the nearest earlier client that has one reaches on a client's pictures."""
    for back in range(1, plan.victims):
        found = outcomes.get(planned[(v - back) % plan.victims].key)
        if found is None or found.score is None:
            continue
        if back == 1 and found.deranged is not None:
            return found.deranged.values
        # Further clients were not assigned to these pictures, so each picture gets the best of any order.
        names, pictures = (*ALWAYS, *plan.metrics), found.score.pictures
        turns = [metric_values(pictures.roll(turn, 0), truth, names) for turn in range(len(pictures))]
        return {name: tuple(map(max, zip(*(turn[name] for turn in turns), strict=True))) for name in turns[0]}
    return None


def _with_bars(finished: Sequence[_Finished], setup: Setup, planned: Sequence[Trial]) -> list[Client]:
    """The clients with what their pictures must exceed to count as exposed, besides their floors."""
    clients = [found.judged for found in finished]
    if not exposed(clients):
        return clients
    trials = [planned[found.row.client] for found in finished]
    all_held = [
        held(found.judged, held_by(trial, setup, found.places), distractors_for(trial, setup, found.places))
        for found, trial in zip(finished, trials, strict=True)
    ]
    return with_bars(clients, bars_of(all_held, [found.pictures for found in finished]))


def does_not_apply(outcome: Outcome) -> bool:
    """Whether a floor came to no reconstruction because its attack does not apply there: an answer, no failure."""
    return outcome.failure is not None and outcome.failure[0] == NotApplicable.__name__


def _swapped(found: Score | None, galleries: tuple[int, ...], chosen: tuple[tuple[int, ...], ...]) -> Client:
    """The client of a swapped update; without a reconstruction all candidates tie, so the truth is in the middle."""
    if found is not None:
        return Client(found.ranks, found.galleries, found.values, pose_ranks=found.pose_ranks, distractors=chosen)
    return Client(tuple((size + 1) / 2 for size in galleries), galleries, {}, distractors=chosen)


def _failures(planned: Mapping[str, list[Trial]], outcomes: Mapping[str, Outcome]) -> tuple[FailedRun, ...]:
    return tuple(
        FailedRun(role=role, client=trial.client, kind=o.failure[0], message=o.failure[1])
        for role in ROLES
        for trial in planned[role]
        if (o := outcomes.get(trial.key)) is not None and o.failure and not (role in FLOORS and does_not_apply(o))
    )


def exposure_of(clients: Sequence[Client], numbers: Sequence[int]) -> ExposureResult | None:
    """How many clients and pictures are exposed; None without a client.

    Args:
        clients: Those that finished.
        numbers: The number of each among all audited clients.
    """
    if not clients:
        return None
    counted = clients_exposed(clients)
    return ExposureResult(
        **{name: getattr(counted, name) for name in ("clients", "of_clients", "pictures", "of_pictures")},
        client_share=Rate.model_validate(counted.client_share),
        picture_share=Rate.model_validate(counted.picture_share),
        found=tuple(
            ExposedPicture(client=numbers[o.client], picture=o.picture, level=o.level, psnr=o.psnr, ssim=o.ssim)
            for o in exposed(clients)
        ),
    )


def bands_of(clients: Sequence[Client]) -> BandsResult | None:
    """What leaks, by line-ups of one aspect of the pictures each; None without a client."""
    if not clients:
        return None
    found = {band: line_up([replace(client, ranks=client.band_ranks[band]) for client in clients]) for band in BANDS}
    told = {band: LineUpResult.model_validate(one) for band, one in found.items()}
    return BandsResult(**told, statement=what_leaks([band for band, one in found.items() if one.above_chance]))


def line_ups(
    clients: Sequence[Client], swapped: Sequence[Client], deranged: Sequence[Client], control: Sequence[Client]
) -> LineUps:
    """The line-ups of the attack, of the same attack on swapped updates, of other clients, and the planted control."""
    sizes = [size for client in clients for size in client.galleries]
    return LineUps(
        gallery=(min(sizes), max(sizes)) if sizes else None,
        attack=_line_up(clients),
        any_pose=_line_up(clients, "any"),
        swapped=_line_up(swapped),
        deranged=_line_up(deranged),
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


def row_of(
    truth: Tensor, own: Score, prior: Score | None, swapped: Score | None, still: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The named pictures of a client, as a report shows them.

    Args:
        truth: ``(N, C, H, W)``, its own.
        own: Of the attack.
        prior: Of the attack without the update; None where it came to no reconstruction.
        swapped: Of the attack on a swapped update; None likewise.
        still: See :func:`stills`.
    """
    return {
        "original": truth,
        "reconstruction": own.pictures,
        **({"prior only": prior.pictures} if prior is not None else {}),
        **({"swapped update": swapped.pictures} if swapped is not None else {}),
        "mean picture": still["mean_picture"],
        "nearest public": still["nearest_public"],
    }


def stills(groups: Groups, v: int, places: Sequence[int]) -> dict[str, Tensor]:
    """Floors that need no run: the mean of the known pictures, and the one of them nearest to each original."""
    nearest = groups.pictures(groups.nearest[0][v])
    nearest = nearest[list(places)] if places else nearest
    return {"mean_picture": groups.mean_picture.expand_as(nearest), "nearest_public": nearest}


def _line_up(clients: Sequence[Client], pose: Pose = "plain") -> LineUpResult | None:
    return LineUpResult.model_validate(line_up(clients, pose)) if clients else None
