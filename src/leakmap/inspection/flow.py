"""The data flow of one forward pass: every tensor operation between the picture and the outputs.

Recorded below the modules, so that layers, functional calls and hand-written operations look alike. Tensors that do not
depend on the picture carry the names of the parameters they were computed from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from leakmap.models.network import Network

Kind = Literal[
    "picture", "weight", "norm", "activation", "attention", "softmax", "product", "add", "cat", "pool", "other"
]
"""``product`` multiplies two things that depend on the picture, ``add`` and ``cat`` join them."""

_MATRIX = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "addbmm": (1, 2), "linear": (0, 1)}
"""Matrix product -> places of its factors."""
_NORMS = ("batch_norm", "layer_norm", "group_norm", "rms_norm")
_ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention")
_ACTIVATIONS = {
    "relu": "ReLU",
    "hardtanh": "ReLU6",
    "leaky_relu": "LeakyReLU",
    "_prelu_kernel": "PReLU",
    "rrelu_with_noise": "RReLU",
    "elu": "ELU",
    "celu": "CELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "mish": "Mish",
    "softplus": "Softplus",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "hardsigmoid": "Hardsigmoid",
    "hardswish": "Hardswish",
    "glu": "GLU",
    "threshold": "Threshold",
    "clamp_min": "ReLU",
}
_SOFTMAX = ("_softmax", "_safe_softmax")
_DRAWS = ("bernoulli", "rand", "randn", "uniform", "normal", "randint", "randperm", "exponential")


@dataclass(frozen=True)
class Draw:
    """Random numbers that a pass drew.

    Args:
        shape: Of the drawn tensor, the batch of 2 first.
        rate: Share of zeros, of a mask; None for other random numbers.
    """

    shape: tuple[int, ...]
    rate: float | None


@dataclass(frozen=True, eq=False)
class Node:
    """One operation on something that depends on the picture.

    Args:
        index: Its place in the order of the pass; the picture is 0.
        kind: What it does, as far as that matters here.
        name: Of the operation, or of the activation.
        inputs: Indices of the operations that it continues.
        sizes: Elements that each of ``inputs`` has.
        parameters: Names of the parameters that it reads, directly or through other tensors.
        matrix: Those among them that multiply, for a weight layer or an affine normalization.
        draws: Random numbers that it reads.
        shape: Of its first output, the batch of 2 first.
        facts: Its other arguments by name.
    """

    index: int
    kind: Kind
    name: str
    inputs: tuple[int, ...]
    sizes: tuple[int, ...]
    parameters: frozenset[str]
    matrix: frozenset[str]
    draws: tuple[Draw, ...]
    shape: tuple[int, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Flow:
    """Every operation between the picture and the outputs, in the order of the pass.

    Args:
        nodes: All of them; ``nodes[0]`` is the picture.
        outputs: Indices of those that give the outputs; empty if the outputs do not depend on the picture.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]


def drawn(network: Network) -> Network:
    """The same network; its modules are copies of one, where drawing each afresh would take seconds."""
    if network.code.model is not None:
        return network
    return replace(network, code=replace(network.code, model=network.module()))


BATCH = 2
"""Pictures of a recorded pass; one would not tell a batch apart from a picture."""


def record(module: nn.Module, picture: Tensor) -> Flow:
    """Runs a module once and records what it does.

    Args:
        module: In the mode that is wanted. Its running statistics may move.
        picture: ``(C, H, W)``.
    """
    pictures = torch.stack([picture] * BATCH).requires_grad_()  # fused inference paths are taken without gradients only
    recorder = _Recorder(module, pictures)
    with torch.random.fork_rng(devices=[]), recorder:
        torch.manual_seed(0)
        outputs = module(pictures)
    made = {recorder.made[id(t)] for t in _tensors(outputs) if id(t) in recorder.made}
    return Flow(tuple(recorder.nodes), tuple(sorted(made)))


class _Recorder(TorchDispatchMode):
    """Notes each operation; knows tensors by identity, and so keeps all of them until the pass is over."""

    def __init__(self, module: nn.Module, pictures: Tensor):
        super().__init__()
        self.nodes = [Node(0, "picture", "picture", (), (), frozenset(), frozenset(), (), tuple(pictures.shape))]
        self.made: dict[int, int] = {id(pictures): 0}
        self._origins: dict[int, frozenset[str]] = {id(p): frozenset([n]) for n, p in module.named_parameters()}
        self._drawn: dict[int, tuple[Draw, ...]] = {}
        self._kept: list[Tensor] = [pictures]
        self._sharing: dict[int, list[int]] = {}
        self._share(pictures)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and notes it."""
        outputs = func(*args, **(kwargs or {}))
        if not isinstance(func, OpOverload):
            return outputs
        given = {a.name: a.default_value for a in func._schema.arguments}
        given |= dict(zip(given, args, strict=False)) | (kwargs or {})
        name = func.overloadpacket.__name__
        results = list(_tensors(outputs))
        if func._schema.is_mutable and isinstance(args[0] if args else None, Tensor):
            results = results or [args[0]]
            name = name.removesuffix("_")
        self._note(name, given, results)
        return outputs

    def _note(self, name: str, given: dict[str, Any], results: list[Tensor]) -> None:
        tensors = list(_tensors(list(given.values())))
        if name.endswith("_like") or name.startswith("new_") or name in ("zero", "fill"):
            tensors = []
        live = {self.made[id(t)]: t.numel() for t in tensors if id(t) in self.made}
        origins = frozenset[str]().union(*(self._origins.get(id(t), frozenset()) for t in tensors))
        draws = tuple(draw for t in tensors for draw in self._drawn.get(id(t), ()))
        if any(name == one or name == f"{one}_like" for one in _DRAWS) and results:
            mask = name == "bernoulli" and isinstance(given.get("p"), float)
            draws = (Draw(tuple(results[0].shape), 1 - given["p"] if mask else None),)
            live = {}
        if name == "native_dropout" and given.get("train") is not False:
            draws = (Draw(tuple(results[0].shape), given["p"]),)
        node = self._node(name, given, live, origins, draws, results) if live and results else None
        for tensor in results:
            self._kept.append(tensor)
            self._share(tensor)
            for same in self._sharing[_storage(tensor)] if name == "copy" else [id(tensor)]:
                if node is None:
                    self.made.pop(same, None)
                    self._origins[same], self._drawn[same] = origins, draws
                else:
                    self.made[same] = node.index
        if node is not None:
            self.nodes.append(node)

    def _node(
        self,
        name: str,
        given: dict[str, Any],
        live: dict[int, int],
        origins: frozenset[str],
        draws: tuple[Draw, ...],
        results: list[Tensor],
    ) -> Node:
        kind, matrix = self._kind(name, given, live)
        if kind == "activation":
            name = "Hardtanh" if name == "hardtanh" and given.get("max_val") != 6 else _ACTIVATIONS[name]
        facts = {key: value for key, value in given.items() if not isinstance(value, Tensor)}
        if isinstance(weight := given.get("weight"), Tensor):
            facts["weight_shape"] = tuple(weight.shape)
        elif name in _MATRIX:
            facts["width_in"] = given[[*given][_MATRIX[name][0]]].shape[-1]
        index, shape = len(self.nodes), tuple(results[0].shape)
        return Node(index, kind, name, tuple(live), tuple(live.values()), origins, matrix, draws, shape, facts)

    def _kind(self, name: str, given: dict[str, Any], live: dict[int, int]) -> tuple[Kind, frozenset[str]]:
        """What an operation does, and the parameters that multiply in it."""
        values = list(given.values())
        if name == "convolution" or name in _MATRIX:
            factors = [values[place] for place in _MATRIX.get(name, (0, 1))]
            fixed = [t for t in factors if id(t) not in self.made]
            matrix = frozenset[str]().union(*(self._origins.get(id(t), frozenset()) for t in fixed))
            return ("weight" if matrix else "product" if not fixed else "other"), matrix
        if any(part in name for part in _NORMS):
            return "norm", self._origins.get(id(given.get("weight")), frozenset())
        if any(part in name for part in _ATTENTION):
            return "attention", frozenset()
        if name in _ACTIVATIONS and not (name == "clamp_min" and given.get("min") != 0):
            return "activation", frozenset()
        if name in _SOFTMAX:
            return "softmax", frozenset()
        if "pool" in name:
            return "pool", frozenset()
        if name in ("add", "addcmul", "cat", "mul"):
            kinds: dict[str, Kind] = {"cat": "cat", "mul": "product"}
            kind = kinds.get(name, "add") if len(live) > 1 else "other"
            fixed = [t for t in _tensors(values) if id(t) not in self.made] if name != "add" else []
            return kind, frozenset[str]().union(*(self._origins.get(id(t), frozenset()) for t in fixed))
        return "other", frozenset()

    def _share(self, tensor: Tensor) -> None:
        sharing = self._sharing.setdefault(_storage(tensor), [])
        if id(tensor) not in sharing:
            sharing.append(id(tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor inside tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
