"""What may be wrong with the local rule: mode, passes, defence."""

import math

import torch
from torch.nn.modules.dropout import _DropoutNd

from leakmap.auditing.case import Candidates, Case
from leakmap.defences import NONE
from leakmap.doctor.values import likely_defence


def mode(case: Case) -> Candidates:
    """The mode of the network, and dropout."""
    other = "eval" if case.rule.mode == "train" else "train"
    yield f"the client ran in {other} mode, not {case.rule.mode}", case.ruled(mode=other)
    if case.rule.mode == "train" and case.rule.dropout is None and drops(case):
        yield "the client had dropout off", case.ruled(dropout=0.0)


def drops(case: Case) -> bool:
    """Whether the network has dropout."""
    layers = case.observation.network.module().modules()
    return any(isinstance(layer, _DropoutNd) and layer.p for layer in layers)


def statistics(case: Case) -> Candidates:
    """Running statistics of BatchNorm in inference mode."""
    weights = case.observation.network.weights
    running = [n for n in weights if n.endswith(("running_mean", "running_var"))]
    if case.rule.mode == "train" or not running:
        return
    fresh = {n: torch.full_like(weights[n], float(n.endswith("running_var"))) for n in running}
    yield "its running statistics were 0 and 1, not those sent", case.sent(fresh)
    returned = {n: t for n, t in (case.observation.buffers or {}).items() if n in running}
    if any(not torch.equal(tensor, weights[n]) for n, tensor in returned.items()):
        yield "its running statistics were those that it returned, not those sent", case.sent(returned)


def defended(case: Case) -> Candidates:
    """What the client does to its update before it shares it."""
    seen = likely_defence(case.observation)
    if case.rule.defence == NONE and seen is not None:
        yield f"the update was defended with {seen}", case.ruled(defence=seen)
    if case.rule.defence != NONE:
        yield f"the update was not defended with {case.rule.defence}", case.ruled(defence=NONE)


def epochs(case: Case) -> Candidates:
    """Passes over the pictures."""
    if case.rule.share == "delta":
        for value in range(1, 11):
            if value != case.rule.epochs:
                yield f"it made {value} epochs, not {case.rule.epochs}", case.ruled(epochs=value)


def batch_size(case: Case) -> Candidates:
    """Size of the mini-batches, and gradient accumulation."""
    own = case.rule.batch_size or case.count
    if case.rule.share == "delta":
        for size in _sizes(case.count):
            if size != min(own, case.count):
                yield f"mini-batches hold {size} pictures, not {own}", case.ruled(batch_size=size)
    if case.rule.mode == "train" and any("running_mean" in name for name in case.observation.network.weights):
        for parts in (1, 2, 4, 8):
            if parts != case.rule.accumulate and parts <= own:
                yield f"a step accumulates {parts} micro-batches", case.ruled(accumulate=parts)


def _sizes(count: int) -> list[int]:
    """Batch sizes that are tried: all of few pictures, else divisors and powers of two; the largest first."""
    if count <= 12:
        return list(range(count, 0, -1))
    powers = {2**i for i in range(int(math.log2(count)) + 1)}
    return sorted({d for d in range(1, count + 1) if count % d == 0} | powers, reverse=True)


def passes(case: Case) -> Candidates:
    """Epochs and batch size together: what BatchNorm counted, if it came back, else few epochs of usual sizes."""
    sent, returned = case.observation.network.weights, case.observation.buffers or {}
    made = {
        round(float(returned[name]) - float(sent[name]))
        for name in returned
        if name.endswith("num_batches_tracked") and name in sent
    } - {0}
    if case.rule.share != "delta":
        return
    if len(made) != 1:
        for epochs in range(1, 6):
            for size in (size for size in _sizes(case.count) if size > 1 and case.count % size == 0):
                if epochs != case.rule.epochs and size != (case.rule.batch_size or case.count):
                    yield (
                        f"it made {epochs} epochs in mini-batches of {size}",
                        case.ruled(epochs=epochs, batch_size=size),
                    )
        return
    passes = made.pop()
    for epochs in range(1, min(passes, 20) + 1):
        for size in _sizes(case.count) if passes % epochs == 0 else []:
            other = case.ruled(epochs=epochs, batch_size=size)
            if other.rule.forwards(case.count) == passes and other.rule != case.rule:
                yield f"it made {epochs} epochs in mini-batches of {size}, as BatchNorm counted", other


def mini_batches(case: Case) -> Candidates:
    """Which pictures come when: nothing to try for one step."""
    count, size = case.count, min(case.rule.batch_size or case.count, case.count)
    if case.rule.share != "delta" or size == count:
        return
    pictures, y = case.batch.pictures, case.batch.y
    if count % size:
        kept = count - count % size
        what = f"it dropped the last mini-batch, so that {kept} of {count} pictures count"
        yield what, case.holding(pictures[:kept], y[:kept])
    yield "it went through the pictures from the last to the first", case.holding(pictures.flip(0), y.flip(0))
    by_class = (y if y.ndim == 1 else y.flatten(1)[:, 0]).argsort(stable=True)
    if not torch.equal(by_class, torch.arange(count, device=y.device)):
        yield "it went through the pictures by class", case.holding(pictures[by_class], y[by_class])
