"""How the gradient of a loss is differentiated once more: exactly, or by differences with frozen switches."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from leakmap.attacker.matching.switches import FrozenSwitches

Loss = Callable[[Sequence[Tensor]], Tensor]
"""``loss(parameters) -> scalar``; the same every time it is called."""


Beside = Sequence[tuple[Tensor, Tensor]]
"""Tensors of a forward pass that carry its graph, each with the direction along which it is pulled back."""


class Linearised(Protocol):
    """A gradient at one point, which can be pulled back along a direction."""

    @property
    def gradient(self) -> list[Tensor]:
        """Of the loss with respect to the parameters, without a graph."""
        ...

    def pull(self, along: Sequence[Tensor | None], wrt: Sequence[Tensor], beside: "Beside") -> list[Tensor]:
        """The gradient of ``<gradient, along> + <beside>`` with respect to some of the leaves, each in its own memory.

        Args:
            along: One direction for each parameter, None where it is zero; may be overwritten.
            wrt: Some of ``held`` and ``parameters``.
            beside: Further tensors of the same pass, with a direction for each.
        """
        ...


class Derivative(Protocol):
    """Differentiates a loss."""

    def __call__(
        self, loss: Loss, parameters: Sequence[Tensor], held: Sequence[Tensor], scale: Tensor, *, watched: bool
    ) -> Linearised:
        """Linearises the gradient of a loss.

        Args:
            loss: May be called several times.
            parameters: Leaves that require gradients.
            held: Further leaves that the loss depends on.
            scale: Norm of the parameters, 0-dim: a difference measures its step by it.
            watched: Whether other tensors of the pass will be pulled back beside the gradient.
        """
        ...


@dataclass(frozen=True)
class Exact:
    """Double backward along an explicit cotangent; no second-order gradient of a parameter is formed unasked.

    Attention runs under the math kernel, the only one with a double backward.
    """

    def __call__(
        self, loss: Loss, parameters: Sequence[Tensor], held: Sequence[Tensor], scale: Tensor, *, watched: bool
    ) -> Linearised:
        """Linearises."""
        with sdpa_kernel(SDPBackend.MATH):
            value = loss(parameters)
        graph = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
        return _Graph(list(graph))

    def __str__(self) -> str:
        return "exact"


@dataclass(frozen=True)
class _Graph:
    graph: list[Tensor]

    @property
    def gradient(self) -> list[Tensor]:
        return [tensor.detach() for tensor in self.graph]

    def pull(self, along: Sequence[Tensor | None], wrt: Sequence[Tensor], beside: Beside) -> list[Tensor]:
        pairs = [(g, v) for g, v in zip(self.graph, along, strict=True) if v is not None and g.requires_grad]
        pairs += [(tensor, v) for tensor, v in beside if tensor.requires_grad]
        if not pairs:
            return [torch.zeros_like(tensor) for tensor in wrt]
        outputs, directions = zip(*pairs, strict=True)
        return _apart(torch.autograd.grad(outputs, wrt, directions, allow_unused=True, materialize_grads=True))


@dataclass(frozen=True)
class Frozen:
    """A difference of first gradients at ``parameters`` and at ``parameters + eps * along``, with switches held.

    Of any operation with a first derivative, fused attention included. Needs two forward and two backward passes, of
    which the second forms no gradient of the parameters.

    Args:
        step: Length of the difference over the norm of the parameters. One-sided differences of float32 are best near
            1e-5, central ones near 1e-4.
        central: Whether to take the difference of both sides, in a third pass.
    """

    step: float = 1e-5
    central: bool = False

    def __call__(
        self, loss: Loss, parameters: Sequence[Tensor], held: Sequence[Tensor], scale: Tensor, *, watched: bool
    ) -> Linearised:
        """Linearises."""
        switches = FrozenSwitches()
        with _full_precision(parameters[0].device):
            with switches:
                value = loss(parameters)
            leaves = [*parameters, *held]
            # The pass is only pulled back again for what was seen beside the gradient; else its activations go now.
            found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True, retain_graph=watched)
        return _Difference(self, loss, list(parameters), list(held), scale, switches, _apart(found))

    def __str__(self) -> str:
        return f"frozen ({'central' if self.central else 'one-sided'}, {self.step:g})"


@dataclass(frozen=True)
class _Difference:
    how: Frozen
    loss: Loss
    parameters: list[Tensor]
    held: list[Tensor]
    scale: Tensor
    switches: FrozenSwitches
    found: list[Tensor]

    @property
    def gradient(self) -> list[Tensor]:
        return self.found[: len(self.parameters)]

    def pull(self, along: Sequence[Tensor | None], wrt: Sequence[Tensor], beside: Beside) -> list[Tensor]:
        pulled = self._pulled(along, wrt)
        if pairs := [(tensor, v) for tensor, v in beside if tensor.requires_grad]:
            outputs, directions = zip(*pairs, strict=True)
            more = torch.autograd.grad(outputs, wrt, directions, allow_unused=True, materialize_grads=True)
            pulled = [p.add_(m) for p, m in zip(pulled, more, strict=True)]
        return pulled

    def _pulled(self, along: Sequence[Tensor | None], wrt: Sequence[Tensor]) -> list[Tensor]:
        directions = [v for v in along if v is not None]
        if not directions:
            return [torch.zeros_like(tensor) for tensor in wrt]
        # Over all tensors together: the step is along one direction in the space of all weights.
        length = torch.stack(torch._foreach_norm(directions)).norm()  # pyright: ignore[reportPrivateImportUsage]
        # Chosen on the device, a zero direction included: asking the host would stall a GPU in every iteration.
        eps = self.how.step * self.scale / torch.where(length > 0, length, 1.0)
        if self.how.central:
            # Along a copy, as the shifted weights are written over the direction to save their memory.
            behind = self._gradients([None if v is None else v.clone() for v in along], -eps, wrt)
            eps, ahead = 2 * eps, self._gradients(along, eps, wrt)
        else:
            # One-sided: the gradient at the weights themselves is known from the first pass.
            here = dict(zip(map(id, [*self.parameters, *self.held]), self.found, strict=True))
            behind, ahead = [here[id(leaf)] for leaf in wrt], self._gradients(along, eps, wrt)
        return [a.sub_(b).div_(eps) for a, b in zip(ahead, behind, strict=True)]

    def _gradients(self, along: Sequence[Tensor | None], eps: Tensor, wrt: Sequence[Tensor]) -> list[Tensor]:
        """At ``parameters + eps * along``, which is written over ``along``."""
        asked = {id(leaf) for leaf in wrt}
        with torch.no_grad():
            pairs = zip(self.parameters, along, strict=True)
            moved = [p.detach() if v is None else torch.addcmul(p, v, eps, out=v) for p, v in pairs]
        # Weight gradients that nobody asks for are not formed: they would cost a product for every layer.
        moved = [m.detach().requires_grad_(id(p) in asked) for p, m in zip(self.parameters, moved, strict=True)]
        stands_for = dict(zip(map(id, self.parameters), moved, strict=True))
        with _full_precision(eps.device):
            with self.switches:
                value = self.loss(moved)
            leaves = [stands_for.get(id(leaf), leaf) for leaf in wrt]
            return _apart(torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True))


def _apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values, each in memory of its own: gradients may be views of one another."""
    places = [tensor.untyped_storage() for tensor in tensors]
    sharers = Counter(place.data_ptr() for place in places)
    return [
        tensor if sharers[place.data_ptr()] == 1 and place.nbytes() == tensor.nbytes else tensor.clone()
        for tensor, place in zip(tensors, places, strict=True)
    ]


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """TF32 off on GPUs: its ten bits of mantissa are coarser than a difference."""
    backends = []
    if device.type == "cuda":
        backends = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
