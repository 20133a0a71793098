"""Runs the client again on its own pictures, and names the fact that is wrong where the result differs.

A replay with the right facts gives the update itself, but for rounding: the simulated client takes the same steps. So a
relative distance above rounding means that a fact is wrong, or that the client did something random. Each hypothesis
changes one fact; one that brings the distance down to rounding explains the update.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, get_args

import torch

from leakmap.auditing.case import EXACT, SPREAD, Case, Runs, norm
from leakmap.auditing.rounded import cause
from leakmap.client.simulate import Batch
from leakmap.defences import NONE
from leakmap.doctor.finding import LEAVE_OUT, Level
from leakmap.doctor.hypotheses import UNTRIED
from leakmap.doctor.hypotheses.client import drops
from leakmap.doctor.search import NEAR, FactSearch, Hypothesis, Progress, State
from leakmap.doctor.values import halves, rounding
from leakmap.errors import DataError
from leakmap.local_rule import LocalRule
from leakmap.observation.observation import Observation
from leakmap.problem import Target

HOPELESS = 0.7
"""Spread of a random client beyond which a replay tells right facts from wrong ones no more."""
CLOSER = 0.5
"""Share of the first distance below which a change that does not explain the update is worth a word."""
OTHERWISE = (
    "Rounding would leave another size, and nothing along the update: a weight decay or a schedule of the learning "
    f"rate with numbers that were not tried leaves this much, and so does what no fact covers: {UNTRIED}."
)
"""What is said of a small distance that no measured rounding leaves."""
LIMIT = 1500
"""Local steps after which a search ends."""


@dataclass(frozen=True)
class Replayed:
    """What a replay came to.

    Args:
        distance: ``||simulated - update|| / ||update||`` with the facts as they are.
        threshold: Distance up to which a simulation counts as the update.
        spread: Distance between two runs of the client; 0 for one without randomness.
        explained_by: Changes that, made together, bring the distance below the threshold; empty if the facts are right
            or nothing explains the update.
        reached: Distance after these changes, or the least that was found.
        equally: Other sets of changes that explain it as well.
        tried: Every set of changes with its distance, infinite where the client cannot take its step.
        cause: The rounding that leaves as much as the facts do, in a sentence; empty if none does, or a fact is wrong.
        sentence: What it means and what to do.
        corrected: The Observation with the facts that explain it; None where none of its own facts changed.
    """

    distance: float
    threshold: float
    spread: float
    explained_by: tuple[Hypothesis, ...]
    reached: float
    equally: tuple[tuple[Hypothesis, ...], ...]
    tried: tuple[tuple[str, float], ...]
    cause: str
    sentence: str
    corrected: Observation | None

    @property
    def exact(self) -> bool:
        """Whether the facts as they are give the update, as exactly as this client allows."""
        return self.distance <= self.threshold < HOPELESS

    @property
    def level(self) -> Level:
        """``fine`` if exact; ``notice`` if there is no exact replay, or rounding leaves as much; else ``wrong``."""
        return "fine" if self.exact else "notice" if self.threshold >= HOPELESS or self.cause else "wrong"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything but the Observation; distances that are not finite are None."""

        def told(changes: Sequence[Hypothesis]) -> list[dict[str, str]]:
            return [{"fact": change.name, "what": change.what} for change in changes]

        return {
            "exact": self.exact,
            "distance": _finite(self.distance),
            "threshold": _finite(self.threshold),
            "spread": _finite(self.spread),
            "explained_by": told(self.explained_by),
            "reached": _finite(self.reached),
            "equally": [told(changes) for changes in self.equally],
            "cause": self.cause,
            "tried": [{"what": what, "distance": _finite(distance)} for what, distance in self.tried],
            "sentence": self.sentence,
        }


def replay(
    observation: Observation,
    batch: Batch,
    progress: Progress = lambda fraction: None,
    *,
    limit: int = LIMIT,
) -> Replayed:
    """Compares an update with a simulation of its client on the client's own pictures.

    If they differ, each fact is changed alone, cheap ones first, then the best changes are combined. Without a rule the
    search starts from the defaults of :class:`leakmap.local_rule.LocalRule`.

    Args:
        observation: What was captured.
        batch: What the client held, in its order.
        progress: Called with the finished fraction.
        limit: Local steps after which the search ends.

    Raises:
        DataError: the batch does not fit the task.
        ModelError: the architecture cannot be built.
    """
    start = _start(observation, batch)
    rule_given = observation.rule is not None
    spread = start.spread
    form, share = rounding(start.observation)
    threshold = max(EXACT, 2 * share, SPREAD * spread)
    search = FactSearch(threshold, limit, progress)
    if start.distance > threshold and threshold < HOPELESS:
        search.run(start)
    best = search.best(start)
    fits = best.case.distance <= search.threshold < HOPELESS
    changed = best.case.observation is not start.observation or not rule_given
    corrected = best.case.observation if fits and changed else None
    explained = best.changes if fits else ()
    # What a change leaves that explains nothing is no rounding: the change took a part of something else.
    left = best.case if fits else start
    told = fits or best.case.distance > CLOSER * start.distance
    rounding_left = cause(left) if told and threshold < HOPELESS and left.distance > threshold else ""
    sentence = " ".join(
        part
        for part in (
            _verdict(start, best, search, spread, (form, share), observation, rounding_left),
            _count(observation, best.case),
            _buffers(best.case) if fits else "",
        )
        if part
    )
    progress(1.0)
    return Replayed(
        start.distance,
        threshold,
        spread,
        explained,
        best.case.distance,
        tuple(state.changes for state in search.explaining if state is not best),
        tuple(search.tried),
        "" if fits else rounding_left,
        sentence,
        corrected,
    )


def _start(observation: Observation, batch: Batch) -> Case:
    network, task = observation.network, observation.network.task
    if not len(batch.y) or batch.pictures.shape != (len(batch.y), *task.shape):
        raise DataError(
            f"A replay needs the client's own pictures as (N, {', '.join(map(str, task.shape))}); got "
            f"{tuple(batch.pictures.shape)} with {len(batch.y)} labels."
        )
    if wrong := task.wrong(batch.y, len(batch.y)):
        raise DataError(
            f"What the client's pictures are labelled with {wrong}, as the facts have the target {task.target!r}; "
            f"others are {', '.join(one for one in get_args(Target) if one != task.target)}."
        )
    own = Batch(batch.pictures.to(network.device, network.dtype), batch.y.to(network.device), batch.areas)
    if observation.rule is None:
        observation = replace(observation, rule=LocalRule(share=observation.update.kind))
    network.module()
    return Case(observation, own, Runs())


def _verdict(
    start: Case,
    best: State,
    search: FactSearch,
    spread: float,
    rounded: tuple[str, float],
    given: Observation,
    rounding_left: str,
) -> str:
    threshold, distance = search.exact, start.distance
    if threshold >= HOPELESS:
        if SPREAD * spread >= HOPELESS:
            return (
                f"A replay cannot be exact: two runs of this client differ by {spread:.2g} of the update{_why(start)}, "
                f"and this one by {distance:.2g}. Have the client run once without, to check the other facts."
            )
        form, share = rounded
        return (
            f"A replay cannot be exact: the update travelled as {form}, which rounded about {share:.2g} of it away. "
            "Have the client send float32."
        )
    limits = f"(distance {distance:.2g}, at most {threshold:.2g})"
    if spread:
        limits = (
            f"(distance {distance:.2g}; a replay cannot be exact, as two runs of this client differ by {spread:.2g}"
            f"{_why(start)})"
        )
    if distance <= threshold:
        rule = "" if given.rule is not None else " No rule is given; that of one plain step explains the update."
        return f"The facts are right: the client, run again on its pictures, sends this update {limits}.{rule}"
    if best.case.distance <= search.threshold:
        places = "one place" if len(best.changes) == 1 else f"{len(best.changes)} places"
        text = f"The facts are wrong in {places} {limits}: {best.told}. With that, it is {best.case.distance:.2g}."
        if best.case.distance > threshold:
            text += f" {rounding_left or OTHERWISE}"
        if others := [state.told for state in search.explaining if state is not best]:
            text += f" As well explained by: {'; or '.join(others)}."
        if best.case.observation is start.observation:
            text += " No fact of the file changes: an attack gives pictures and labels as the client had them."
        return text
    if best.case.distance > CLOSER * distance and (rounding_left or distance <= NEAR):
        left = f"{rounding_left} Else the client does what was not tried: {UNTRIED}." if rounding_left else OTHERWISE
        nearest = f"nothing else comes closer than {best.case.distance:.2g}"
        return f"The facts are right or nearly so {limits}: {nearest}. {left}"
    if distance <= NEAR:
        return f"Nearly explained {limits}: with {best.told} the distance is {best.case.distance:.2g}."
    ended = f" The search ended after {search.limit} local steps." if search.stopped else ""
    return (
        f"No fact tried explains the update {limits}; nearest comes {best.case.distance:.2g}: "
        f"{best.told or 'the facts as they are'}.{ended} What was not tried: weights of another round given as sent; "
        f"other pictures or another order of several mini-batches (shuffle); augmentation, dropout, noise; {UNTRIED}; "
        "or more facts at once. Have the client run once without randomness, on one mini-batch."
    )


def _why(case: Case) -> str:
    reasons = [f"the noise of {case.rule.defence}"] if case.rule.defence != NONE else []
    reasons += ["the shuffled order"] if case.rule.shuffle else []
    if case.rule.mode == "train" and case.rule.dropout != 0 and drops(case):
        reasons.append("dropout")
    return f", by {' and '.join(reasons)}" if reasons else ", by something random in the network"


def _count(given: Observation, case: Case) -> str:
    if given.count is None or given.count == case.count:
        return ""
    return f"The file says {given.count} pictures, {case.count} were given here; correct the count."


def _buffers(case: Case) -> str:
    """Where the update is explained, whether the returned running statistics are too."""
    made, returned = case.runs.of(case.observation, case.batch), case.observation.buffers
    sent = case.observation.network.weights
    if made is None or returned is None:
        return ""
    names = [n for n in returned if n.endswith(("running_mean", "running_var")) and n in made.buffers and n in sent]
    size = norm([returned[n] - sent[n] for n in names])
    gap = norm([returned[n] - made.buffers[n] for n in names])
    held = norm([sent[n] for n in names])
    digits = max((torch.finfo(form).eps for form in halves([returned[n] for n in names])), default=1e-5)
    if not names or gap <= max(EXACT, digits * held / max(size, 1e-30)) * size:
        return ""
    if not size:
        return (
            f"But running statistics came back as they were sent, while the client moved them: {LEAVE_OUT}, or an "
            "attack takes this client for one in eval mode."
        )
    text = f"But the returned running statistics differ from the simulated ones by {gap / size:.2g}"
    ratios = [
        float(((returned[n] - sent[n]) * (made.buffers[n] - sent[n])).sum()) / moved
        for n in names
        if (moved := float((made.buffers[n] - sent[n]).square().sum()))
    ]
    even = all(abs(a / b - 1) < 1e-2 for a, b in pairwise(ratios))
    if ratios and case.rule.forwards(case.count) == 1 and even and abs(ratios[0] - 1) > 1e-2:
        text += f", all by the factor {ratios[0]:.3g}: BatchNorm's momentum is that many times the architecture's"
    return f"{text}. Correct the momentum, or {LEAVE_OUT}: recovered batch statistics would be wrong."


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
