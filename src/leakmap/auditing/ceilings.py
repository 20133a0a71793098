"""The ceiling of an audit: what the noise of the clients' defence allows anybody, beside what was measured."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from leakmap.ceiling.releases import Releases
from leakmap.defences import NONE, defence_of
from leakmap.errors import LeakmapError
from leakmap.local_rule import LocalRule
from leakmap.plan.plan import Plan
from leakmap.result.evidence import CeilingResult, LineUpResult
from leakmap.runs.run import chosen_for, seen_by_server
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Outcome, Trial
from leakmap.scoring.verdict import Client, LineUp, line_up

NOTHING = "nothing bounds what another attack may find"


def ceiling_of(
    plan: Plan,
    setup: Setup,
    planned: Mapping[str, Sequence[Trial]],
    outcomes: Mapping[str, Outcome],
    clients: Mapping[int, Client],
    controls: Sequence[Sequence[Client]],
) -> CeilingResult:
    """The ceiling, the measured shares beside it, and whether one of them lies above it.

    Args:
        plan: The audit.
        setup: Of the audited clients.
        planned: Its runs, by role.
        outcomes: Finished runs, by key.
        clients: Those that finished, by number.
        controls: The swapped and the deranged ones: above chance, the line-ups favour the true pictures without any
            update, and then no ceiling counts.
    """
    why, releases = _no_ceiling(plan, setup, planned["attack"]), releases_of(plan.rule)
    if why or releases is None:
        return CeilingResult(share=None, statement=f"no ceiling: {why}")
    told = {"neighbours": _neighbours(plan.rule), "noise": releases.noise, "releases": releases.rounds}
    shown = [
        (trial, o.score, o.deranged)
        for trial in planned["informed"]
        if (o := outcomes.get(trial.key)) is not None and o.score is not None and o.deranged is not None
    ]
    finished = [(t, outcomes[t.key]) for t in planned["attack"] if t.client in clients]
    if not finished or not shown:
        return CeilingResult(share=None, statement="no ceiling: no client has all of its runs")
    share = _mean_ceiling(releases, setup, [(t, o.score.places) for t, o in finished if o.score is not None])
    informed_share = _mean_ceiling(releases, setup, [(trial, score.places) for trial, score, _ in shown])
    own = line_up(list(clients.values()))
    informed, swapped = (
        line_up(
            [
                Client(one.ranks, one.galleries, {}, distractors=chosen_for(trial, setup, score.places))
                for trial, score, one in rows
            ]
        )
        for rows in ([(trial, score, score) for trial, score, _ in shown], shown)
    )
    fair = not any(control and line_up(control).above_chance for control in controls)
    informed_beside = f"an attacker who is shown the candidates: {_beside(informed, informed_share)}"
    broken: list[str] = []
    if fair and own.rank_one.low > share:
        broken.append(f"More pictures are ranked first than the noise allows anybody: {_beside(own, share)}.")
    if not swapped.above_chance and informed.rank_one.low > informed_share:
        broken.append(f"More pictures are ranked first than the noise allows even {informed_beside}.")
    return CeilingResult(
        share=share,
        statement=f"measured first-rank share {_beside(own, share)}; {informed_beside}",
        informed=LineUpResult.model_validate(informed),
        informed_swapped=LineUpResult.model_validate(swapped),
        informed_share=informed_share,
        broken=tuple(broken),
        **told,
    )


def releases_of(rule: LocalRule) -> Releases | None:
    """The noisy releases that one round of a client holds of what its defence hides; None without Gaussian noise.

    DP-SGD adds noise to every local step, and a picture is in one step of each epoch; whatever the client makes of the
    noisy gradients afterwards tells no more. A defence of the finished update adds noise once, whatever the client did
    before. The server sees who takes part, so that nothing is gained by sampling.
    """
    defence = defence_of(rule.defence)
    if defence.gaussian is None or not defence.gaussian.noise:
        return None
    return Releases(defence.gaussian.noise, rule.epochs if defence.examples else 1)


def _neighbours(rule: LocalRule) -> str:
    if defence_of(rule.defence).examples:
        return "the clipped gradient of one picture is taken for zero; the other pictures stay as they are"
    return "the clipped update of the client is taken for zero, with all its pictures"


def _no_ceiling(plan: Plan, setup: Setup, planned: Sequence[Trial]) -> str:
    """Why nothing bounds what another attack may find; empty if something does."""
    rule, task, threat = plan.rule, setup.network.task, plan.threat
    if releases_of(rule) is None:
        why = "" if rule.defence == NONE else f"; {rule.defence} adds no noise that is calibrated to what it hides"
        return NOTHING + why
    if threat.known_pixels:
        return f"the server was given true pixels; {NOTHING}"
    if plan.tuned is not None and plan.tuned.column == "oracle-tuned":
        return "the settings of the attack were chosen by looking at the truth, which no noise hides"
    if threat.labels != "unknown" and (task.objects or not task.counted):
        return f"the server was told what each picture is labelled with, which tells candidates apart; {NOTHING}"
    try:
        seen = seen_by_server(planned[0], setup)
    except LeakmapError:
        return "the client cannot take its step"
    before = seen.network.weights
    if any(not torch.equal(tensor, before[name]) for name, tensor in (seen.buffers or {}).items() if name in before):
        return f"the client returns buffers without noise, such as running statistics (--no-buffers); {NOTHING}"
    return ""


def _mean_ceiling(releases: Releases, setup: Setup, scored: Sequence[tuple[Trial, Sequence[int]]]) -> float:
    """Over the line-ups of the pictures in these places; of a line-up only candidates of the true class count.

    Those of other classes are less likely before anything is sent, and a ceiling speaks of equally likely ones.
    """
    labels, found = setup.groups.labels, list[float]()
    for trial, places in scored:
        truths = setup.groups.victims[trial.client]
        truths = truths[list(places)] if places else truths
        for truth, others in zip(truths.tolist(), chosen_for(trial, setup, places), strict=True):
            found.append(releases.success(1 + int((labels[list(others)] == labels[truth]).sum())))
    return fmean(found)


def _beside(found: LineUp, ceiling: float) -> str:
    rate = found.rank_one
    # To the digits that are shown: 12 of 12 are no more than a ceiling a millionth below 1.
    within = round(rate.value, 3) <= round(ceiling, 3)
    sign = "<=" if within else "> (within its interval)" if rate.low <= ceiling else ">"
    return f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}] {sign} ceiling {ceiling:.1%}"
