"""Who attacks: the hand-written loop, and the engines of leakmap. Others are in ``of_breaching`` and ``of_leakpro``.

A contestant evaluates the matching term and its gradient at the guess of a case: cosine distance of Geiping et al.
2020, nothing else. A whole attack adds what is the same for all: total variation in the form of breaching and signed
Adam, in the box.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers.watches import Enough, Watch
from benchmarks.peers.works import Case
from leakmap import attacks
from leakmap.attacker.matching.context import Guess, SearchContext
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine, Kind
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.priors import Prior, SmoothVariation
from leakmap.client_step import arrange
from leakmap.errors import NotApplicable
from leakmap.local_rule import LocalRule
from leakmap.models.adapt import freeze_running_statistics
from leakmap.registry.spec import Spec

SEED = 0
STEP, FORWARD, LOOP, TOOLS_LOOP = "training step", "forward pass", "hand-written loop", "hand-written loop, .backward()"
EXACT, FROZEN, AUTO = "leakmap exact", "leakmap frozen", "leakmap auto"
BREACHING, LEAKPRO, LEAKPRO_MODULAR = "breaching 0.1.2", "LeakPro, class-based", "LeakPro, modular"
KINDS: Mapping[str, Kind] = {EXACT: "exact", FROZEN: "frozen", AUTO: "auto"}
BREACHING_IG, BREACHING_MODERN = "breaching, invertinggradients", "breaching, modern"
LEAKPRO_IG, LEAKPRO_RUNNING = "LeakPro, inverting gradients", "LeakPro, GIA Running"
PUBLISHED_STEPS, PUBLISHED_TV = 24_000, 0.2

Answer = tuple[Tensor, Tensor]
"""The matching term and its gradient."""
Evaluate = Callable[[], Answer | None]


@dataclass(frozen=True)
class Settings:
    """Of a whole attack. The published ones are those of breaching: signed Adam of 0.1, in steps.

    Args:
        steps: Iterations, over which the step size is scheduled; None: as many as the attack has by default.
        tv: Weight of the total variation; None: the default of the attack, in a form of its own.
        own: Whether optimiser and schedule are the defaults of leakmap instead of the published ones.
        lr: Of leakmap, in place of the default step size.
    """

    steps: int | None = PUBLISHED_STEPS
    tv: float | None = PUBLISHED_TV
    own: bool = False
    lr: float | None = None

    def published(self) -> tuple[int, float]:
        """Steps and weight of the total variation; the published ones where they are None."""
        steps = PUBLISHED_STEPS if self.steps is None else self.steps
        return steps, PUBLISHED_TV if self.tv is None else self.tv


Attack = Callable[[Case, Settings, Watch], None]
Preset = Callable[[Case, int, Watch], None]
"""A whole attack in all of its published settings but for the number of iterations, over which its schedule runs."""


def matching_term(gradients: tuple[Tensor, ...], target: list[Tensor]) -> Tensor:
    """Cosine distance as loops write it: tensor by tensor, the norm of the target every time (Geiping's own code)."""
    dot, square, target_square = (torch.zeros((), device=target[0].device) for _ in range(3))
    for g, t in zip(gradients, target, strict=True):
        dot = dot + (g * t).sum()
        square = square + g.pow(2).sum()
        target_square = target_square + t.pow(2).sum()
    return 1 - dot / (square.sqrt() * target_square.sqrt())


class HandWritten:
    """Double backward in a few lines.

    Args:
        case: What is attacked.
        weights_too: Ends in ``backward()``, as tools write it, which forms second-order gradients of the weights too;
            else in ``autograd.grad`` with respect to the pictures alone.
    """

    def __init__(self, case: Case, *, weights_too: bool = False):
        network = case.observation.network
        self.module = freeze_running_statistics(arrange(network.module(), LocalRule(mode=case.mode)))
        self.loss, self.case, self.weights_too = network.loss(), case, weights_too
        self.parameters = list(self.module.parameters())
        self.target = list(case.observation.update.tensors.values())

    def __call__(self) -> Answer:
        """One evaluation."""
        x = self.case.guess.detach().requires_grad_()
        term = self.term(x, graph=True)
        if not self.weights_too:
            return term.detach(), torch.autograd.grad(term, x)[0]
        self.module.zero_grad()
        term.backward()
        return term.detach(), torch.zeros_like(x) if x.grad is None else x.grad

    def term(self, x: Tensor, *, graph: bool = False) -> Tensor:
        """The matching term at ``x``."""
        with sdpa_kernel(SDPBackend.MATH):
            loss = self.loss(self.module(x), self.case.y)
            return matching_term(torch.autograd.grad(loss, self.parameters, create_graph=graph), self.target)


def training_step(case: Case, *, backward: bool = True) -> Evaluate:
    """What the client does: forward, and backward to the weights. Gradients are cleared, no optimiser moves."""
    network = case.observation.network
    module, loss = arrange(network.module(), LocalRule(mode=case.mode)), network.loss()

    def step() -> None:
        module.zero_grad()
        value = loss(module(case.guess), case.y)
        if backward:
            value.backward()

    return step


def engine(case: Case, kind: Kind) -> Evaluate:
    """An engine of leakmap."""
    rule = case.observation.rule or LocalRule()
    context = SearchContext(case.observation, rule, case.y, SEED)
    chosen = Engine(context, DISTANCES["cosine"], kind=kind)
    guess = Guess(case.guess, case.y)

    def evaluate() -> Answer:
        pull = chosen.value_and_grad(guess)
        return pull.match, pull.gradient[0]

    return evaluate


CONTESTANTS: Mapping[str, Callable[[Case], Evaluate]] = {
    FORWARD: functools.partial(training_step, backward=False),
    STEP: training_step,
    LOOP: HandWritten,
    TOOLS_LOOP: functools.partial(HandWritten, weights_too=True),
    **{name: functools.partial(engine, kind=kind) for name, kind in KINDS.items()},
}


@dataclass(frozen=True)
class Watched:
    """A prior with a watch in front: priors are asked once in each iteration."""

    prior: Prior
    watch: Watch

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` normalized -> scalar."""
        self.watch(x)
        return self.prior(x)


def default_attack() -> GradientMatching:
    """``inverting_gradients`` as it comes."""
    return _matching("inverting_gradients")


def _matching(name: str) -> GradientMatching:
    how = attacks.build(Spec(name))
    if not isinstance(how, GradientMatching):
        raise NotApplicable(f"{name} is no gradient matching.")
    return how


def attack_with(kind: Kind) -> Attack:
    """The attack of leakmap with an engine."""

    def attack(case: Case, settings: Settings, watch: Watch) -> None:
        how = default_attack() if settings.own else _matching("inverting_gradients_breaching")
        first, *others = how.priors
        if settings.tv is not None:
            first = SmoothVariation(settings.tv, p=1.0, q=1.0, opponents=False)
        descent = how.descent if settings.lr is None else replace(how.descent, lr=settings.lr)
        steps = settings.steps or how.steps
        how = replace(how, priors=(Watched(first, watch), *others), steps=steps, descent=descent, engine=kind)
        try:
            how(case.observation, SEED, lambda fraction: None)
        except Enough:
            return

    return attack


PRESETS: Mapping[str, Preset] = {}
"""leakmap's own attacks are no peers; those with presets are in ``of_breaching`` and ``of_leakpro``."""
ATTACKS: Mapping[str, Attack] = {name: attack_with(kind) for name, kind in KINDS.items()}
