"""The value and the gradient of the matching term: where all the time goes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leakmap.attacker.matching.distances import DISTANCES, Distance
from leakmap.attacker.matching.emphasis import Emphasis
from leakmap.attacker.matching.masks import Masks, open_masks
from leakmap.attacker.matching.scene import Guess, Penalty, Scene, Trace
from leakmap.errors import NotApplicable
from leakmap.local import arrange, local_signal
from leakmap.models.adapt import freeze_running_statistics


@dataclass(frozen=True)
class Pull:
    """What an engine says about a guess.

    Args:
        match: The matching term, 0-dim float64; over all entries where the emphasis changes from draw to draw, so that
            iterates can be compared.
        penalty: The sum of the penalties, 0-dim float64.
        gradient: Of ``weight * match + penalty``, one tensor for each movable tensor of the guess.
    """

    match: Tensor
    penalty: Tensor
    gradient: list[Tensor]


class Exact:
    """Double backward with an explicit cotangent.

    The update is simulated with a graph; the cotangent ``v = dD/dg`` is computed without one from the distance's
    coefficients, and one backward pass of ``g`` along ``v`` gives ``dD/dx``. No second-order gradient with respect to
    the weights is formed, and nothing is read back to the host.

    Args:
        scene: Gives network, update and rule.
        distance: Between simulated and observed update.
        weight: Of the matching term; with 0 only the penalties pull.
        emphasis: Which entries of the update count; None: all alike.
        penalties: Read off the same forward passes.
        masks: Whether dropout takes its masks from the guess; else it is simulated by the expected network.
    """

    def __init__(
        self,
        scene: Scene,
        distance: Distance,
        *,
        weight: float = 1.0,
        emphasis: Emphasis | None = None,
        penalties: Sequence[Penalty] = (),
        masks: bool = False,
    ):
        network, update = scene.observation.network, scene.observation.update
        module = network.module()
        self.masks: Masks | None = open_masks(module, scene.rule) if masks else None
        self._module = freeze_running_statistics(arrange(module, scene.rule, dropout=False))
        self._weights, self._loss = network.weights, network.loss()
        self._rule, self._distance, self._weight, self._seed = scene.rule, distance, weight, scene.seed
        self._names = list(update.tensors)
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        if strange := [name for name in self._names if name not in trained]:
            raise NotApplicable(f"The update holds {strange[0]!r}, which is no trained parameter of {network.model}.")
        self._target = [tensor.detach() for tensor in update.tensors.values()]
        self._emphasis, self._draws = emphasis, 0
        self._full_squares = _dots(self._target, self._target)
        self._entry_weights: list[Tensor] | None = None
        self._emphasise()
        self._penalties = tuple(penalties)
        watched = dict.fromkeys(name for penalty in penalties for name in penalty.layers)
        self._trace = Trace(self._module, watched) if penalties else None

    def iteration(self, step: int) -> None:
        """Tells the number of the iteration, at which a random emphasis may be drawn anew."""
        if self._emphasis is not None and self._emphasis.every and step % self._emphasis.every == 0:
            self._draws = step // self._emphasis.every
            self._emphasise()

    def value_and_grad(self, guess: Guess) -> Pull:
        """The matching term and the penalties at a guess, and their gradient."""
        held = [tensor.detach().requires_grad_() for tensor in guess.movable()]
        y = held[1] if guess.y.is_floating_point() else guess.y
        if self.masks is not None:
            self.masks.give(held[len(held) - len(guess.masks) :])
        simulated = self._simulate(held[0], y, differentiable=True)
        outputs: list[Tensor] = []
        along: list[Tensor] = []
        plain = [tensor.detach() for tensor in simulated]
        value, a, b = self._distance(*self._products(plain))
        if self._emphasis is not None and self._emphasis.every:
            value = self._distance(_dots(plain, self._target), _dots(plain, plain), self._full_squares)[0]
        if self._weight:
            cotangent = self._cotangent(self._weight * a, self._weight * b, plain)
            reached = [(s, v) for s, v in zip(simulated, cotangent, strict=True) if s.requires_grad]
            outputs += [s for s, _ in reached]
            along += [v for _, v in reached]
        penalty = torch.zeros_like(value)
        if self._trace is not None:
            terms = torch.stack([p.value(self._trace) for p in self._penalties])
            self._trace.clear()
            penalty = terms.detach().double().sum()
            if terms.requires_grad:
                outputs.append(terms)
                along.append(torch.ones_like(terms))
        if not outputs:
            return Pull(value, penalty, [torch.zeros_like(tensor) for tensor in held])
        gradient = torch.autograd.grad(outputs, held, along, allow_unused=True, materialize_grads=True)
        return Pull(value, penalty, list(gradient))

    def value(self, guess: Guess) -> Tensor:
        """The matching term alone, 0-dim float64."""
        if self.masks is not None:
            self.masks.give(guess.masks)
        value = self._distance(*self._products(self._simulate(guess.x, guess.y, differentiable=False)))[0]
        if self._trace is not None:
            self._trace.clear()
        return value

    def record_masks(self, x: Tensor, y: Tensor) -> None:
        """Runs the client once, so that :attr:`masks` knows its shapes."""
        self._simulate(x, y, differentiable=False)
        if self._trace is not None:
            self._trace.clear()

    def _simulate(self, x: Tensor, y: Tensor, *, differentiable: bool) -> list[Tensor]:
        signal = local_signal(
            self._module, self._weights, x, y, self._rule, self._loss, differentiable=differentiable
        ).tensors
        return [signal[name] for name in self._names]

    def _emphasise(self) -> None:
        if self._emphasis is not None:
            self._entry_weights = self._emphasis(self._target, self._draws, self._seed)
        self._target_squares = _dots(self._weighted(self._target), self._target)

    def _weighted(self, tensors: list[Tensor]) -> list[Tensor]:
        if self._entry_weights is None:
            return tensors
        return [w * t for w, t in zip(self._entry_weights, tensors, strict=True)]

    def _products(self, plain: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        weighted = self._weighted(plain)
        return _dots(weighted, self._target), _dots(weighted, plain), self._target_squares

    def _cotangent(self, a: Tensor, b: Tensor, plain: list[Tensor]) -> list[Tensor]:
        return self._weighted(_combined(a, self._target, b, plain))


def matching_term(scene: Scene, x: Tensor) -> float:
    """Cosine distance between the observed update and the one that ``x`` would give in the expected network.

    Args:
        scene: Gives network, update and rule.
        x: ``(N, C, H, W)``, normalised.
    """
    return float(Exact(scene, DISTANCES["cosine"]).value(Guess(x, scene.y)))


def _combined(a: Tensor, left: list[Tensor], b: Tensor, right: list[Tensor]) -> list[Tensor]:
    """``a * left + b * right``, tensor by tensor; ``a`` and ``b`` stay on their device."""
    a, b = a.to(left[0].dtype), b.to(left[0].dtype)
    if a.ndim:
        return [i * s + j * t for i, s, j, t in zip(a, left, b, right, strict=True)]
    result = torch._foreach_mul(left, a)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(result, torch._foreach_mul(right, b))  # pyright: ignore[reportPrivateImportUsage]
    return list(result)


def _dots(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """``(tensors,)`` inner products in float64."""
    return torch.stack([torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(left, right, strict=True)]).double()
