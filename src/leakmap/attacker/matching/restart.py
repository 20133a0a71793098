"""One search: what is searched and how, and one restart of it in progress."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from leakmap.attacker.matching.context import Guess, SearchContext, Term
from leakmap.attacker.matching.decoders import Decoder, Free, Pixels, median_filter
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.engine import Engine, Kind
from leakmap.attacker.matching.masks import draw_masks, rate_penalty
from leakmap.attacker.matching.priors import Measured, Prior, TotalVariation, total_variation
from leakmap.attacker.matching.restarts import Run
from leakmap.attacker.matching.starts import Start, first_guess
from leakmap.attacker.matching.weighting import Weighting
from leakmap.errors import BadSetting, NonFinite
from leakmap.seeds import derive, generator

CHECK_EVERY = 25
CURVE_POINTS = 200
PLATEAU = 0.01
"""Relative fall of the lowest matching term below which it stands still."""
FLOOR = 0.01
"""Matching term from which down pictures are so close that priors only hold them back."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, and how.

    Args:
        distance: ``cosine``, ``layer_cosine``, ``angular`` or ``squared``.
        match: Weight of the matching term; 0 ignores the update, the client's buffers and labels that are not granted.
        weighting: Which entries of the update count; None: all alike.
        priors: What is believed about pictures.
        measured: What is believed about pictures once public ones have been measured.
        near: Weight of the mean squared distance from where the search begins, in normalized space: holds it close to
            a first answer.
        fade: Share of their weight that priors keep at the end; in between it falls as the step size does.
        terms: What is known about the client's forward passes.
        stages: What is searched, one stage after the other; each begins at the best pictures of the last.
        descent: Optimiser and schedule, begun anew in each stage.
        steps: Iterations of each restart, divided evenly among the stages.
        polish: Iterations at the end without any prior, from the best pictures so far, with an optimiser of its own;
            they are left out where the matching term is not near its floor by then.
        polishing: Optimiser and schedule of these.
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
        engine: How the matching term is differentiated, see :class:`leakmap.attacker.matching.engine.Engine`.
    """

    distance: Literal["cosine", "layer_cosine", "angular", "squared"] = "cosine"
    match: float = 1.0
    weighting: Weighting | None = None
    priors: tuple[Prior, ...] = (TotalVariation(1e-2),)
    measured: tuple[Measured, ...] = ()
    near: float = 0.0
    fade: float = 1.0
    terms: tuple[Term, ...] = ()
    stages: tuple[Decoder, ...] = (Pixels(),)
    descent: Descent = field(default_factory=Descent)
    steps: int = 400
    polish: int = 0
    polishing: Descent = field(default_factory=lambda: Descent(0.1, sign="none"))
    patience: int = 0
    start: Start = "normal"
    restarts: int = 1
    group: float = 0.0
    flatness: float = 0.0
    median_every: int = 0
    masks: float | None = None
    soft_labels: bool = False
    engine: Kind = "auto"

    def __post_init__(self) -> None:
        if self.patience and len(self.stages) > 1:
            raise BadSetting("A search in stages ends when its last stage ends: patience goes with a single stage.")

    @property
    def of_start(self) -> frozenset[str]:
        """The facts that the start shows."""
        return frozenset({"known_pixels"} if self.start == "known_pixels" else ())


class Restart:
    """One restart in progress.

    Args:
        how: The search.
        context: What stays the same throughout.
        engine: Of the matching term and of penalties; None where there are neither.
        restart: Its number.
        begin: ``(N, C, H, W)`` normalized pictures where it begins; None: as the search says.
    """

    def __init__(
        self, how: Search, context: SearchContext, engine: Engine | None, restart: int, begin: Tensor | None = None
    ):
        self.how, self.context, self.engine, self.restart = how, context, engine, restart
        self.lost: NonFinite | None = None
        self.plateau: int | None = None
        self.returns: list[int] = []
        self.marks: list[float] = []
        network, count = context.observation.network, len(context.y)
        self.task = network.task
        self.noise = generator(context.seed, "noise", restart)
        context.observation.need(*how.of_start)
        given = context.observation.known_pixels
        known = None if given is None else network.task.normalize(given.cpu())
        source = generator(context.seed, "start", restart)
        start = first_guess(how.start, (count, *network.task.shape), source, known) if begin is None else begin
        self.best_x = self.begun = start.to(network.device, network.dtype)
        self.priors = (*how.priors, *(measured(context) for measured in how.measured))
        self.best_y = context.y
        self.best = torch.full((), math.inf, dtype=torch.float64, device=network.device)
        self.lapses = torch.zeros((), dtype=torch.int64, device=network.device)
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
        self.unpolished = max(1, how.steps - how.polish)
        self.length = max(1, self.unpolished // len(how.stages))
        self.descent = how.descent
        self._enter(how.stages[0], self.best_x, None)

    def _enter(self, stage: Decoder, start: Tensor, before: Free | None) -> None:
        context = replace(self.context, seed=derive(self.context.seed, "stage", self.restart))
        self.stage, self.free = stage, stage(context, start, before)
        self.leaves = [*self.free.tensors, *([] if self.logits is None else [self.logits]), *self.masks]
        self.optimizer = self.descent.start(self.leaves)

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
        how, stages, priors = self.how, self.how.stages, True
        if step >= self.unpolished:
            within, length, priors = step - self.unpolished, how.steps - self.unpolished, False
            if not within:
                if not float(self.best) < FLOOR:
                    self.plateau = step
                    return
                self.descent = how.polishing
                self._enter(stages[-1], self.best_x, self.free)
        else:
            stage = min(step // self.length, len(stages) - 1)
            within = step - self.length * stage
            length = self.length if stage < len(stages) - 1 else self.unpolished - self.length * stage
            if step and not within:
                self._enter(stages[stage], self.best_x if self.values else self.pictures(), self.free)
        for group in self.optimizer.param_groups:
            group["lr"] = self.descent.size(within, length) * self.free.pace
        if self.engine is not None:
            self.engine.iteration(step)
        self.optimizer.step(lambda: self._evaluate(within, length, mean, priors))
        self.free.project()
        with torch.no_grad():
            for mask in self.masks:
                mask.clamp_(0, 1)
            if how.median_every and (step + 1) % how.median_every == 0:
                for tensor in self.free.tensors:
                    tensor.copy_(median_filter(tensor))
        last = step == how.steps - 1
        if (step % CHECK_EVERY == 0 or last) and int(self.lapses) > min(step, CHECK_EVERY):
            if not bool(torch.isfinite(self.best)) or int(self.lapses) > step:
                self.lost = NonFinite(f"The search left the finite numbers by iteration {step} of {how.steps}.")
            elif self.returns and int(self.lapses) >= step - self.returns[-1]:
                self.plateau = step + 1  # nor does it come away from these: they are the answer
            elif not last:  # inertia did not carry it out of there: it begins anew at the best pictures so far
                self.returns.append(step)
                self.lapses.zero_()
                self._enter(self.stage, self.best_x, self.free)
        elif last and self.values and not bool(torch.isfinite(self.best)):
            self.lost = NonFinite(f"The matching term was never finite in {how.steps} iterations.")
        elif how.patience and step % CHECK_EVERY == 0 and self._stands_still():
            self.plateau = step + 1

    def _stands_still(self) -> bool:
        self.marks.append(float(self.best))
        back = -(-self.how.patience // CHECK_EVERY)
        return len(self.marks) > back and self.marks[-1] > (1 - PLATEAU) * self.marks[-1 - back]

    def _evaluate(self, step: int, steps: int, mean: Tensor | None, priors: bool) -> float:
        """Sets the gradients of the leaves; returns the objective, for optimisers that search along a line."""
        with torch.enable_grad():
            x = self.free.decode()
            y = self.context.y if self.logits is None else self.task.searched(self.logits)
        guess = Guess(x.detach(), y.detach(), tuple(mask.detach() for mask in self.masks))
        pulls = [torch.zeros_like(tensor) for tensor in (x, *([] if self.logits is None else [y]), *self.masks)]
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        if self.engine is not None:
            total = self._pull(self.engine, guess, pulls)
        if priors:
            faded = self.how.fade + (1 - self.how.fade) * self.descent.size(step, steps) / self.descent.lr
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
        adam = self.descent.optimizer == "adam"
        finite = torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all()
        # A network can be so sure of a guess that its update underflows; inertia carries the search out of there.
        self.lapses = torch.where(finite, 0, self.lapses + 1)
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            sound = torch.where(finite, gradient, torch.zeros_like(gradient))
            leaf.grad = self.descent.shape(sound, step, steps, self.noise) if adam else sound
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
        terms = [weight * prior(held) for prior in self.priors]
        if self.how.near:
            terms.append(self.how.near * (held - self.begun).square().mean())
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
