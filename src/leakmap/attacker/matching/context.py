"""What a search works with: the context it is set in, the guess it improves, the trace that a guess leaves."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from leakmap.local_rule import LocalRule
from leakmap.observation.observation import Observation


@dataclass(frozen=True)
class SearchContext:
    """What stays the same throughout a search.

    Args:
        observation: All that the attacker holds.
        rule: The local rule that it simulates: granted or assumed.
        y: ``(N,)`` classes, or ``(N, classes)`` probabilities.
        seed: All randomness of the search comes from it.
    """

    observation: Observation
    rule: LocalRule
    y: Tensor
    seed: int


@dataclass(frozen=True)
class Guess:
    """What the attacker takes the client to have held.

    Args:
        x: ``(N, C, H, W)`` normalized, or ``(epochs, N, C, H, W)``.
        y: ``(N,)`` classes, or ``(N, classes)`` probabilities.
        masks: Dropout masks in the order of their use, in [0, 1].
    """

    x: Tensor
    y: Tensor
    masks: tuple[Tensor, ...] = ()

    def movable(self) -> list[Tensor]:
        """The tensors that a search can move: all but classes."""
        return [self.x, *([self.y] if self.y.is_floating_point() else []), *self.masks]


@dataclass(frozen=True)
class Seen:
    """What forward passes showed, one entry for each pass.

    Args:
        inputs: Inputs of the watched layers, by name.
        outputs: Outputs of the network.
    """

    inputs: dict[str, list[Tensor]]
    outputs: list[Tensor]

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        return [*(tensor for passes in self.inputs.values() for tensor in passes), *self.outputs]

    def leaves(self) -> "Seen":
        """The same values, as leaves that require gradients."""
        return Seen(
            {name: [tensor.detach().requires_grad_() for tensor in passes] for name, passes in self.inputs.items()},
            [tensor.detach().requires_grad_() for tensor in self.outputs],
        )

    @staticmethod
    def joined(parts: "Sequence[Seen]") -> "Seen":
        """One after the other."""
        return Seen(
            {name: [tensor for part in parts for tensor in part.inputs[name]] for name in parts[0].inputs},
            [tensor for part in parts for tensor in part.outputs],
        )


class Trace:
    """Watches layers of a network, and its outputs, in every forward pass.

    Args:
        module: The network.
        layers: Names of the layers to watch.
    """

    def __init__(self, module: nn.Module, layers: Iterable[str]):
        self._seen = Seen({name: [] for name in layers}, [])
        for name in self._seen.inputs:
            module.get_submodule(name).register_forward_pre_hook(self._watcher(name))
        module.register_forward_hook(self._note_output)

    def _watcher(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
            self._seen.inputs[name].append(args[0])

        return note

    def _note_output(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._seen.outputs.append(output)

    def take(self) -> Seen:
        """What was seen since the last time."""
        seen = self._seen
        self._seen = Seen({name: [] for name in seen.inputs}, [])
        return seen


@dataclass(frozen=True)
class Penalty:
    """A term of the objective that is read off the simulated client's forward passes.

    Args:
        layers: Names of the layers whose inputs it reads.
        value: ``value(seen) -> scalar``, weight included.
        note: For the record.
        used: Facts of the Observation that it drew on.
    """

    layers: tuple[str, ...]
    value: Callable[[Seen], Tensor]
    note: str = ""
    used: frozenset[str] = frozenset()


class Term(Protocol):
    """What an attacker knows besides the update about the forward passes of the client."""

    @property
    def needs(self) -> frozenset[str]:
        """Facts of the Observation that it cannot do without."""
        ...

    def blind(self) -> "Term | None":
        """What is left of it without all that came from this client: part of a floor."""
        ...

    def __call__(self, context: SearchContext) -> Penalty:
        """Prepares the penalty for one context.

        Raises:
            NotApplicable: its precondition does not hold.
        """
        ...
