"""What a client's returned BatchNorm buffers say: its mode, its forward passes, the statistics of its batches.

In training mode a layer moves its running statistic ``r`` to ``r' = (1 - m) r + m s``, with the batch's mean, or its
variance with the n - 1 denominator, as ``s``. So the change of ``r`` gives ``s`` away. After K passes it gives one
number a channel: the mean of the K statistics with weights ``m (1 - m)^(K - k) / (1 - (1 - m)^K)``, the latest
heaviest.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from leakmap.errors import NotApplicable
from leakmap.local_rule import LocalRule, Mode
from leakmap.observation.observation import Observation

MOST_PASSES = 10**6
RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True)
class BatchStatistics:
    """What one BatchNorm layer saw.

    Args:
        mean: ``(C,)`` float64: batch means, averaged over the passes with the weights of ``mixture``.
        variance: ``(C,)`` float64: batch variances with the n - 1 denominator, averaged likewise.
        mixture: ``(K,)`` float64: weight of each pass, the oldest first.
    """

    mean: Tensor
    variance: Tensor
    mixture: Tensor


@dataclass(frozen=True)
class Assumed:
    """The local rule that an attacker simulates.

    Args:
        rule: Granted, or one step in the mode that returned buffers show, else in training mode; without a defence.
        statement: In words, what of it is assumed; empty if it is granted.
        used: Facts of the Observation that it rests on.
    """

    rule: LocalRule
    statement: str
    used: frozenset[str]


def assumed_rule(observation: Observation) -> Assumed:
    """The local rule of the client, as far as it is granted or shows."""
    if observation.rule is not None:
        return Assumed(observation.rule, "", frozenset({"rule"}))
    shown = client_passes(observation).mode if observation.buffers is not None else None
    rule = LocalRule(share=observation.update.kind, mode=shown or "train")
    mode = f"{rule.mode} mode{', which the buffers show,' if shown else ''}"
    statement = f"{rule.share} of one step in {mode} without a defence"
    return Assumed(rule, statement, frozenset({"buffers"} if shown else ()))


@dataclass(frozen=True)
class Passes:
    """How a client used its BatchNorm layers.

    Args:
        mode: ``train`` if any running statistic moved, ``eval`` if none did; None where nothing can be told.
        forwards: Forward passes of each layer that moved, by layer name.
    """

    mode: Mode | None
    forwards: Mapping[str, int]


def client_passes(observation: Observation) -> Passes:
    """The client's mode and number of forward passes, from its returned buffers.

    ``num_batches_tracked`` counts the passes. A layer that moved without counting is taken to have made those of the
    granted rule, else one.

    Raises:
        NotGranted: the buffers are not granted.
        NotApplicable: a counter changed by an impossible number.
    """
    observation.need("buffers")
    layers = tracked_layers(observation)
    if not layers:
        return Passes(None, {})
    sent, returned = observation.network.weights, observation.buffers or {}
    rule, count = observation.rule, observation.count
    expected = rule.forwards(count) if rule and count else 1
    forwards: dict[str, int] = {}
    for name in layers:
        # Inference mode writes nothing, so even rounding leaves no trace: the comparison can be exact.
        if all(torch.equal(sent[f"{name}.{which}"], returned[f"{name}.{which}"]) for which in RUNNING):
            continue
        counter = f"{name}.num_batches_tracked"
        counted = 0
        if counter in sent and counter in returned:
            change = float(returned[counter]) - float(sent[counter])
            # A hostile file could otherwise ask for a mixture of any length.
            if not 0 <= change <= MOST_PASSES:
                raise NotApplicable(
                    f"{counter!r} changed by {change:g}; a client makes 0 to {MOST_PASSES} forward passes in a round."
                )
            counted = round(change)
        # A client may return moved statistics beside a counter that it left behind.
        forwards[name] = counted if counted > 0 else expected
    return Passes("train" if forwards else "eval", forwards)


def recover_statistics(observation: Observation) -> dict[str, BatchStatistics]:
    """Batch statistics of every BatchNorm layer that moved, by layer name; in float64, with each layer's own momentum.

    Raises:
        NotGranted: the buffers are not granted.
        NotApplicable: the model has no BatchNorm layer whose statistics travel.
    """
    layers = tracked_layers(observation)
    passes = client_passes(observation)
    if not layers:
        raise NotApplicable(
            f"{observation.network.model} has no BatchNorm layer with running statistics among the returned buffers, "
            "so there are no batch statistics to recover."
        )
    sent, returned = observation.network.weights, observation.buffers or {}
    found: dict[str, BatchStatistics] = {}
    for name, forwards in passes.forwards.items():
        momentum = layers[name].momentum
        # No batch has any weight in such a layer, and unmix would divide by 0.
        if momentum == 0:
            continue
        tracked = float(sent.get(f"{name}.num_batches_tracked", torch.tensor(0)))
        mean, variance = (
            unmix(sent[f"{name}.{which}"], returned[f"{name}.{which}"], momentum, forwards, tracked)
            for which in RUNNING
        )
        found[name] = BatchStatistics(mean, variance, mixture(momentum, forwards).to(mean.device))
    return found


def unmix(sent: Tensor, returned: Tensor, momentum: float | None, forwards: int, tracked: float = 0) -> Tensor:
    """Weighted mean of a batch statistic over the client's passes, float64; see the module's formula.

    Args:
        sent: Running statistic before.
        returned: After.
        momentum: Of the layer; None for the cumulative average.
        forwards: Passes in between.
        tracked: Passes before, for the cumulative average.

    Source: arXiv:2508.19819, and Hatamizadeh et al. 2022, arXiv:2202.06924, for one step.
    """
    # The difference cancels most digits and is then divided by 1 - kept, 0.1 for one pass with torch's default.
    before, after = sent.double(), returned.double()
    if momentum is None:
        return ((tracked + forwards) * after - tracked * before) / forwards
    kept = (1 - momentum) ** forwards
    return (after - kept * before) / (1 - kept)


def mixture(momentum: float | None, forwards: int) -> Tensor:
    """``(K,)`` weight of each pass in the recovered mean, the oldest first; float64, sums to 1."""
    if momentum is None:
        return torch.full((forwards,), 1 / forwards, dtype=torch.float64)
    age = torch.arange(forwards - 1, -1, -1, dtype=torch.float64)
    weights = momentum * (1 - momentum) ** age
    # The sum is 1 - (1 - m)^K; the rest of the weight is on the statistic that was sent, which unmix takes off.
    return weights / weights.sum()


def tracked_layers(observation: Observation) -> dict[str, _BatchNorm]:
    """BatchNorm layers whose running statistics were sent and came back, by name."""
    sent, returned = observation.network.weights, observation.buffers or {}
    return {
        name: layer
        for name, layer in observation.network.module().named_modules()
        if isinstance(layer, _BatchNorm)
        and all(f"{name}.{which}" in state for which in RUNNING for state in (sent, returned))
    }
