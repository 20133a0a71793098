"""What may be wrong with how a client steps: optimiser, learning-rate schedule, proximal term, clipping."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from leakmap.attacker.gradients import step_weights
from leakmap.auditing.case import EXACT, Candidates, Case, norm
from leakmap.doctor.hypotheses.fitting import round_numbers, secants
from leakmap.registry.spec import Spec
from leakmap.schedule import CONSTANT

HELPS = 0.98
"""Share of a distance below which a change is worth fitting its number."""


def momentum(case: Case) -> Candidates:
    """Momentum of SGD."""
    if case.rule.share == "delta" and case.rule.optimizer == "sgd" and case.steps > 1:
        for value in (0.0, 0.5, 0.9, 0.95, 0.99):
            if value != case.rule.momentum:
                other = case.ruled(momentum=value, nesterov=case.rule.nesterov and value > 0)
                yield f"momentum is {value:g}, not {case.rule.momentum:g}", other


def nesterov(case: Case) -> Candidates:
    """Nesterov's momentum."""
    if case.rule.momentum:
        what = "is not Nesterov's" if case.rule.nesterov else "is Nesterov's"
        yield f"the momentum {what}", case.ruled(nesterov=not case.rule.nesterov)


def decay(case: Case) -> Candidates:
    """Weight decay."""
    if case.rule.share == "delta":
        for value in (0.0, 1e-4, 5e-4, 1e-3, 1e-2):
            if value != case.rule.weight_decay:
                yield f"weight decay is {value:g}, not {case.rule.weight_decay:g}", case.ruled(weight_decay=value)


def optimizer(case: Case) -> Candidates:
    """The optimiser."""
    if case.rule.share == "delta":
        for value in ("sgd", "adam", "adamw"):
            if value != case.rule.optimizer:
                other = case.ruled(optimizer=value, momentum=0.0, nesterov=False)
                yield f"the optimiser is {value}, not {case.rule.optimizer}", other


def schedule(case: Case) -> Candidates:
    """Learning-rate schedules; those that give the same rates are tried once."""
    if case.rule.share != "delta" or case.steps == 1:
        return
    turns = {"epoch": case.rule.epochs, "step": case.steps}
    falling = {per: [_falling(per, case, loss) for loss in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001)] for per in turns}
    texts = [CONSTANT, *(f"cosine,per={per}" for per in turns)]
    texts += [one.rule.schedule for per in turns for one in falling[per]]
    texts += [
        f"step,size={size},gamma={gamma:g},per={per}"
        for per, most in turns.items()
        for size in range(1, min(most, 6))
        for gamma in (0.1, 0.5)
    ]
    seen = {_rates(case): case}
    for text in texts:
        other = case.ruled(schedule=text)
        if _rates(other) not in seen:
            seen[_rates(other)] = other
            yield _scheduled(other), other
    best = min(seen.values(), key=lambda one: one.distance)
    for per, own in falling.items():
        found = _between(case, own, partial(_lost, per), partial(_falling, per))
        if found is not None and found.distance < best.distance:
            yield _scheduled(found), found


def _scheduled(case: Case) -> str:
    return f"the learning rate follows the schedule {case.rule.schedule}"


def _lost(per: str, case: Case) -> float:
    """What a rate that falls exponentially loses each turn; 0 for another schedule."""
    spec = Spec.parse(case.rule.schedule)
    return 1 - spec.params["gamma"] if spec.name == "exponential" and spec.params.get("per") == per else 0.0


def _falling(per: str, case: Case, loss: float) -> Case:
    return case.ruled(schedule=f"exponential,gamma={max(1 - loss, 1e-3):.6g},per={per}")


def _rates(case: Case) -> tuple[float, ...]:
    return tuple(round(case.rule.rate(step, case.count) / case.rule.lr, 9) for step in range(case.steps))


def proximal(case: Case) -> Candidates:
    """FedProx: the first step knows nothing of it."""
    if case.rule.share == "delta" and case.steps > 1:
        usual = (0.0, 0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
        tried = [case.ruled(proximal=mu) for mu in usual if mu != case.rule.proximal]
        yield from _told("the proximal term (FedProx) has mu {:g}, not {:g}", "proximal", case, tried)


def clipping(case: Case) -> Candidates:
    """The gradient of every step clipped to a global norm; one step shows the norm, more bound it."""
    if case.rule.share != "delta":
        return
    if case.rule.clip_norm is not None:
        yield "no step is clipped", case.ruled(clip_norm=None)
    if not 0 < case.factor < 1 or not (reach := math.fsum(map(abs, step_weights(case.rule, case.count)))):
        return
    least = norm(list(case.observation.update.tensors.values())) / reach
    usual = [value for value in (0.1, 0.5, 1.0, 2.0, 5.0, 10.0) if value > 1.001 * least]
    tried = [case.ruled(clip_norm=value) for value in ([least, *usual] if case.steps > 1 else [float(f"{least:.6g}")])]
    yield from _told("the gradient of every step was clipped to a norm of {:g}", "clip_norm", case, tried)


def _told(what: str, name: str, case: Case, tried: Sequence[Case]) -> Candidates:
    """Values of one field of the rule, and the value between them that fits."""

    def value(one: Case) -> float:
        return getattr(one.rule, name) or 0.0

    for other in tried:
        yield what.format(value(other), value(case)), other
    found = _between(case, tried, value, lambda one, number: one.ruled(**{name: number}))
    if found is not None:
        yield what.format(value(found), value(case)), found


def _between(
    case: Case, tried: Sequence[Case], value: Callable[[Case], float], at: Callable[[Case, float], Case]
) -> Case | None:
    """The case with a number between those that were tried, where one of them helps and none explains the update."""
    if not tried:
        return None
    second, best = sorted([case, *tried], key=lambda one: one.distance)[1::-1]
    if best is case or not value(best) or not EXACT < best.distance < HELPS * case.distance:
        return None
    found = secants(second, best, value, at)
    if found.distance > EXACT:
        rounder = [at(best, number) for near in {value(best), value(found)} for number in round_numbers(near)]
        return min([found, *rounder], key=lambda one: one.distance)
    # As few digits as explain the update.
    shorter = (at(found, float(f"{value(found):.{digits}g}")) for digits in range(1, 5))
    return next((one for one in shorter if one.distance <= EXACT / 10), found)
