"""Paths through a recorded pass: what joins what, and what stands in front of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from leakmap.inspection.flow import Flow, Kind, Node

_LANDMARKS = ("norm", "activation")
_STOPS = ("picture", "weight", "attention", "softmax", "product", "add", "cat")
_ROOTS = ("rsqrt", "sqrt", "std", "linalg_vector_norm")


@dataclass(frozen=True)
class Skip:
    """Two paths of different length that meet.

    Args:
        kind: What the short side is: nothing, weight layers, or part of a concatenation.
        fork: Index of the operation where they part.
        join: Index of the operation where they meet.
        end: Index of the last operation of the long side.
        branch: Indices of the long side, in order.
    """

    kind: Literal["identity", "projection", "concatenation"]
    fork: int
    join: int
    end: int
    branch: tuple[int, ...]


class Paths:
    """What lies between the picture and the outputs.

    Args:
        flow: A recorded pass.

    Attributes:
        nodes: The operations that the outputs depend on, in order. Normalizations that are written by hand are marked
            as such.
    """

    def __init__(self, flow: Flow):
        self._upstream: list[int] = []
        for node in flow.nodes:
            mask = 1 << node.index
            for index in node.inputs:
                mask |= self._upstream[index]
            self._upstream.append(mask)
        self._by_index = {node.index: node for node in flow.nodes}
        used = 0
        for index in flow.outputs:
            used |= self._upstream[index]
        for node in flow.nodes:
            if self._normalizes(node):
                self._by_index[node.index] = replace(node, kind="norm", name="by hand")
        self.nodes = [node for index, node in self._by_index.items() if used >> index & 1]

    def of(self, kind: Kind) -> list[Node]:
        """Every operation of a kind, in order."""
        return [node for node in self.nodes if node.kind == kind]

    @cached_property
    def weights(self) -> list[Node]:
        """The weight layers, in order."""
        return self.of("weight")

    @cached_property
    def depth(self) -> dict[int, int]:
        """By operation: weight layers on the longest path from the picture to it, itself included."""
        return self._depths(self.nodes)

    @cached_property
    def gates(self) -> dict[int, frozenset[int]]:
        """Products that scale features by what a side branch computes from them -> the indices of that branch."""
        found: dict[int, frozenset[int]] = {}
        for node in self.of("product"):
            if node.name != "mul" or len(node.inputs) != 2:
                continue
            (large, most), (small, least) = sorted(zip(node.inputs, node.sizes, strict=True), key=lambda pair: -pair[1])
            squashed = [i for i in node.inputs if self._by_index[i].name in ("Sigmoid", "Hardsigmoid")]
            if most == least and not squashed:
                continue
            gate = small if most > least else squashed[0]
            branch = self.between(self._fork(large, small), gate)
            if any(self._by_index[i].kind == "weight" for i in branch):
                found[node.index] = frozenset(branch)
        return found

    @cached_property
    def in_gates(self) -> frozenset[int]:
        """Every operation inside a gate's side branch."""
        return frozenset[int]().union(*self.gates.values())

    @cached_property
    def swishes(self) -> dict[int, int]:
        """Products ``x * sigmoid(x)`` that are written by hand -> the sigmoid."""
        found: dict[int, int] = {}
        for node in self.of("product"):
            for index in node.inputs:
                sigmoid = self._by_index[index]
                if node.name == "mul" and sigmoid.name == "Sigmoid" and set(sigmoid.inputs) < set(node.inputs):
                    found[node.index] = index
        return found

    @cached_property
    def skips(self) -> list[Skip]:
        """Every addition or concatenation that joins two paths with different numbers of weight layers."""
        found: list[Skip] = []
        for join in (node for node in self.nodes if node.kind in ("add", "cat")):
            short, long = min(join.inputs), max(join.inputs)
            fork = self._fork(short, long)
            if join.kind == "cat" and fork != short:
                continue
            sides = {end: self.between(fork, end) for end in (short, long)}
            lengths = {end: self._length(side) for end, side in sides.items()}
            if lengths[short] == lengths[long]:
                continue
            end = max(lengths, key=lambda one: lengths[one])
            kind = "concatenation" if join.kind == "cat" else "projection" if min(lengths.values()) else "identity"
            found.append(Skip(kind, fork, join.index, end, tuple(sides[end])))
        return found

    def before(self, node: Node) -> list[Node]:
        """Normalizations and activations in front of an operation, the nearest first, and then what they follow.

        Shapes, pools, scales and gates are passed by; weight layers, attention and joins end the way.
        """
        return self._back(node.inputs[-1]) if node.inputs else []

    def ending(self, index: int) -> list[Node]:
        """Like :meth:`before`, from the operation itself on."""
        return self._back(index)

    def feeds(self, node: Node, later: Node) -> bool:
        """Whether ``later`` depends on an operation."""
        return bool(self._upstream[later.index] >> node.index & 1)

    def feeds_only(self, node: Node, last: Node) -> bool:
        """Whether ``last`` is the only weight layer behind an operation."""
        return [w.index for w in self.weights if self.feeds(node, w)] == [last.index]

    def between(self, fork: int, end: int) -> list[int]:
        """Indices on the paths from ``fork`` (left out) to ``end``, in order."""
        mask = self._upstream[end]
        return [i for i in range(fork + 1, end + 1) if mask >> i & 1 and self._upstream[i] >> fork & 1]

    def at(self, index: int) -> Node:
        """The operation of an index."""
        return self._by_index[index]

    def _back(self, index: int) -> list[Node]:
        found: list[Node] = []
        while True:
            node = self._by_index[index]
            passed = node.index in self.gates or node.index in self.swishes or self._parallel(node)
            if node.kind in (*_LANDMARKS, *_STOPS) and not passed:
                found.append(node)
            if (
                not node.inputs
                or (node.kind in _STOPS and not passed)
                or (len(node.inputs) > 1 and not self._wide(node))
            ):
                return found
            index = max(zip(node.sizes, node.inputs, strict=True))[1]

    def _wide(self, node: Node) -> bool:
        """Whether the widest of several inputs stands for all of them."""
        scaled = node.kind == "norm" or node.name in ("sub", "div")
        return scaled or node.index in self.gates or node.index in self.swishes or self._parallel(node)

    def _parallel(self, node: Node) -> bool:
        """Whether an operation joins paths that are alike, as in an inception block."""
        return node.kind in ("add", "cat") and node.index not in self._joins

    @cached_property
    def _joins(self) -> frozenset[int]:
        return frozenset(skip.join for skip in self.skips)

    def _fork(self, a: int, b: int) -> int:
        return (self._upstream[a] & self._upstream[b]).bit_length() - 1

    def _length(self, branch: Sequence[int]) -> int:
        return max(self._depths([self._by_index[i] for i in branch]).values(), default=0)

    def _depths(self, nodes: Sequence[Node]) -> dict[int, int]:
        depth: dict[int, int] = {}
        for node in nodes:
            depth[node.index] = max((depth.get(i, 0) for i in node.inputs), default=0) + (node.kind == "weight")
        return depth

    def _normalizes(self, node: Node) -> bool:
        """Whether features are divided by a root of what a mean over them gave: a normalization written by hand."""
        if node.name not in ("mul", "div") or len(node.inputs) != 2 or len(set(node.sizes)) == 1:
            return False
        index = min(zip(node.sizes, node.inputs, strict=True))[1]
        for _ in range(4):
            divisor = self._by_index[index]
            if divisor.name in _ROOTS:
                return True
            if len(divisor.inputs) != 1:
                return False
            index = divisor.inputs[0]
        return False
