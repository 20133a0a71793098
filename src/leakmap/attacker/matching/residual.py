"""The update residual: what pictures leave unexplained of what a client sent. Results of different attacks are compared
by it."""

import math

import torch
from torch import Tensor

from leakmap.attacker.buffers import RUNNING, tracked_layers
from leakmap.attacker.matching.context import Guess, SearchContext
from leakmap.attacker.matching.decoders import Still
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine
from leakmap.attacker.matching.restart import Restart, Search
from leakmap.attacker.reconstruction import Reconstruction
from leakmap.client_step import arrange, local_signal
from leakmap.errors import NonFinite
from leakmap.local_rule import LocalRule
from leakmap.observation.observation import Observation
from leakmap.seeds import derive

MASK_STEPS = 100
"""Iterations in which dropout masks are fitted."""


def update_residual(context: SearchContext, x: Tensor) -> float:
    """How far the whole update is from the one that ``x`` would give.

    The cosine distance, in [0, 2]. Where dropout is active, unknown masks are fitted to these pictures first, for
    all pictures alike, as the truth itself is far from the update without its masks.

    Args:
        context: Gives network, update and rule.
        x: ``(N, C, H, W)``, normalized.

    Raises:
        NonFinite: fitting the masks left the finite numbers.
    """
    engine = Engine(context, DISTANCES["cosine"], masks=True)
    if engine.masks is None or not engine.masks.layers:
        return float(engine.value(Guess(x, context.y)))
    how = Search(priors=(), stages=(Still(x),), descent=Descent(0.1), masks=0.0, steps=MASK_STEPS)
    search = Restart(how, context, engine, 0)
    with torch.no_grad():
        for mask, (_, rate) in zip(search.masks, engine.masks.shapes, strict=True):
            mask.fill_(1 - rate)
    for step in range(how.steps):
        search.iterate(step)
    if search.lost is not None:
        raise search.lost
    return float(search.best)


def buffer_residual(context: SearchContext, x: Tensor) -> float:
    """How far the client's returned running statistics are from those that ``x`` would leave.

    The squared distance over the squared change, averaged over all running means and variances that moved; on the scale
    of a cosine distance. 0 where no buffers are granted or none moved.

    Args:
        context: Gives network, buffers and rule.
        x: ``(N, C, H, W)``, normalized.
    """
    observation, network = context.observation, context.observation.network
    sent, returned = network.weights, observation.buffers or {}
    layers = tracked_layers(observation) if returned else {}
    changes = {
        name: returned[name].double() - sent[name].double()
        for layer in layers
        for name in (f"{layer}.{which}" for which in RUNNING)
    }
    changes = {name: change for name, change in changes.items() if float(change.norm()) > 0}
    if not changes:
        return 0.0
    module = arrange(network.module(), context.rule, dropout=False)
    left = local_signal(module, sent, x, context.y, context.rule, network.loss()).buffers
    errors = [
        float(((left[name].double() - returned[name].double()).norm() / change.norm()).square())
        for name, change in changes.items()
    ]
    return sum(errors) / len(errors)


def residuals(observation: Observation, rule: LocalRule, found: Reconstruction, seed: int) -> tuple[float, float]:
    """How far a result is from the update, and from all that the client sent, by which results are compared.

    Raises:
        NonFinite: its pictures or the update residual are not finite.
    """
    if found.last:
        # What it says of a part of the pictures does not tell what the client would have sent.
        return math.inf, math.nan
    context = SearchContext(observation, rule, found.y, derive(seed, "yardstick"))
    x = observation.network.task.normalize(found.pictures)
    distance = update_residual(context, x)
    term = distance + buffer_residual(context, x)
    if not bool(torch.isfinite(found.pictures).all()) or not math.isfinite(term):
        raise NonFinite("The pictures, or the update that they would give, are not finite.")
    return distance, term
