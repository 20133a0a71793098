"""What may be wrong with the tensors: their kind, sign, scale and order."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from leakmap.auditing.case import EXACT, Candidates, Case, norm
from leakmap.doctor.hypotheses.fitting import round_numbers, secant

RATES = 6
"""Learning rates that a search for one tries at most before it tries round ones."""


def kind(case: Case) -> Candidates:
    """Weights, a delta or a gradient, called by another's name."""
    tensors, weights = case.observation.update.tensors, case.observation.network.weights
    if case.rule.share == "delta":
        yield (
            "weights were sent, not their delta",
            case.shared({name: tensor - weights[name] for name, tensor in tensors.items()}),
        )
        yield "it is a gradient, not a delta", case.shared(tensors, case.rule.without_steps())
        # With the kind weights, a capture subtracts what was sent, from whatever came back.
        came = {name: tensor + weights[name] for name, tensor in tensors.items()}
        buffers = {n: weights[n] + t for n, t in (case.observation.buffers or {}).items()} or None
        moved = replace(case, observation=replace(case.observation, buffers=buffers)).shared(came)
        yield "what came back was the delta, from which the weights were subtracted (--kind delta)", moved
        yield (
            "what came back was a gradient, from which the weights were subtracted (--kind gradient)",
            case.shared(came, case.rule.without_steps()),
        )
    else:
        moved = {name: tensor - weights[name] for name, tensor in tensors.items()}
        yield (
            f"weights were sent, not a gradient (--kind weights, at lr {case.rule.lr:g})",
            case.shared(moved, replace(case.rule, share="delta")),
        )
        moved = case.shared(tensors, replace(case.rule, share="delta"))
        rate = moved.rule.lr * moved.factor
        if rate > 0 and math.isfinite(rate):
            moved = moved.ruled(lr=_round(rate))
        if moved.rule.lr != 1:  # that is a gradient with the opposite sign
            yield f"it is a delta at lr {moved.rule.lr:g}, not a gradient", moved


def scale(case: Case) -> Candidates:
    """The sign, and usual factors."""
    kind, count = case.rule.share, case.count
    yield f"the {kind} has the opposite sign (before - after)", case.times(-1)
    named: dict[float, str] = {}
    if kind == "gradient" and count > 1:
        named[float(count)] = f"the loss is summed over {count} pictures, not averaged"
    if kind == "delta":
        lr = case.rule.lr
        named[1 / lr] = "the delta was divided by the learning rate"
        named[lr] = "the delta was multiplied by the learning rate"
        named[-1 / lr] = "before - after was divided by the learning rate, as a pseudo-gradient"
    for factor, what in named.items():
        yield what, case.times(1 / factor)


def learning_rate(case: Case) -> Candidates:
    """Gauss-Newton steps on the logarithm of the rate, the slope from the last two simulations; then round numbers.

    One plain step is linear in the rate and done at once. After several, switches of the network leave many local
    minima.
    """
    if case.rule.share != "delta" or not case.factor > 0:
        return
    seen = [case]
    step = math.log(case.factor)
    for _ in range(RATES):
        if abs(step) < 1e-8:
            break
        last = math.log(seen[-1].rule.lr)
        seen.append(case.ruled(lr=math.exp(min(max(last + max(-3.0, min(3.0, step)), -23.0), 7.0))))
        if seen[-1].simulated is None or seen[-1].distance < EXACT / 10:
            break
        step = secant(seen[-2], seen[-1], lambda one: math.log(one.rule.lr))
    found = min(seen, key=lambda one: one.distance)
    near = _round(found.rule.lr)
    if found.distance > EXACT:
        seen += [case.ruled(lr=rate) for rate in round_numbers(near)]
        least = min(one.distance for one in seen)
        found = next(one for one in reversed(seen) if one.distance <= 1.02 * least)
    elif case.ruled(lr=near).distance < EXACT:
        found = case.ruled(lr=near)
    if found.rule.lr != case.rule.lr:
        yield f"the learning rate is {found.rule.lr:g}, not {case.rule.lr:g}", found


def summed(case: Case) -> Candidates:
    """A summed loss is a mean loss at a learning rate as many times larger, and all beside the loss as much smaller."""
    size = min(case.rule.batch_size or case.count, case.count)
    if case.rule.share == "delta" and case.rule.optimizer == "sgd" and size > 1 and case.count % size == 0:
        rule, rate = case.rule, case.rule.lr * size
        beside = {"weight_decay": rule.weight_decay / size, "proximal": rule.proximal / size}
        clip = None if rule.clip_norm is None else rule.clip_norm / size
        yield (
            f"the loss is summed over {size} pictures, not averaged (as lr {rate:g})",
            case.ruled(lr=rate, clip_norm=clip, **beside),
        )


def factor(case: Case) -> Candidates:
    """Any factor at all."""
    found = case.factor
    if math.isfinite(found) and found:
        size = norm(list(case.observation.update.tensors.values()))
        clipped = f", to a norm of {size:.3g}: clipped or weighted" if 0 < found < 1 else ""
        yield f"the {case.rule.share} was multiplied by {found:.4g}{clipped}", case.times(1 / found)


def _round(rate: float) -> float:
    """To as few digits as change less than rounding does."""
    for digits in range(5):
        if abs(float(f"{rate:.{digits}e}") / rate - 1) < EXACT / 4:
            return float(f"{rate:.{digits}e}")
    return rate


def order(case: Case) -> Candidates:
    """Tensors of one shape, assigned to those of the simulation; or all arrays, named in alphabetical order."""
    tensors, weights = case.observation.update.tensors, case.observation.network.weights
    names = list(tensors)
    if case.simulated is not None and set(names) <= set(case.simulated):
        found = {name: _assigned(name, names, case.simulated, tensors) for name in names}
        if moved := [name for name, own in found.items() if name != own]:
            what = f"{len(moved)} tensors of the update stand in each other's place (first {moved[0]!r})"
            yield what, case.shared({name: tensors[own] for name, own in found.items()})
    for what, first, second in (
        ("arrays were named in alphabetical order", sorted(names), names),
        ("arrays came in alphabetical order", names, sorted(names)),
    ):
        other = dict(zip(first, second, strict=True))
        if first != second and all(weights[a].shape == weights[b].shape for a, b in other.items()):
            moved = case.shared({name: tensors[other[name]] for name in names})
            yield f"{what}, those sent too", moved.sent({name: weights[other[name]] for name in names})


def _assigned(name: str, names: list[str], simulated: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """The tensor of the update that belongs to a name: the assignment of least squared distance in its shape."""
    alike = [other for other in names if tensors[other].shape == tensors[name].shape]
    if len(alike) == 1:
        return name
    rows = torch.stack([simulated[other].double().flatten() for other in alike])
    columns = torch.stack([tensors[other].double().flatten() for other in alike])
    gains = (rows @ columns.T).cpu().numpy()
    gains = gains + 1e-9 * np.abs(gains).max() * np.eye(len(alike))
    return alike[int(linear_sum_assignment(gains, maximize=True)[1][alike.index(name)])]
