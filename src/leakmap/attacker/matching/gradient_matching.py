"""The composable core of every attack by optimisation."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from leakmap.attacker.buffers import assumed_rule
from leakmap.attacker.labels import Labels, label_rules, recover, to_search
from leakmap.attacker.matching.context import Guess, SearchContext, Term
from leakmap.attacker.matching.decoders import Decoder, Free, Pixels, median_filter, merge_epochs
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine, Kind
from leakmap.attacker.matching.masks import draw_masks, rate_penalty
from leakmap.attacker.matching.priors import Prior, TotalVariation, total_variation
from leakmap.attacker.matching.restarts import Run, choose
from leakmap.attacker.matching.starts import Start, first_guess
from leakmap.attacker.matching.weighting import Weighting
from leakmap.attacker.protocol import Cost, free_to_fit, nothing_to_fit, nothing_to_restore
from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.defences import NONE
from leakmap.errors import BadSetting, NonFinite
from leakmap.observation.observation import Observation
from leakmap.seeds import derive, generator

CHECK_EVERY = 25
CURVE_POINTS = 200
LBFGS_EVALUATIONS = 25
"""Most evaluations in one iteration of L-BFGS: torch ends its 20 inner iterations after 20 * 5 // 4."""
PLATEAU = 0.01
"""Relative fall of the lowest matching term below which it stands still."""


@dataclass(frozen=True, kw_only=True)
class GradientMatching:
    """Searches for pictures whose simulated update matches the observed one.

    Of each restart the iterate with the lowest matching term is kept, at the point where the term was computed; of
    several restarts the one whose kept term is lowest, ties within 1 % going to the lower total variation. Priors and
    penalties never enter a choice.

    Args:
        distance: ``cosine``, ``layer_cosine``, ``angular`` or ``squared``.
        match: Weight of the matching term; 0 ignores the update, the client's buffers and labels that are not granted.
        weighting: Which entries of the update count; None: all alike.
        priors: What is believed about pictures.
        fade: Share of their weight that priors keep at the end; in between it falls as the step size does.
        terms: What is known about the client's forward passes.
        stages: What is searched, one stage after the other; each begins at the best pictures of the last.
        descent: Optimiser and schedule, begun anew in each stage.
        steps: Iterations of each restart, divided evenly among the stages.
        patience: Iterations in which the lowest matching term must fall by 1 %, or the restart ends; 0: it never does.
        start: Where it begins, see :func:`leakmap.attacker.matching.starts.first_guess`; ``known_pixels`` needs
            that grant.
        restarts: Independent starts.
        group: Weight that pulls the restarts towards their mean, which are then searched in step.
        flatness: Share ``a`` in [0, 1] of the gradient taken at ``x + 0.05 g / |g|`` instead of ``x``: penalises a
            steep matching term.
        median_every: Iterations between two 3x3 median filters of the pixels; 0: none.
        masks: Weight of the dropout rates when masks are searched together with the pictures; None: the expected
            network is simulated.
        soft_labels: Whether labels are searched together with the pictures: classes as the softmax of free values.
        labels: ``auto`` or the name of a label rule, see :func:`leakmap.attacker.labels.recover`.
        mode: ``client`` simulates the client's mode, ``eval`` forces inference mode.
        engine: How the matching term is differentiated, see :class:`leakmap.attacker.matching.engine.Engine`.
        leaky_model: An architecture known to leak to the attack.
        unless: Why the search is no more than a plainer one on a client, empty if it is more; None: it always is.
    """

    distance: Literal["cosine", "layer_cosine", "angular", "squared"] = "cosine"
    match: float = 1.0
    weighting: Weighting | None = None
    priors: tuple[Prior, ...] = (TotalVariation(1e-2),)
    fade: float = 1.0
    terms: tuple[Term, ...] = ()
    stages: tuple[Decoder, ...] = (Pixels(),)
    descent: Descent = field(default_factory=Descent)
    steps: int = 400
    patience: int = 0
    start: Start = "normal"
    restarts: int = 1
    group: float = 0.0
    flatness: float = 0.0
    median_every: int = 0
    masks: float | None = None
    soft_labels: bool = False
    labels: str = "auto"
    mode: Literal["client", "eval"] = "client"
    engine: Kind = "auto"
    leaky_model: str = "convnet"
    unless: Callable[[Observation], str] | None = None

    fits = ""
    fit_cost = free_to_fit
    fit = nothing_to_fit
    restored = nothing_to_restore

    def __post_init__(self) -> None:
        if self.labels != "auto":
            label_rules.constructor(self.labels)
        if self.patience and len(self.stages) > 1:
            raise BadSetting("A search in stages ends when its last stage ends: patience goes with a single stage.")

    @property
    def needs(self) -> frozenset[str]:
        """The facts that it cannot do without."""
        return frozenset({"count"}).union(self.of_start, *(term.needs for term in self.terms))

    @property
    def of_start(self) -> frozenset[str]:
        """The facts that the start shows."""
        return frozenset({"known_pixels"} if self.start == "known_pixels" else ())

    @property
    def cost(self) -> Cost:
        """What it takes; a blind search evaluates no matching term."""
        inner = LBFGS_EVALUATIONS if self.descent.optimizer == "lbfgs" else 1
        evaluations = inner * (2 if self.flatness else 1) if self.match else 0
        return Cost(evaluations, self.steps, self.restarts)

    def blind(self) -> "GradientMatching":
        """The same search without the update and without all else that came from this client: its floor."""
        terms = tuple(blind for term in self.terms if (blind := term.blind()) is not None)
        return replace(self, match=0.0, terms=terms, masks=None, soft_labels=False, flatness=0.0, unless=None)

    def why_not(self, observation: Observation) -> str:
        """Why it is no more than a plainer search on this client."""
        return self.unless(observation) if self.unless is not None else ""

    def __call__(self, observation: Observation, seed: int, tick: Tick) -> Reconstruction:
        """Attacks.

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
        searches = [Restart(self, context, engine, restart) for restart in range(self.restarts)]
        self._run(searches, tick)
        alive = [search for search in searches if search.lost is None]
        if not alive:
            raise searches[0].lost or NonFinite("The search left the finite numbers.")
        results = [search.result() for search in alive]
        best = choose(results)
        used = assumed.used.union(found.used, {"count"}, self.of_start, *(penalty.used for penalty in penalties))
        notes = self._notes(context, found, assumed.statement)
        notes |= {"restart": searches.index(alive[best])} | {
            f"known {i}" if i else "known": p.note for i, p in enumerate(penalties) if p.note
        }
        if plateaus := [search.plateau for search in alive if search.plateau is not None]:
            notes["plateau at iteration"] = ", ".join(map(str, plateaus))
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


class Restart:
    """One restart in progress."""

    def __init__(self, how: GradientMatching, context: SearchContext, engine: Engine | None, restart: int):
        self.how, self.context, self.engine, self.restart = how, context, engine, restart
        self.lost: NonFinite | None = None
        self.plateau: int | None = None
        self.marks: list[float] = []
        network, count = context.observation.network, len(context.y)
        self.task = network.task
        self.noise = generator(context.seed, "noise", restart)
        context.observation.need(*how.of_start)
        given = context.observation.known_pixels
        known = None if given is None else network.task.normalize(given.cpu())
        source = generator(context.seed, "start", restart)
        start = first_guess(how.start, (count, *network.task.shape), source, known)
        self.best_x = start.to(network.device, network.dtype)
        self.best_y = context.y
        self.best = torch.full((), math.inf, dtype=torch.float64, device=network.device)
        self.finite = torch.full((), True, device=network.device)
        self.values: list[Tensor] = []
        self.logits: Tensor | None = None
        if how.soft_labels:
            shape = network.task.free(count)
            drawn = torch.randn(shape, generator=generator(context.seed, "soft labels", restart))
            self.logits = drawn.to(self.best_x).requires_grad_()
        self.masks: list[Tensor] = []
        if engine is not None and engine.masks is not None:
            if not engine.masks.shapes:
                engine.record_masks(self.best_x, context.y)
            drawn_masks = draw_masks(engine.masks.shapes, self.best_x, generator(context.seed, "masks", restart))
            self.masks = [mask.requires_grad_() for mask in drawn_masks]
        self.length = max(1, how.steps // len(how.stages))
        self._enter(how.stages[0], self.best_x, None)

    def _enter(self, stage: Decoder, start: Tensor, before: Free | None) -> None:
        context = replace(self.context, seed=derive(self.context.seed, "stage", self.restart))
        self.free = stage(context, start, before)
        self.leaves = [*self.free.tensors, *([] if self.logits is None else [self.logits]), *self.masks]
        self.optimizer = self.how.descent.start(self.leaves)

    @property
    def over(self) -> bool:
        """Whether it left the finite numbers, or stands still."""
        return self.lost is not None or self.plateau is not None

    def pictures(self) -> Tensor:
        """What it shows now, detached."""
        return self.free.decode().detach()

    def mask_share(self) -> float:
        """Free mask values for each free value of the pictures."""
        return sum(mask.numel() for mask in self.masks) / max(1, self.best_x.numel())

    def iterate(self, step: int, mean: Tensor | None = None) -> None:
        """One iteration; ``mean`` of all restarts pulls at this one."""
        how, stages = self.how, self.how.stages
        if step and step % self.length == 0 and step // self.length < len(stages):
            best = self.best_x if self.values else self.pictures()
            self._enter(stages[step // self.length], best, self.free)
        within = step - self.length * min(step // self.length, len(stages) - 1)
        length = self.length if step < self.length * (len(stages) - 1) else how.steps - self.length * (len(stages) - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = how.descent.size(within, length) * self.free.pace
        if self.engine is not None:
            self.engine.iteration(step)
        self.optimizer.step(lambda: self._evaluate(within, length, mean))
        self.free.project()
        with torch.no_grad():
            for mask in self.masks:
                mask.clamp_(0, 1)
            if how.median_every and (step + 1) % how.median_every == 0:
                for tensor in self.free.tensors:
                    tensor.copy_(median_filter(tensor))
        last = step == how.steps - 1
        if (step % CHECK_EVERY == 0 or last) and not bool(self.finite):
            self.lost = NonFinite(f"The search left the finite numbers by iteration {step} of {how.steps}.")
        elif last and self.values and not bool(torch.isfinite(self.best)):
            self.lost = NonFinite(f"The matching term was never finite in {how.steps} iterations.")
        elif how.patience and step % CHECK_EVERY == 0 and self._stands_still():
            self.plateau = step + 1

    def _stands_still(self) -> bool:
        self.marks.append(float(self.best))
        back = -(-self.how.patience // CHECK_EVERY)
        return len(self.marks) > back and self.marks[-1] > (1 - PLATEAU) * self.marks[-1 - back]

    def _evaluate(self, step: int, steps: int, mean: Tensor | None) -> float:
        """Sets the gradients of the leaves; returns the objective, for optimisers that search along a line."""
        with torch.enable_grad():
            x = self.free.decode()
            y = self.context.y if self.logits is None else self.task.searched(self.logits)
        guess = Guess(x.detach(), y.detach(), tuple(mask.detach() for mask in self.masks))
        pulls = [torch.zeros_like(tensor) for tensor in (x, *([] if self.logits is None else [y]), *self.masks)]
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        if self.engine is not None:
            total = self._pull(self.engine, guess, pulls)
        faded = self.how.fade + (1 - self.how.fade) * self.how.descent.size(step, steps) / self.how.descent.lr
        total = total + self._believe(guess.x, pulls[0], mean, faded)
        if self.masks and self.engine is not None and self.engine.masks is not None and self.how.masks:
            held = [mask.detach().requires_grad_() for mask in guess.masks]
            penalty = self.how.masks * rate_penalty(held, self.engine.masks.shapes)
            for pull, gradient in zip(pulls[-len(held) :], torch.autograd.grad(penalty, held), strict=True):
                pull += gradient
            total = total + penalty.detach()
        outputs = [x, *([] if self.logits is None else [y]), *self.masks]
        moved = [(output, pull) for output, pull in zip(outputs, pulls, strict=True) if output.requires_grad]
        gradients = torch.autograd.grad(
            [output for output, _ in moved],
            self.leaves,
            [pull for _, pull in moved],
            allow_unused=True,
            materialize_grads=True,
        )
        adam = self.how.descent.optimizer == "adam"
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            self.finite = self.finite & torch.isfinite(gradient).all()
            leaf.grad = self.how.descent.shape(gradient, step, steps, self.noise) if adam else gradient
        return float(total) if not adam else 0.0

    def _pull(self, engine: Engine, guess: Guess, pulls: list[Tensor]) -> Tensor:
        how = self.how
        found = engine.value_and_grad(guess)
        self._keep(guess, found.match)
        gradients = found.gradient
        if how.flatness:
            reach = 0.05 * gradients[0] / gradients[0].norm().clamp(min=1e-30)
            beyond = engine.value_and_grad(replace(guess, x=guess.x + reach)).gradient
            gradients = [(1 - how.flatness) * g + how.flatness * b for g, b in zip(gradients, beyond, strict=True)]
        soft_but_fixed = guess.y.is_floating_point() and self.logits is None
        for pull, gradient in zip(pulls, [gradients[0], *gradients[1 + soft_but_fixed :]], strict=True):
            pull += gradient
        return how.match * found.match + found.penalty

    def _keep(self, guess: Guess, match: Tensor) -> None:
        if not self.how.match:
            return
        better = match < self.best
        self.best = torch.where(better, match, self.best)
        if self.best_x.shape != guess.x.shape:
            self.best_x = guess.x.clone()
        self.best_x = torch.where(better, guess.x, self.best_x)
        if self.logits is not None:
            if self.best_y.shape != guess.y.shape:
                self.best_y = guess.y.clone()
            self.best_y = torch.where(better, guess.y, self.best_y)
        self.values.append(match)

    def _believe(self, x: Tensor, pull: Tensor, mean: Tensor | None, weight: float) -> Tensor:
        held = x.detach().requires_grad_()
        terms = [weight * prior(held) for prior in self.how.priors]
        if mean is not None:
            terms.append(self.how.group * (held - mean).square().mean())
        if not terms:
            return torch.zeros((), dtype=torch.float64, device=x.device)
        total = torch.stack(terms).sum()
        if total.requires_grad:
            pull += torch.autograd.grad(total, held)[0]
        return total.detach().double()

    def result(self) -> Run:
        """Where it ended: the kept iterate, or the last one where there was no update to match."""
        y = self.task.settled(self.best_y)
        if not self.values:
            x = self.pictures()
            return Run(x, y, math.nan, (), float(total_variation(x)))
        every = max(1, len(self.values) // CURVE_POINTS)
        curve = tuple(torch.stack(self.values[::every]).tolist())
        return Run(self.best_x, y, float(self.best), curve, float(total_variation(self.best_x)))
