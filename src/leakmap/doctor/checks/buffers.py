"""Checks of the buffers that came back."""

from collections.abc import Iterator

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from leakmap.attacker.buffers import Passes, client_passes, mixture, recover_statistics
from leakmap.defences import defence_of
from leakmap.doctor.finding import LEAVE_OUT, Finding
from leakmap.errors import NotApplicable
from leakmap.observation.observation import Observation

VARIANCE = -1e-2
"""Recovered batch variance below which, relative to the running one, momentum or passes must be wrong."""


def _tracked(o: Observation) -> list[str]:
    return [name.removesuffix(".running_mean") for name in o.network.weights if name.endswith("running_mean")]


def buffers(o: Observation) -> Iterator[Finding]:
    """What returned buffers say of mode, steps and momentum."""
    layers = _tracked(o)
    if not layers:
        return
    if negative := [
        f"{layer}.running_var"
        for layer in layers
        for state in (o.network.weights, o.buffers or {})
        if bool((state.get(f"{layer}.running_var", torch.zeros(1)) < 0).any())
    ]:
        yield Finding(
            "buffers",
            "wrong",
            f"{negative[0]!r} has values below 0, which no variance has: names and arrays are out of step. Check the "
            "order in which arrays were named.",
        )
        return
    if o.buffers is None:
        yield Finding(
            "buffers",
            "notice",
            f"{len(layers)} BatchNorm layers, but no buffers came back: neither mode nor number of steps shows, and an "
            "attack cannot recover batch statistics. Capture the whole state dict if your clients send it.",
        )
        return
    try:
        passes = client_passes(o)
    except NotApplicable as error:
        yield Finding("buffers", "wrong", f"{error} Sent and returned state are not of the same round.")
        return
    if passes.mode is None:
        yield Finding("buffers", "notice", "Running statistics are not among the buffers that came back.")
        return
    yield _mode(o, passes, len(layers))
    if passes.forwards:
        yield from _steps(o, passes)
        yield from _momentum(o, passes)
        yield from _last_step(o)
    elif all(_fresh(o, layer) for layer in layers):
        yield Finding(
            "running statistics",
            "notice",
            "All running statistics that were sent are 0 and 1, as before any training: in inference mode BatchNorm "
            "then does nothing. If the client keeps its own (FedBN), an attack needs those.",
        )


def _fresh(o: Observation, layer: str) -> bool:
    mean, variance = (o.network.weights.get(f"{layer}.{which}") for which in ("running_mean", "running_var"))
    return mean is not None and variance is not None and not bool(mean.any()) and bool((variance == 1).all())


def _mode(o: Observation, passes: Passes, layers: int) -> Finding:
    moved = f"{len(passes.forwards)} of {layers} BatchNorm layers moved: the client ran in {passes.mode} mode"
    if o.rule is None:
        return Finding("mode", "notice", f"{moved}; no rule says so. Write mode = {passes.mode!r} into the facts.")
    if o.rule.mode != passes.mode:
        return Finding(
            "mode",
            "wrong",
            f"{moved}, but the rule says {o.rule.mode}. Set mode = {passes.mode!r} in the facts; if running statistics "
            f"were frozen or restored on purpose, {LEAVE_OUT}.",
        )
    if passes.mode == "train" and len(passes.forwards) < layers:
        return Finding("mode", "notice", f"{moved} in part. Put the frozen layers into eval mode in the architecture.")
    return Finding("mode", "fine", f"{moved}, as the rule says.")


def _steps(o: Observation, passes: Passes) -> Iterator[Finding]:
    made = sorted(set(passes.forwards.values()))
    counters = {name: f"{name}.num_batches_tracked" for name in passes.forwards}
    if not o.buffers or not any(
        counter in o.buffers and not torch.equal(o.buffers[counter], o.network.weights[counter])
        for counter in counters.values()
        if counter in o.network.weights
    ):
        yield Finding(
            "steps",
            "notice",
            "Running statistics moved, num_batches_tracked did not: the number of steps is taken from the rule. Send "
            "the counters too.",
        )
        return
    found = f"num_batches_tracked grew by {' or '.join(map(str, made))}"
    if o.rule is None or o.count is None:
        yield Finding("steps", "notice", f"{found}; rule and count are needed to say whether that is right.")
        return
    expected = o.rule.forwards(o.count)
    rule = f"{o.rule.epochs} epochs of {o.rule.steps(o.count) // o.rule.epochs} mini-batches make {expected}"
    if o.rule.accumulate > 1:
        rule += f" with {o.rule.accumulate} micro-batches of a step"
    if made == [expected]:
        yield Finding("steps", "fine", f"{found}; {rule}.")
    else:
        yield Finding(
            "steps",
            "wrong",
            f"{found}, but {rule}. Correct epochs, batch_size, accumulate, drop_last or count.",
        )


def _last_step(o: Observation) -> Iterator[Finding]:
    """A partial last batch, whose few pictures weigh most in what came back."""
    if o.rule is None or o.count is None or (steps := o.rule.steps(o.count)) < 2:
        return
    last, first = (len(o.rule.held_by(step, o.count)) for step in (steps - 1, 0))
    if last == first:
        return
    momenta = [layer.momentum for layer in o.network.module().modules() if isinstance(layer, _BatchNorm)]
    share = float(mixture(momenta[0], steps)[-1])
    yield Finding(
        "last_batch",
        "notice",
        f"The last local step holds {last} of {o.count} pictures alone, and makes {share:.0%} of what the returned "
        "BatchNorm buffers show: the attack last_batch reads such pictures. Set drop_last=True in the client's data "
        "loader, or keep the buffers on the client.",
    )


def _momentum(o: Observation, passes: Passes) -> Iterator[Finding]:
    sent = o.network.weights
    worst, where = 0.0, ""
    for name, seen in recover_statistics(o).items():
        scale = sent[f"{name}.running_var"].double().mean() + seen.variance.abs().mean()
        if (value := float(seen.variance.min() / scale)) < worst:
            worst, where = value, name
    if worst < VARIANCE and o.rule is not None and not defence_of(o.rule.defence).exact:
        yield Finding(
            "BatchNorm momentum",
            "notice",
            f"The batch variance of {where!r} would be negative: the noise of {o.rule.defence} was most likely added "
            f"to the buffers too, so recovered batch statistics are wrong; {LEAVE_OUT}.",
        )
    elif worst < VARIANCE:
        layer = o.network.module().get_submodule(where)
        assert isinstance(layer, _BatchNorm)
        assert o.buffers is not None
        kept = float((o.buffers[f"{where}.running_var"].double() / sent[f"{where}.running_var"].double()).min())
        least = 1 - max(kept, 0.0) ** (1 / len(mixture(layer.momentum, passes.forwards[where])))
        yield Finding(
            "BatchNorm momentum",
            "wrong",
            f"With momentum {layer.momentum} and {passes.forwards[where]} passes the batch variance of {where!r} would "
            f"be negative: the client's momentum is at least {least:.3g}, or it made more passes. Set the momentum in "
            "the architecture, or correct the rule.",
        )
    else:
        yield Finding(
            "BatchNorm momentum",
            "fine",
            "The batch variances that follow from momentum and passes are all possible; a momentum that is too large "
            "would not show here, but in a replay.",
        )
