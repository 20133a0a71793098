"""The search for the facts that explain an update: one change, then the best changes together."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from leakmap.auditing.case import Case, Look
from leakmap.doctor.hypotheses import GROUPS, LAST
from leakmap.doctor.hypotheses.payload import learning_rate

NEAR, MUCH = 0.02, 0.05
"""Distance that TF32 or mixed precision of the client explains, when no fact does, and the share of the first distance
that a change may leave to be taken for what is wrong then."""
DEPTH, BEAM = 3, 4
"""Facts that may be wrong at once, and how many of the best changes are carried on."""
COUPLED = ("momentum", "optimizer")
"""Facts without which a learning rate cannot be judged, nor they without it: both are tried together."""
PROMISING = 0.95
"""Misfit, relative to that of the facts as they are, below which one more change is looked for beyond a second."""
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Hypothesis:
    """One change of the facts.

    Args:
        name: The fact.
        what: What the client did, as a clause.
    """

    name: str
    what: str


@dataclass(frozen=True)
class State:
    """Changes of the facts, and the case with them made.

    Args:
        case: With the changes.
        changes: In the order in which they were made.
    """

    case: Case
    changes: tuple[Hypothesis, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The facts that were changed."""
        return tuple(change.name for change in self.changes)

    @property
    def told(self) -> str:
        """The changes as one clause."""
        return " and ".join(change.what for change in self.changes)

    def then(self, name: str, what: str, case: Case) -> "State":
        """With one more change; a second one of the same fact takes the place of the first."""
        return State(case, (*(change for change in self.changes if change.name != name), Hypothesis(name, what)))


class FactSearch:
    """A search over :data:`leakmap.doctor.hypotheses.GROUPS`.

    Args:
        threshold: Distance up to which a simulation counts as the update.
        limit: Local steps after which the search ends.
        progress: Called with the finished fraction.

    Attributes:
        tried: Every set of changes, in words, with its distance.
        explaining: What explains the update.
        nearest: What came nearest.
        exact: The threshold as given; it is raised where mixed precision explains what is left.
        stopped: Whether the limit ended it.
    """

    def __init__(self, threshold: float, limit: int, progress: Progress):
        self.threshold, self.limit, self.progress = threshold, limit, progress
        self.tried: list[tuple[str, float]] = []
        self.explaining: list[State] = []
        self.nearest: State | None = None
        self.exact, self.stopped = threshold, False
        self._close: list[State] = []

    def best(self, start: Case) -> State:
        """What explains the update best, else what came nearest; nothing where the facts are right."""
        if start.distance <= self.threshold or self.nearest is None:
            return State(start)
        if self.explaining:
            return min(self.explaining, key=lambda state: round(state.case.distance / self.threshold, 1))
        return self.nearest

    def run(self, start: Case) -> None:
        """Changes one fact after another, then the best changes together, then fits what is in no list."""
        self._combine(start)
        if not self.explaining:
            found = [state for fit in LAST for state in self._changed(State(start), (fit,))]
            self.explaining = _distinct([s for s in found if s.case.distance <= self.threshold])
        if not self.explaining:
            self._settle()

    def _combine(self, start: Case) -> None:
        beam = [State(start)]
        for depth in range(DEPTH):
            reached: list[State] = []
            for place, state in enumerate(beam):
                for number, group in enumerate(GROUPS):
                    self.progress((depth + (place + number / len(GROUPS)) / len(beam)) / DEPTH)
                    found = list(self._changed(state, group))
                    self.explaining = _distinct([s for s in found if s.case.distance <= self.threshold])
                    if self.explaining:
                        return
                    reached = _promising([*reached, *found])
                    near = [s for s in found if s.case.distance <= min(NEAR, MUCH * start.distance)]
                    # A factor that is fitted beside another change brings much that is wrong within a hundredth.
                    self._close += [s for s in near if len(s.changes) == 1 or "factor" not in s.names]
                    if self.stopped:
                        return
            beam = reached
            if depth and (not beam or beam[0].case.misfit > PROMISING * start.misfit):
                return

    def _settle(self) -> None:
        """What comes near enough for mixed precision, with as few changes as do, where nothing explains the update."""
        if self._close:
            self.threshold = 1.1 * min(state.case.distance for state in self._close)
            close = [state for state in self._close if state.case.distance <= self.threshold]
            fewest = min(len(state.changes) for state in close)
            self.explaining = _distinct([state for state in close if len(state.changes) == fewest])

    def _changed(self, state: State, group: Sequence[tuple[str, Look]]) -> Iterator[State]:
        for name, look in group:
            if name != "lr" and any(change.name == name for change in state.changes):
                continue
            for what, case in look(state.case):
                found = state.then(name, what, case)
                yield self._seen(found)
                if name in COUPLED and case.distance > self.threshold:
                    yield from (self._seen(found.then("lr", *retuned)) for retuned in learning_rate(case))
                if case.runs.steps > self.limit:
                    self.stopped = True
                    return

    def _seen(self, state: State) -> State:
        self.tried.append((state.told, state.case.distance))
        if self.nearest is None or state.case.distance < self.nearest.case.distance:
            self.nearest = state
        return state


def _distinct(states: list[State]) -> list[State]:
    """States without those whose update and simulation another one has too."""
    kept: list[State] = []
    for state in states:
        if not any(_alike(state.case, other.case) for other in kept):
            kept.append(state)
    return kept


def _alike(a: Case, b: Case) -> bool:
    first, second = a.observation, b.observation
    return (
        first.rule == second.rule
        and first.network.task == second.network.task
        and first.network.weights is second.network.weights
        and torch.equal(a.batch.y, b.batch.y)
        and a.batch.pictures is b.batch.pictures
        and all(torch.equal(t, second.update.tensors[name]) for name, t in first.update.tensors.items())
    )


def _promising(states: list[State]) -> list[State]:
    """The best of each fact, those first whose direction fits best."""
    kept: dict[tuple[str, ...], State] = {}
    for state in sorted(states, key=lambda s: (round(s.case.misfit, 4), min(s.case.distance, 1e9))):
        if math.isfinite(state.case.distance):
            kept.setdefault(state.names, state)
    return list(kept.values())[:BEAM]
