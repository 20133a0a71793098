"""Reads the traits of an architecture off one recorded forward pass."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leakmap.attacker.closed_form import diagnose
from leakmap.errors import ModelError
from leakmap.inspection.flow import BATCH, Node, drawn, record
from leakmap.inspection.paths import Paths, Skip
from leakmap.inspection.traits import Noise, Norm, Placement, Stage, Stem, Traits
from leakmap.models.network import Network
from leakmap.seeds import generator

TINY = 1e-3
"""A learned scale whose largest absolute value is below this shrinks the gradient of its branch as much."""


CLASS_TOKENS = 4
"""Tokens beside those of the patches that a transformer may have."""


def read_traits(network: Network) -> Traits:
    """Runs a network once in each mode on random numbers and says what it is made of.

    What counts is what the forward pass does, not what its layers are called: functional calls and operations written
    by hand are seen too. One path is recorded; a network whose path depends on its input has others.

    Args:
        network: Architecture and weights, on the CPU.

    Raises:
        ModelError: no weight layer lies between the picture and the outputs, or the pass cannot be recorded.
    """
    network = drawn(network)
    module = network.module()
    picture = torch.randn(network.task.shape, generator=generator(0, "traits")).to(network.dtype)
    try:
        paths = Paths(record(module.eval(), picture))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise ModelError(f"The forward pass of {network.model} cannot be recorded: {error}.") from error
    if not paths.weights:
        raise ModelError(
            f"{network.model} has no convolution and no matrix product between the picture and its outputs."
        )
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    sizes = {name: p.numel() for name, p in parameters.items()}
    head = paths.weights[-1]
    zero = {
        name
        for node in paths.nodes
        if node.kind in ("weight", "norm")
        for name in node.matrix
        if not bool(parameters[name].any())
    }
    scales = [max(float(parameters[name].abs().max()) for name in node.matrix) for node in paths.nodes if _scale(node)]
    skips = Counter(skip.kind for skip in paths.skips)
    placements: Counter[Placement] = Counter(_placement(paths, skip) for skip in paths.skips)
    norms = _norms(paths, module)
    stem = _stem(paths, picture, sizes)
    noise, fails = _noise(module, picture)
    return Traits(
        parameters=sum(sizes.values()),
        frozen=sum(p.numel() for p in module.parameters() if not p.requires_grad),
        only_head=_only_head(module, _largest(head, sizes)),
        shares=_shares(paths, sizes),
        depth=max(paths.depth.values()),
        stages=tuple(Stage(positions, min(w), max(w)) for positions, (w, _) in _stages(paths).items()),
        identities=skips["identity"],
        projections=skips["projection"],
        concatenations=skips["concatenation"],
        placement=(placements.most_common(1)[0][0] if placements else _chain(paths)) if norms else "none",
        placements=dict(placements),
        norms=norms,
        activations=_activations(paths),
        gates=len(paths.gates),
        noise=noise,
        training_fails=fails,
        stem=stem,
        total_stride=_total_stride(paths, picture, stem),
        attention=_attention(paths),
        closed_forms=tuple(f"{f.attack}: {f}" for f in diagnose(network) if f.qualifies),
        head=_largest(head, sizes),
        zero_head=bool(head.matrix & zero),
        zero_branches=tuple(sorted(zero - head.matrix)),
        scales=len(scales),
        tiny_scales=sum(scale < TINY for scale in scales),
        smallest_scale=min(scales, default=None),
    )


def _only_head(module: nn.Module, head: str) -> bool:
    trained = [p.requires_grad and name.rpartition(".")[0] for name, p in module.named_parameters()]
    return {False, head.rpartition(".")[0]} == set(trained)


def _scale(node: Node) -> bool:
    return node.name in ("mul", "addcmul") and node.kind != "norm" and bool(node.matrix)


def _largest(node: Node, sizes: Mapping[str, int]) -> str:
    """Name of the largest parameter that multiplies: the weight, where others rescale it."""
    return max(sorted(node.matrix), key=lambda name: sizes[name])


def _channels(node: Node) -> int:
    if node.name != "convolution":
        return node.shape[-1]
    shape = node.facts["weight_shape"]
    return shape[1] * node.facts["groups"] if node.facts["transposed"] else shape[0]


def _positions(node: Node, channels: int) -> int:
    return math.prod(node.shape) // (BATCH * channels)


def _is_map(node: Node, positions: int) -> bool:
    """Whether an operation gives a feature map or several tokens, not one vector."""
    return len(node.shape) == 4 or positions > 1


def _placement(paths: Paths, skip: Skip) -> Placement:
    """Where normalization stands in a residual branch; see :class:`Traits`."""
    if any(node.kind == "norm" for node in paths.ending(skip.end)):
        return "post"
    first = next(paths.at(i) for i in skip.branch if paths.at(i).kind == "weight")
    lead = paths.before(first)
    norms = [node for node in lead if node.kind == "norm"]
    if any(node.index in skip.branch for node in norms):
        return "pre"
    if norms and any(node.kind == "activation" for node in lead):
        return "pre"
    if any(paths.at(i).kind == "norm" for i in skip.branch):
        return "inside"
    return "post" if norms else "none"


def _chain(paths: Paths) -> Placement:
    """The same for a network without skip connections."""
    lead = {node.kind for node in paths.before(paths.weights[min(1, len(paths.weights) - 1)])}
    if "norm" in lead and "activation" not in lead:
        return "pre"
    maps = [place for place, node in enumerate(paths.weights[:-1]) if _is_map(node, _positions(node, _channels(node)))]
    reader = paths.weights[maps[-1] + 1] if maps else paths.weights[-1]
    return "post" if "norm" in {node.kind for node in paths.before(reader)} else "pre"


def _norms(paths: Paths, module: nn.Module) -> tuple[Norm, ...]:
    found: dict[str, list[Node]] = defaultdict(list)
    for node in paths.of("norm"):
        found[_norm_kind(node)].append(node)
    momentum = {layer.momentum for layer in module.modules() if isinstance(layer, _BatchNorm)}
    return tuple(
        Norm(
            kind,
            len(nodes),
            _values(nodes, "eps"),
            tuple(sorted(momentum or _values(nodes, "momentum"), key=lambda m: m or 0)) if kind == "BatchNorm" else (),
            kind in ("BatchNorm", "InstanceNorm") and not any(node.facts.get("training", False) for node in nodes),
            tuple(int(g) for g in _values(nodes, "group")),
        )
        for kind, nodes in found.items()
    )


def _norm_kind(node: Node) -> str:
    if "batch_norm" in node.name:
        return "InstanceNorm" if node.shape[0] != BATCH else "BatchNorm"
    kinds = {"layer_norm": "LayerNorm", "group_norm": "GroupNorm", "rms_norm": "RMSNorm"}
    return next((kind for part, kind in kinds.items() if part in node.name), node.name)


def _values(nodes: list[Node], fact: str) -> tuple[float, ...]:
    return tuple(sorted({node.facts[fact] for node in nodes if node.facts.get(fact) is not None}))


def _activations(paths: Paths) -> dict[str, int]:
    by_hand = set(paths.swishes.values())
    left_out = paths.in_gates | by_hand
    found = Counter(node.name for node in paths.of("activation") if node.index not in left_out)
    if swishes := [index for index in paths.swishes if index not in paths.in_gates]:
        found["SiLU"] += len(swishes)
    return dict(found.most_common())


def _attention(paths: Paths) -> int:
    products = [node for node in paths.of("product") if node.name != "mul"]
    scores = [node for node in paths.of("softmax") if len(node.shape) > 2]
    return len(paths.of("attention")) + sum(any(paths.feeds(node, product) for product in products) for node in scores)


def _stages(paths: Paths) -> dict[int, tuple[set[int], bool]]:
    """Positions -> channels, of what skip connections join or else of the weight layers; and if a map."""
    seen: dict[int, tuple[set[int], bool]] = {}

    def add(node: Node, channels: int) -> None:
        positions = _positions(node, channels)
        widths, is_map = seen.get(positions, (set(), False))
        seen[positions] = widths | {channels}, is_map or _is_map(node, positions)

    for skip in paths.skips:
        inside = [paths.at(i) for i in skip.branch if paths.at(i).kind == "weight" and i not in paths.in_gates]
        add(paths.at(skip.join), _joined_channels(paths.at(skip.join), _channels(inside[-1]) if inside else 0))
    if not paths.skips:
        for node in paths.weights[:-1]:
            if node.index not in paths.in_gates:
                add(node, _channels(node))
    return dict(sorted(seen.items(), reverse=True))


def _joined_channels(join: Node, branch: int) -> int:
    """Channels of a sum: the axis of a map that is unlike the two others, the last one of tokens."""
    shape = join.shape
    if len(shape) == 4 and (join.kind == "cat" or shape[2] == shape[3]):
        return shape[1]
    if len(shape) == 4 and shape[1] != shape[2] and branch in shape:
        return branch
    return shape[-1]


def _stem(paths: Paths, picture: Tensor, sizes: Mapping[str, int]) -> Stem:
    first = paths.weights[0]
    pools = [node for node in paths.of("pool") if paths.depth[node.index] == 1 and "adaptive" not in node.name]
    strides = [(node.facts.get("stride") or node.facts.get("kernel_size") or [1])[0] for node in pools]
    name, channels, pooled = _largest(first, sizes), _channels(first), math.prod(strides)
    if first.name == "convolution":
        kernel, stride = first.facts["weight_shape"][-1], first.facts["stride"][-1]
        patch = kernel if kernel == stride > 1 and not any(first.facts["padding"]) else None
        return Stem(name, "convolution", kernel, stride, channels, pooled, patch)
    values = first.facts.get("width_in", first.facts.get("weight_shape", (0,))[-1])
    side = math.isqrt(values // len(picture))
    patch = side if side**2 * len(picture) == values < picture.numel() and _positions(first, channels) > 1 else None
    return Stem(name, "linear", 0, 1, channels, pooled, patch)


def _total_stride(paths: Paths, picture: Tensor, stem: Stem) -> int | None:
    maps = [positions for positions, (_, is_map) in _stages(paths).items() if is_map]
    if not maps or (stem.kind == "linear" and stem.patch is None):
        return None
    patches = _positions(paths.weights[0], stem.channels)
    last = patches if 0 < maps[-1] - patches <= CLASS_TOKENS else maps[-1]
    return round(math.sqrt(picture[0].numel() / last))


def _noise(module: nn.Module, picture: Tensor) -> tuple[tuple[Noise, ...], str]:
    try:
        paths = Paths(record(module.train(), picture))
    except (RuntimeError, ValueError) as error:
        return (), " ".join(str(error).split()).rstrip(".")
    found: dict[str, list[tuple[float | None, bool]]] = defaultdict(list)
    for node in paths.nodes:
        for draw in node.draws:
            kind = _noise_kind(draw.shape, draw.rate)
            found[kind].append((draw.rate, paths.feeds_only(node, paths.weights[-1])))
    return tuple(
        Noise(kind, len(draws), *_range(draws), all(head for _, head in draws)) for kind, draws in found.items()
    ), ""


def _noise_kind(shape: tuple[int, ...], rate: float | None) -> str:
    if rate is None:
        return "other"
    if math.prod(shape) <= BATCH:
        return "stochastic depth"
    return "channel dropout" if len(shape) > 2 and math.prod(shape[2:]) == 1 else "dropout"


def _range(draws: list[tuple[float | None, bool]]) -> tuple[float | None, float | None]:
    rates = [round(rate, 6) for rate, _ in draws if rate is not None]
    return min(rates, default=None), max(rates, default=None)


def _shares(paths: Paths, sizes: Mapping[str, int]) -> dict[str, float]:
    """Share of the parameters in layers of each kind; what belongs to none of them counts as ``other``."""
    kinds: dict[str, str] = {}
    rules: list[tuple[str, Callable[[Node], bool]]] = [
        ("convolution", lambda node: node.kind == "weight" and node.name == "convolution"),
        ("linear", lambda node: node.kind == "weight"),
        ("normalization", lambda node: node.kind == "norm"),
        ("scale", _scale),
    ]
    for node in paths.nodes:
        kind = next((kind for kind, holds in rules if holds(node)), None)
        if kind is not None:
            for name in node.matrix if kind == "scale" else node.parameters:
                kinds.setdefault(name, kind)
    owners = {name.rpartition(".")[0]: kind for name, kind in kinds.items() if "." in name}
    found: Counter[str] = Counter()
    for name, size in sizes.items():
        owner = owners.get(name.rpartition(".")[0], "other") if name.endswith("bias") else "other"
        found[kinds.get(name, owner)] += size
    total = sum(sizes.values())
    return {kind: size / total for kind, size in found.most_common()}
