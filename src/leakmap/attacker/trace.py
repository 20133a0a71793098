"""What every layer of a network sees and gives, recorded while random pictures pass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from leakmap.models.network import Network, same_networks
from leakmap.once import once
from leakmap.problem.objects import EMPTY
from leakmap.seeds import generator


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer.

    Args:
        name: Of the layer in the model.
        layer: The layer.
        inputs: The first tensor that it got, with the pictures on its first axis in most layers.
        outputs: The first tensor that it gave.
    """

    name: str
    layer: nn.Module
    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward pass.

    Args:
        network: Architecture and weights.
        module: The module that ran, in inference mode.
        pictures: ``(2, C, H, W)``, random.
        calls: In the order of the pass.
    """

    network: Network
    module: nn.Module
    pictures: Tensor
    calls: list[Call]

    def after(self, call: Call) -> list[Call]:
        """The calls that came later."""
        return self.calls[self.calls.index(call) + 1 :]


@once(same_networks)
def traced(network: Network) -> Trace:
    """What every layer that holds parameters, or no other layers, sees and gives for two random pictures."""
    module = network.module().eval()
    pictures = torch.randn(2, *network.task.shape, generator=generator(0, "trace"))
    pictures = pictures.to(network.device, network.dtype)
    names = {layer: name for name, layer in module.named_modules()}
    calls: list[Call] = []

    def note(layer: nn.Module, arguments: Any, keywords: dict[str, Any], result: Any) -> None:
        inputs, outputs = first_tensor((*arguments, *keywords.values())), first_tensor((result,))
        if inputs is not None and outputs is not None:
            # Copies: a later layer may work in place.
            calls.append(Call(names[layer], layer, inputs.clone(), outputs.clone()))

    watched = [m for m in names if not any(m.children()) or any(True for _ in m.parameters(recurse=False))]
    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in watched]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(pictures, *empty_targets(network, 2))
    for hook in hooks:
        hook.remove()
    return Trace(network, module, pictures, calls)


def empty_targets(network: Network, count: int) -> list[Tensor]:
    """What a module takes besides pictures: the objects of each, here none; nothing where it takes pictures alone."""
    shape = network.task.target_shape(count)
    return [torch.full(shape, EMPTY, device=network.device)] if network.task.objects else []


def first_tensor(values: Any) -> Tensor | None:
    """The first tensor among values, or in the tuple that comes first."""
    first = next((value for value in values if isinstance(value, Tensor | tuple)), None)
    return first_tensor(first) if isinstance(first, tuple) else first


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same values for each picture, in whatever shape."""
    # Bit by bit: reshaping keeps every value, while whatever computes with them changes some.
    return torch.equal(a.reshape(len(a), -1), b.reshape(len(b), -1))
