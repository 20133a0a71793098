"""What a search works with: the scene it is set in, the guess it improves, the trace that a guess leaves."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from leakmap.local import LocalRule
from leakmap.observation import Observation


@dataclass(frozen=True)
class Scene:
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
        x: ``(N, C, H, W)`` normalised, or ``(epochs, N, C, H, W)``.
        y: ``(N,)`` classes, or ``(N, classes)`` probabilities.
        masks: Dropout masks in the order of their use, in [0, 1].
    """

    x: Tensor
    y: Tensor
    masks: tuple[Tensor, ...] = ()

    def movable(self) -> list[Tensor]:
        """The tensors that a search can move: all but classes."""
        return [self.x, *([self.y] if self.y.is_floating_point() else []), *self.masks]


class Trace:
    """Inputs of chosen layers, and outputs of the model, in every forward pass since :meth:`clear`.

    Args:
        module: The network.
        layers: Names of the layers to watch.
    """

    def __init__(self, module: nn.Module, layers: Iterable[str]):
        self.inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
        self.outputs: list[Tensor] = []
        for name in self.inputs:
            module.get_submodule(name).register_forward_pre_hook(self._watcher(name))
        module.register_forward_hook(self._note_output)

    def _watcher(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
            self.inputs[name].append(args[0])

        return note

    def _note_output(self, layer: nn.Module, args: Any, output: Any) -> None:
        self.outputs.append(output)

    def clear(self) -> None:
        """Forgets what was seen."""
        self.outputs.clear()
        for kept in self.inputs.values():
            kept.clear()


@dataclass(frozen=True)
class Penalty:
    """A term of the objective that is read off the simulated client's forward passes.

    Args:
        layers: Names of the layers whose inputs it reads.
        value: ``value(trace) -> scalar``, weight included.
        note: For the record.
        used: Facts of the Observation that it drew on.
    """

    layers: tuple[str, ...]
    value: Callable[[Trace], Tensor]
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

    def __call__(self, scene: Scene) -> Penalty:
        """Prepares the penalty for one scene.

        Raises:
            NotApplicable: its precondition does not hold.
        """
        ...
