"""The composable core of every attack by optimisation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from leakmap.attacker.buffers import assumed_rule
from leakmap.attacker.labels import Labels, label_rules, recover, to_search
from leakmap.attacker.matching.context import SearchContext
from leakmap.attacker.matching.decoders import merge_epochs
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine
from leakmap.attacker.matching.restart import CHECK_EVERY, Restart, Search
from leakmap.attacker.matching.restarts import choose
from leakmap.attacker.protocol import Cost, free_to_fit, nothing_to_fit, nothing_to_restore
from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.defences import NONE
from leakmap.errors import NonFinite
from leakmap.observation.observation import Observation
from leakmap.seeds import derive

LBFGS_EVALUATIONS = 25
"""Most evaluations in one iteration of L-BFGS: torch ends its 20 inner iterations after 20 * 5 // 4."""


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Search):
    """Searches for pictures whose simulated update matches the observed one.

    Of each restart the iterate with the lowest matching term is kept, at the point where the term was computed; of
    several restarts the one whose kept term is lowest, ties within 1 % going to the lower total variation. Priors and
    penalties never enter a choice.

    Args:
        labels: ``auto`` or the name of a label rule, see :func:`leakmap.attacker.labels.recover`.
        mode: ``client`` simulates the client's mode, ``eval`` forces inference mode.
        leaky_model: An architecture known to leak to the attack.
        unless: Why the search is no more than a plainer one on a client, empty if it is more; None: it always is.
    """

    labels: str = "auto"
    mode: Literal["client", "eval"] = "client"
    leaky_model: str = "convnet"
    unless: Callable[[Observation], str] | None = None

    fits = ""
    fit_cost = free_to_fit
    fit = nothing_to_fit
    restored = nothing_to_restore

    def __post_init__(self) -> None:
        if self.labels != "auto":
            label_rules.constructor(self.labels)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        """The facts that it cannot do without."""
        return frozenset({"count"}).union(self.of_start, self._needs)

    @property
    def _needs(self) -> frozenset[str]:
        """Of terms, priors and decoders."""
        own = (getattr(stage, "needs", frozenset[str]()) for stage in self.stages)
        return frozenset[str]().union(*own, *(part.needs for part in (*self.terms, *self.measured)))

    @property
    def cost(self) -> Cost:
        """What it takes; a blind search evaluates no matching term."""
        inner = LBFGS_EVALUATIONS if self.descent.optimizer == "lbfgs" else 1
        evaluations = inner * (2 if self.flatness else 1) if self.match else 0
        return Cost(evaluations, self.steps, self.restarts)

    def paced(self, steps: int, restarts: int | None = None) -> Self:
        """The same with so many iterations in each restart, and the same share of them for polishing.

        Args:
            steps: Iterations.
            restarts: Independent starts; None: as many as now.
        """
        polish = steps * self.polish // self.steps
        return replace(self, steps=steps, polish=polish, restarts=self.restarts if restarts is None else restarts)

    def blind(self) -> "GradientMatching":
        """The same search without the update and without all else that came from this client: its floor."""
        terms = tuple(blind for term in self.terms if (blind := term.blind()) is not None)
        return replace(self, match=0.0, terms=terms, masks=None, soft_labels=False, flatness=0.0, unless=None)

    def why_not(self, observation: Observation) -> str:
        """Why it is no more than a plainer search on this client."""
        return self.unless(observation) if self.unless is not None else ""

    def __call__(self, observation: Observation, seed: int, tick: Tick, begin: Tensor | None = None) -> Reconstruction:
        """Attacks.

        Args:
            observation: All that the attacker holds.
            seed: All randomness comes from it.
            tick: Called with the finished fraction.
            begin: ``(N, C, H, W)`` in [0, 1], where every restart begins; None: where ``start`` says.

        Raises:
            NotGranted: a needed fact is withheld.
            NotApplicable: the precondition of a term does not hold.
            NonFinite: the search left the finite numbers in every restart.
        """
        if not self.match:
            observation = replace(observation, buffers=None)
        assumed = assumed_rule(observation)
        rule = replace(assumed.rule, mode="eval") if self.mode == "eval" else assumed.rule
        found = self.labels_of(observation, seed)
        y = found.y if found.probabilities is None else found.probabilities
        observation.need(*sorted(self.needs))
        context = SearchContext(observation, rule, y, seed)
        penalties = [term(context) for term in self.terms]
        engine = None
        if self.match or penalties:
            engine = Engine(
                context,
                DISTANCES[self.distance],
                kind=self.engine,
                weight=self.match,
                weighting=self.weighting,
                penalties=penalties,
                masks=self.masks is not None,
            )
        first = None if begin is None else observation.network.task.normalize(begin)
        searches = [Restart(self, context, engine, restart, first) for restart in range(self.restarts)]
        self._run(searches, tick)
        alive = [search for search in searches if search.lost is None]
        if not alive:
            raise searches[0].lost or NonFinite("The search left the finite numbers.")
        results = [search.result() for search in alive]
        best = choose(results)
        used = assumed.used.union(found.used, {"count"}, self.of_start, self._needs, *(p.used for p in penalties))
        notes = self._notes(context, found, assumed.statement)
        notes |= {"restart": searches.index(alive[best])} | {
            f"known {i}" if i else "known": p.note for i, p in enumerate(penalties) if p.note
        }
        if plateaus := [search.plateau for search in alive if search.plateau is not None]:
            notes["plateau at iteration"] = ", ".join(map(str, plateaus))
        if returns := [step for search in alive for step in search.returns]:
            notes["back at the best pictures at iteration"] = ", ".join(map(str, returns))
        if engine is not None and self.match:
            notes["engine"] = str(engine)
        if len(alive) < len(searches):
            notes["restarts lost"] = len(searches) - len(alive)
        if engine is not None and engine.masks is not None:
            notes["mask values per pixel value"] = round(alive[best].mask_share(), 3)
        run = results[best]
        x = merge_epochs(run.x, run.y) if run.x.ndim == 5 else run.x
        pictures = observation.network.task.denormalize(x)
        return Reconstruction(pictures, run.y, run.objective, run.curve, notes, used=used)

    def labels_of(self, observation: Observation, seed: int) -> Labels:
        """The labels that it simulates the client with.

        Raises:
            NotGranted: the number of examples is not granted, or another fact that a label rule cannot do without.
            NotApplicable: labels are not granted, and neither read nor searched.
        """
        if self.soft_labels:
            return to_search(observation)
        return recover(observation, self.labels if self.match else "blind", derive(seed, "labels"))

    def _notes(self, context: SearchContext, labels: Labels, assumed: str) -> dict[str, str | int | float]:
        notes: dict[str, str | int | float] = {
            "labels": labels.rule,
            "label confidence": labels.confidence,
            "mode simulated": context.rule.mode,
        }
        if context.rule.defence != NONE:
            notes["defence"] = context.rule.defence
        if context.rule.batch_size is not None and (labels.rule != "granted" or context.rule.shuffle):
            notes["label order"] = "unknown: mini-batches are simulated in one order for all epochs"
        return notes | ({"assumed": assumed} if assumed else {})

    def _run(self, searches: "list[Restart]", tick: Tick) -> None:
        """In step where restarts pull each other, else one after the other."""
        if self.group:
            for step in range(self.steps):
                alive = [search for search in searches if not search.over]
                together = [search.pictures() for search in alive]
                mean = torch.stack(together).mean(0) if together else None
                for search in alive:
                    search.iterate(step, mean)
                if step % CHECK_EVERY == 0:
                    tick(step / self.steps)
        else:
            for i, search in enumerate(searches):
                for step in range(self.steps):
                    if search.over:
                        break
                    search.iterate(step)
                    if step % CHECK_EVERY == 0:
                        tick((i + step / self.steps) / len(searches))
        tick(1.0)
