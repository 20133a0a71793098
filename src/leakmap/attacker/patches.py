"""Which learned positions give away the patches of a picture: found by what flows, not by names.

The gradient of a position that is added to one token, and to nothing else, is the gradient of that token. So one
backward pass of a random loss tells: rows of a parameter whose gradients are those of the embedded patches, value by
value, are their positions. What stands behind them, or whether class and register tokens stand beside them, does not
matter.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from leakmap.attacker.finding import Finding, defended
from leakmap.attacker.trace import empty_targets, first_tensor
from leakmap.defences import defence_of
from leakmap.errors import NotApplicable
from leakmap.local_rule import LocalRule
from leakmap.models.network import Network, same_networks
from leakmap.observation.observation import Observation
from leakmap.once import once
from leakmap.problem.task import Task
from leakmap.seeds import generator

EQUAL = 1e-4
"""Relative difference below which two gradients are the same number; rounding leaves 1e-6."""
WORST_CONDITION = 1e6
"""Of the gradients of all patches: single precision then leaves one digit of the last direction."""
ZERO_HEAD = 0.02
"""Deviation of the random values in place of parameters that are exactly zero, through which no gradient passes."""
NAME = "patch_positions"


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches, their embedding and their positions.

    Args:
        embedding: Name of the weight that embeds each patch.
        position: Name of the learned positions.
        axis: Of the positions that is as long as a token is wide.
        rows: ``(patches,)`` place of the position of each patch among all positions.
        pixels: ``(patches, values)`` place of each value of a patch in the flattened picture.
    """

    embedding: str
    position: str
    axis: int
    rows: Tensor
    pixels: Tensor

    def of_tokens(self, positions: Tensor) -> Tensor:
        """``(patches, width)``, from a tensor of the shape of the positions."""
        return _flat(positions, self.axis)[self.rows]

    def picture(self, values: Tensor, task: Task) -> Tensor:
        """``(1, C, H, W)`` from ``(patches, values)``; pixels that are in no patch are 0, the mean of the data."""
        flat = values.new_zeros(task.shape).flatten()
        flat[self.pixels.flatten()] = values.flatten()
        return flat.view(1, *task.shape)


def readable_patches(observation: Observation) -> Patches:
    """The patches whose positions give them away.

    Raises:
        NotApplicable: there are none; the sentence says why.
    """
    network, rule = observation.network, observation.rule or LocalRule(mode="eval")
    finding, found = examined(network, observation.count, rule)
    if found is None:
        raise NotApplicable(f"The closed form {NAME!r} does not apply to {network.model}: {finding}.")
    for name in (found.position, found.embedding):
        if name not in observation.update.tensors:
            raise NotApplicable(f"The closed form {NAME!r} needs the gradient of {name!r}, which is not shared.")
    return found


def examined(network: Network, count: int | None, rule: LocalRule) -> tuple[Finding, Patches | None]:
    """Whether the positions give the patches away, and what to read if they do.

    Args:
        network: Architecture and weights.
        count: Examples of the client; None stands for one.
        rule: What the client does locally.
    """
    probe = _probe(network)
    if probe is None:
        why = "the network does not begin with an embedding of patches that do not overlap"
        return Finding(NAME, "", "", False, why), None
    found, why = _positions(probe)
    patches, width = probe.tokens.shape
    kind, why = type(probe.layer).__name__, why or _obstacle(patches, width, count, rule)
    if found is None or why:
        return Finding(NAME, probe.name, kind, False, why), None
    # Several steps on one picture are several equations with the same patches, and so is their sum.
    rule_exact = defence_of(rule.defence).exact
    values = torch.linalg.svdvals(probe.tokens)
    # Behind a LayerNorm gradients sum to zero over the width, so that as many patches as dimensions depend on one
    # another; so may those of a single attention.
    independent = float(values[-1]) * WORST_CONDITION > float(values[0])
    quality = "exact" if rule_exact and independent else "approximate"
    quality += "" if independent else ", as they depend on one another"
    why = f"embeds {patches} patches in {width} dimensions, and the learned positions {found.position} have the "
    return Finding(NAME, probe.name, kind, True, why + f"gradients of each: {quality}"), found


def _obstacle(patches: int, width: int, count: int | None, rule: LocalRule) -> str:
    """Why positions of the right kind give nothing away, else empty."""
    if patches > width:
        return f"embeds {patches} patches in {width} dimensions, which are more unknowns than equations"
    if count not in (None, 1):
        return f"sees {count} pictures, so that the gradient of a position is a mixture of theirs"
    if rule.optimizer != "sgd":
        return f"is trained by {rule.optimizer}, which rescales every entry of the gradient"
    if why := defended(rule, exactly=False):
        return why
    if defence_of(rule.defence).left == "largest":
        return f"is shared under the defence {rule.defence}, which leaves out entries that the equations need"
    return ""


def tiles(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of patches that do not overlap and leave no gap."""
    return (
        isinstance(layer, nn.Conv2d)
        and (layer.groups, layer.padding, layer.dilation) == (1, (0, 0), (1, 1))
        and layer.stride == layer.kernel_size
    )


@dataclass(frozen=True, eq=False)
class _Probe:
    """A patch embedding in a pass of one picture, and the gradients of a random loss.

    Args:
        name: Of the embedding.
        layer: The embedding.
        pixels: See :class:`Patches`.
        patches: ``(patches, values)``, normalized.
        tokens: ``(patches, width)`` gradient of what the embedding gives.
        gradients: Of the parameters that may be its positions, and of its weight.
        frozen: Names of parameters that a client does not train.
    """

    name: str
    layer: nn.Module
    pixels: Tensor
    patches: Tensor
    tokens: Tensor
    gradients: dict[str, Tensor]
    frozen: frozenset[str]


@once(same_networks)
def _probe(network: Network) -> _Probe | None:
    """Runs it; None where no layer embeds patches of the picture, or the outputs are no tensor."""
    module = network.module().eval()
    parameters = {name: p for name, p in module.named_parameters() if p.is_floating_point()}
    frozen = frozenset(name for name, p in parameters.items() if not p.requires_grad)
    source = generator(0, "positions")
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.requires_grad_(True)
            # Structure is asked for, not state: an untrained head of zeros would hide the positions.
            if not parameter.any():
                parameter.copy_(ZERO_HEAD * torch.randn(parameter.shape, generator=source))
    # No two pixels are alike, so that each value says where it comes from.
    order = torch.randperm(math.prod(network.task.shape), generator=source).to(network.device)
    picture = ((order + 0.5) / len(order) * 2 - 1).to(network.dtype).view(1, *network.task.shape)
    names = {layer: name for name, layer in module.named_modules()}
    seen: list[tuple[nn.Module, Tensor, Tensor, Tensor]] = []

    def note(layer: nn.Module, arguments: Any, result: Any) -> None:
        inputs = first_tensor(arguments)
        if not seen and inputs is not None and isinstance(result, Tensor):
            patches = _cut(layer, inputs)
            pixels = None if patches is None else _places(patches, picture)
            if patches is not None and pixels is not None:
                seen.append((layer, patches.detach().clone(), pixels, result))

    hooks = [m.register_forward_hook(note) for m in names if isinstance(m, nn.Conv2d | nn.Linear)]
    with sdpa_kernel(SDPBackend.MATH):
        outputs = first_tensor((module(picture, *empty_targets(network, 1)),))
    for hook in hooks:
        hook.remove()
    if not seen or outputs is None or not outputs.requires_grad:
        return None
    layer, patches, pixels, embedded = seen[0]
    width, weight = len(layer.get_parameter("weight")), f"{names[layer]}.weight"
    # What a layer multiplies by is no position; leaving it out saves most of the backward pass.
    factors = {f"{names[m]}.weight" for m in names if isinstance(m, nn.Conv2d | nn.Linear)} - {weight}
    read = {n: p for n, p in parameters.items() if n == weight or (p.ndim > 1 and width in p.shape)}
    read = {n: p for n, p in read.items() if n not in factors}
    # The equations hold for any loss: a random one stands for the client's.
    loss = (outputs * torch.randn(outputs.shape, generator=source).to(outputs)).sum()
    first, *rest = torch.autograd.grad(loss, [embedded, *read.values()], materialize_grads=True)
    tokens = first[0].flatten(1).T if isinstance(layer, nn.Conv2d) else first.reshape(-1, width)
    gradients = {name: gradient.double() for name, gradient in zip(read, rest, strict=True)}
    return _Probe(names[layer], layer, pixels, patches.double(), tokens.double(), gradients, frozen)


def _cut(layer: nn.Module, inputs: Tensor) -> Tensor | None:
    """``(patches, values)`` that a layer embeds one by one, in the order in which it gives their tokens."""
    if isinstance(layer, nn.Conv2d):
        kernel = (layer.kernel_size[0], layer.kernel_size[1])
        return F.unfold(inputs, kernel, stride=kernel)[0].T if tiles(layer) and inputs.ndim == 4 else None
    return inputs.reshape(-1, inputs.shape[-1])


def _places(patches: Tensor, picture: Tensor) -> Tensor | None:
    """Where in the flattened picture each value of a patch stands; None unless all are pixels, each in one patch."""
    pixels, order = picture.flatten().sort()
    if patches.shape[-1] == len(pixels) or patches.numel() > len(pixels):
        return None
    found = torch.searchsorted(pixels, patches.contiguous()).clamp(max=len(pixels) - 1)
    places = order[found]
    alike = torch.equal(pixels[found], patches) and len(places.unique()) == places.numel()
    return places if alike else None


def _positions(probe: _Probe) -> tuple[Patches | None, str]:
    """The positions of the patches, or why there are none, or why they give nothing away."""
    weight = f"{probe.name}.weight"
    if not float(probe.tokens.norm()) > 0:
        return None, "gets no gradient from the outputs"
    shared = probe.gradients.get(weight)
    expected = probe.tokens.T @ probe.patches
    if shared is None or float((shared.flatten(1) - expected).norm()) > EQUAL * float(expected.norm()):
        return None, "does not multiply each patch once by a weight of its own"
    others = {name: gradient for name, gradient in probe.gradients.items() if name != weight}
    for name, gradient in others.items():
        for axis in _axes(gradient, probe.tokens):
            rows = _rows(_flat(gradient, axis), probe.tokens)
            if rows is not None:
                frozen = next((n for n in (name, weight) if n in probe.frozen), "")
                why = f"has learned positions, but {frozen} is frozen and sends no gradient" if frozen else ""
                return Patches(weight, name, axis, rows, probe.pixels), why
    for name, gradient in others.items():
        if any(_mixes(_flat(gradient, axis), probe.tokens) for axis in _axes(gradient, probe.tokens)):
            return None, f"has positions {name} that are interpolated or shared, so that their gradients mix patches"
    return None, "has no learned positions that are added right behind it, one for each patch, and nowhere else"


def _axes(gradient: Tensor, tokens: Tensor) -> list[int]:
    return [axis for axis, length in enumerate(gradient.shape) if length == tokens.shape[1]]


def _flat(positions: Tensor, axis: int) -> Tensor:
    """``(positions, width)``."""
    return positions.movedim(axis, -1).flatten(0, -2)


def _rows(positions: Tensor, tokens: Tensor) -> Tensor | None:
    """``(patches,)`` the row of the positions that equals each row of the tokens; None unless all do, each another."""
    if len(positions) < len(tokens):
        return None
    # Rows that are alike are alike along any direction, where they are found at once.
    along = torch.randn(tokens.shape[1], generator=generator(0, "along"), dtype=tokens.dtype).to(tokens.device)
    rows = ((tokens @ along)[:, None] - (positions @ along)[None]).abs().argmin(dim=1)
    close = bool(((positions[rows] - tokens).norm(dim=1) <= EQUAL * tokens.norm(dim=1)).all())
    return rows if close and len(rows.unique()) == len(tokens) else None


def _mixes(positions: Tensor, tokens: Tensor) -> bool:
    """Whether some row of the positions is a combination of rows of the tokens."""
    if len(tokens) >= tokens.shape[1]:
        return False
    basis = torch.linalg.qr(tokens.T).Q
    outside = (positions - positions @ basis @ basis.T).norm(dim=1)
    norms = positions.norm(dim=1)
    return bool((outside[norms > 0] <= EQUAL * norms[norms > 0]).any())
