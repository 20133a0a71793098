"""A captured update beside a simulation of its client."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from leakmap.client.simulate import Batch, Round, simulate
from leakmap.errors import ModelError
from leakmap.local_rule import LocalRule
from leakmap.observation.contents import Update
from leakmap.observation.observation import Observation
from leakmap.problem.task import Task

EXACT = 1e-4
"""Relative distance that float32 stays well below at the truth: other kernels and orders of summation give 1e-6 to 1e-5
after some local steps; the smallest mistake in a fact that matters to an attack, a weight decay of 1e-4, gives more."""

KEPT = 8
"""Simulations that are kept: an update of a large network is large."""
SPREAD = 1.3
"""How much further than the spread of two runs the truth of a random client may lie."""


class Runs:
    """Simulations that were made; the last few are kept, so that what needs one again has it.

    Attributes:
        steps: Local steps that they took.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._kept: dict[tuple[Any, ...], tuple[Any, Round | None]] = {}

    def of(self, observation: Observation, batch: Batch, seed: int = 0) -> Round | None:
        """The client's round; None if it cannot take its step, or leaves the finite numbers."""
        network, rule = observation.network, observation.rule
        assert rule is not None
        key = (rule, repr(network.task), id(network.weights), id(batch.pictures), id(batch.y), seed)
        if key in self._kept:
            self._kept[key] = self._kept.pop(key)
            return self._kept[key][1]
        self.steps += rule.steps(len(batch.y))
        try:
            made = simulate(network, rule, batch, seed)
        except ModelError:
            made = None
        if made is not None and not all(bool(torch.isfinite(t).all()) for t in made.update.tensors.values()):
            made = None
        self._kept[key] = (network.weights, batch), made
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return made


@dataclass(frozen=True, eq=False)
class Case:
    """An Observation, a batch, and how far the one is from what the other gives.

    Args:
        observation: With a rule.
        batch: What the client is taken to have held.
        runs: Simulations that were made already.
    """

    observation: Observation
    batch: Batch
    runs: Runs

    @property
    def rule(self) -> LocalRule:
        """The local rule."""
        assert self.observation.rule is not None
        return self.observation.rule

    @property
    def task(self) -> Task:
        """The public facts about the problem."""
        return self.observation.network.task

    @property
    def count(self) -> int:
        """Pictures."""
        return len(self.batch.y)

    @property
    def steps(self) -> int:
        """Local steps."""
        return self.rule.steps(self.count)

    @property
    def simulated(self) -> Mapping[str, Tensor] | None:
        """What the client would send, by name; None if it cannot."""
        made = self.runs.of(self.observation, self.batch)
        return None if made is None else made.update.tensors

    @cached_property
    def _fit(self) -> tuple[float, float, float, float]:
        """In float64: simulation times update, simulation squared, update squared, squared norm of their difference."""
        sent, simulated = self.observation.update.tensors, self.simulated
        size = norm(list(sent.values())) ** 2
        if simulated is None or not size:
            return 0.0, 0.0, size, math.inf
        pairs = [(simulated[n].double().flatten(), t.double().flatten()) for n, t in sent.items() if n in simulated]
        gaps = [simulated[name] - tensor if name in simulated else tensor for name, tensor in sent.items()]
        both, own = (
            math.fsum(values) for values in zip(*((float(s @ u), float(s @ s)) for s, u in pairs), strict=True)
        )
        return both, own, size, norm(gaps) ** 2

    @property
    def distance(self) -> float:
        """``||simulated - update|| / ||update||``; infinite where nothing can be simulated."""
        _, _, sent, gap = self._fit
        return math.sqrt(gap / sent) if sent else math.inf

    @cached_property
    def spread(self) -> float:
        """Distance between two runs of the client, relative to its update; 0 without randomness."""
        made = [self.runs.of(self.observation, self.batch, seed) for seed in (0, 1)]
        size = norm(list(self.observation.update.tensors.values()))
        if made[0] is None or made[1] is None or not size:
            return 0.0
        first, second = (one.update.tensors for one in made if one is not None)
        return norm([first[name] - second[name] for name in first]) / size

    @property
    def factor(self) -> float:
        """By what the simulation is multiplied to come nearest to the update; NaN where there is none."""
        both, own, _, _ = self._fit
        return both / own if own else math.nan

    @property
    def misfit(self) -> float:
        """Distance that is left whatever the factor, in [0, 1]."""
        both, own, sent, _ = self._fit
        return math.sqrt(max(0.0, 1 - both * both / own / sent)) if own and sent else 1.0

    def ruled(self, **changes: Any) -> "Case":
        """The same with another local rule."""
        return self._with(rule=replace(self.rule, **changes))

    def tasked(self, **changes: Any) -> "Case":
        """The same with another task."""
        network = self.observation.network
        return self._with(network=replace(network, task=replace(network.task, **changes)))

    def sent(self, changes: Mapping[str, Tensor]) -> "Case":
        """The same with other weights or buffers sent by the server."""
        network = self.observation.network
        return self._with(network=replace(network, weights={**network.weights, **changes}))

    def shared(self, tensors: Mapping[str, Tensor], rule: LocalRule | None = None) -> "Case":
        """The same with another update, of the kind that the rule says."""
        rule = rule or self.rule
        return self._with(update=Update(rule.share, tensors), rule=rule)

    def times(self, factor: float) -> "Case":
        """The same with the update multiplied."""
        return self.shared({name: tensor * factor for name, tensor in self.observation.update.tensors.items()})

    def holding(self, pictures: Tensor | None = None, y: Tensor | None = None) -> "Case":
        """The same with other pictures or labels; what the Observation says of them follows where it can."""
        batch = Batch(
            self.batch.pictures if pictures is None else pictures, self.batch.y if y is None else y, self.batch.areas
        )
        observation = self.observation
        changes: dict[str, Any] = {}
        if observation.count is not None and len(batch.y) != self.count:
            changes = {"count": len(batch.y), "known_pixels": None}
        if observation.labels is not None and (y is not None or changes):
            changes["labels"] = batch.y
        if observation.label_counts is not None and (y is not None or changes):
            known = self.task.counted and not self.task.objects
            counts = torch.bincount(batch.y, minlength=self.task.labels) if known else None
            changes["label_counts"] = counts
        return replace(self, observation=replace(observation, **changes) if changes else observation, batch=batch)

    def _with(self, **changes: Any) -> "Case":
        return replace(self, observation=replace(self.observation, **changes))


Candidates = Iterator[tuple[str, Case]]
Look = Callable[[Case], Candidates]
"""One fact: yields what the client may have done instead, as a clause, with the case as it would then be."""


def norm(tensors: list[Tensor]) -> float:
    """Of all tensors together, in float64."""
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors))
