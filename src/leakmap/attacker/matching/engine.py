"""The value and the gradient of the matching term: where all the time goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from leakmap.attacker.matching.adjoint import Simulation
from leakmap.attacker.matching.context import Guess, Penalty, SearchContext, Trace
from leakmap.attacker.matching.derivatives import Derivative, Exact, Frozen
from leakmap.attacker.matching.distances import Distance
from leakmap.attacker.matching.masks import Masks, open_masks
from leakmap.attacker.matching.selfcheck import SelfCheck
from leakmap.attacker.matching.weighting import Weighting
from leakmap.client_step import Training, arrange
from leakmap.errors import NotApplicable
from leakmap.models.adapt import freeze_running_statistics
from leakmap.seeds import random_state, set_random_state

Kind = Literal["auto", "exact", "frozen"]


@dataclass(frozen=True)
class Pull:
    """What an engine says about a guess.

    Args:
        match: The matching term, 0-dim float64; over all entries where the weighting changes from draw to draw, so that
            iterates can be compared.
        penalty: The sum of the penalties, 0-dim float64.
        gradient: Of ``weight * match + penalty``, one tensor for each movable tensor of the guess.
    """

    match: Tensor
    penalty: Tensor
    gradient: list[Tensor]


class Engine:
    """Simulates the client at a guess and pulls the distance between the updates back to the guess.

    The update is simulated plainly; the cotangent ``v = dD/dg`` is formed from the distance's coefficients without a
    graph and goes back through the client's defence and its local steps, last to first: through each optimiser step,
    and through each gradient by one derivative of it along one direction. What is kept of a local step are its weights
    and the state of the optimiser, not its activations. Nothing is read back to the host except in a self-check.

    Args:
        context: Gives network, update and rule.
        distance: Between simulated and observed update.
        kind: Of differentiation: ``exact`` by double backward, ``frozen`` by differences with switches held,
            ``auto`` by differences as long as they agree with double backward.
        weight: Of the matching term; with 0 only the penalties pull.
        weighting: Which entries of the update count; None: all alike.
        penalties: Read off the same forward passes.
        masks: Whether dropout takes its masks from the guess; else it is simulated by the expected network.

    Raises:
        NotApplicable: the update holds what the network does not train.
    """

    def __init__(
        self,
        context: SearchContext,
        distance: Distance,
        *,
        kind: Kind = "auto",
        weight: float = 1.0,
        weighting: Weighting | None = None,
        penalties: Sequence[Penalty] = (),
        masks: bool = False,
    ):
        network, update = context.observation.network, context.observation.update
        module = network.module()
        self.masks: Masks | None = open_masks(module, context.rule) if masks else None
        module = freeze_running_statistics(arrange(module, context.rule, dropout=False))
        self._training = Training(module, network.weights, context.rule, network.loss())
        self._rule, self._distance, self._weight, self._seed = context.rule, distance, weight, context.seed
        if strange := [name for name in update.tensors if name not in self._training.names]:
            raise NotApplicable(f"The update holds {strange[0]!r}, which is no trained parameter of {network.model}.")
        self._places = [self._training.names.index(name) for name in update.tensors]
        self._target = [tensor.detach() for tensor in update.tensors.values()]
        self._weighting, self._draws = weighting, 0
        self._full_squares = _dots(self._target, self._target)
        self._entry_weights: list[Tensor] | None = None
        self._room: list[Tensor] = []
        self._reweight()
        self._penalties = tuple(penalties)
        watched = dict.fromkeys(name for penalty in penalties for name in penalty.layers)
        self._trace = Trace(module, watched) if penalties else None
        # With weight 0 only the penalties pull, and they take a single derivative: there is nothing to approximate.
        self._derivative: Derivative = Exact() if kind == "exact" or not weight else Frozen()
        self.check = SelfCheck() if kind == "auto" and weight else None

    def __str__(self) -> str:
        return str(self.check or self._derivative)

    def iteration(self, step: int) -> None:
        """Tells the number of the iteration, at which a random weighting may be drawn anew."""
        if self._weighting is not None and self._weighting.every and step % self._weighting.every == 0:
            self._draws = step // self._weighting.every
            self._reweight()

    def value_and_grad(self, guess: Guess) -> Pull:
        """The matching term and the penalties at a guess, and their gradient.

        Raises:
            NotApplicable: the self-check found no derivative that can be trusted.
        """
        if self.check is not None and self.check.due():
            self._derivative = self._checked(guess, self.check)
        return self._pull(guess, self._derivative, self._trace)

    def _checked(self, guess: Guess, check: SelfCheck) -> Derivative:
        """All gradients that are compared draw the same random numbers, which are drawn again afterwards."""
        begin = random_state(guess.x.device)

        def gradient(how: Derivative) -> list[Tensor]:
            set_random_state(begin, guess.x.device)
            return self._pull(guess, how, None).gradient

        chosen = check.choose(gradient)
        set_random_state(begin, guess.x.device)
        return chosen

    def value(self, guess: Guess) -> Tensor:
        """The matching term of what the client would send, its defence without noise included; 0-dim float64."""
        plain = self._selected(self._simulate(guess).shared)
        return self._distance(*self._products(self._training.defence.share(plain, None)))[0]

    def record_masks(self, x: Tensor, y: Tensor) -> None:
        """Runs the client once, so that :attr:`masks` knows its shapes."""
        self._simulate(Guess(x, y))

    def _simulate(self, guess: Guess, how: Derivative | None = None, trace: Trace | None = None) -> Simulation:
        found = Simulation(self._training, self._rule, guess, how, masks=self.masks, trace=trace)
        if self._trace is not None:
            self._trace.take()
        return found

    def _pull(self, guess: Guess, how: Derivative, trace: Trace | None) -> Pull:
        client = self._simulate(guess, how, trace)
        defended = self._training.defence.simulate(self._selected(client.shared), self._target)
        plain = defended.tensors
        value, a, b = self._distance(*self._products(plain))
        if self._weighting is not None and self._weighting.every:
            # Each draw weighs other entries, so its value cannot be compared with that of another draw.
            value = self._distance(_dots(plain, self._target), _dots(plain, plain), self._full_squares)[0]
        along: list[Tensor | None] = [None] * len(client.shared)
        if self._weight:
            directions = self._cotangent(a, b, plain, client.spare)
            for place, direction in zip(self._places, defended.back(directions), strict=True):
                along[place] = direction
        penalty, total = None, torch.zeros_like(value)
        if client.seen is not None:
            penalty = torch.stack([p.value(client.seen) for p in self._penalties]).sum()
            total = penalty.detach().double()
        gradient = client.pull(along, penalty)
        if self._trace is not None:
            self._trace.take()
        return Pull(value, total, gradient)

    def _selected(self, shared: Sequence[Tensor]) -> list[Tensor]:
        return [shared[place] for place in self._places]

    def _reweight(self) -> None:
        if self._weighting is not None:
            self._entry_weights = self._weighting(self._target, self._draws, self._seed)
        self._target_squares = _dots(self._weighted(self._target), self._target)

    def _weighted(self, tensors: list[Tensor]) -> list[Tensor]:
        if self._entry_weights is None:
            return tensors
        return [w * t for w, t in zip(self._entry_weights, tensors, strict=True)]

    def _products(self, plain: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        weighted = self._weighted(plain)
        return _dots(weighted, self._target), _dots(weighted, plain), self._target_squares

    def _cotangent(self, a: Tensor, b: Tensor, plain: list[Tensor], spare: bool) -> list[Tensor]:
        """``a * target + b * plain``, tensor by tensor, written over ``plain`` where that is spare.

        ``a`` and ``b``, 0-dim or one for each tensor, stay on their device.
        """
        of_target, of_plain = ((self._weight * c).to(plain[0].dtype).expand(len(plain)).unbind() for c in (a, b))
        if not spare and not self._room:
            self._room = [torch.empty_like(tensor) for tensor in plain]
        result = plain if spare else self._room
        for out, tensor, target, of_it, of_its in zip(result, plain, self._target, of_plain, of_target, strict=True):
            torch.mul(tensor, of_it, out=out).addcmul_(target, of_its)
        return self._weighted(result)


def _dots(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """``(tensors,)`` inner products, in float64."""
    # Each product runs in the update's own precision, for speed; only what is made of them needs float64.
    return torch.stack([torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(left, right, strict=True)]).double()
