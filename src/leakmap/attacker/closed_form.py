"""Which layers a closed form can read, and why not the others: from the network alone, without update or truth.

One forward pass of random inputs in inference mode shows what every layer sees; comparing values, not names, tells
whether that is the picture, and what follows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from leakmap.client_step import LocalRule
from leakmap.defences import defence_of
from leakmap.errors import NotApplicable
from leakmap.models.network import Network
from leakmap.observation.observation import Observation
from leakmap.problem.objects import EMPTY
from leakmap.seeds import generator

ClosedForm = Literal["linear", "spear", "april", "rgap"]
LARGEST_BATCH = 24
"""SPEAR draws about ``2 ** (batch - 1)`` sets of rows; beyond this batch that takes hours."""
WORST_CONDITION = 1e6
"""Of the system that APRIL solves: single precision then leaves one digit."""
SHORTCUT = 1e-3
"""Relative residual above which APRIL's system does not hold; rounding leaves 1e-6."""
_INVERTIBLE = (nn.Conv2d, nn.Linear, nn.Flatten, nn.Identity, nn.Dropout, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid)


@dataclass(frozen=True)
class Finding:
    """Whether one closed form can read what one layer sees.

    Args:
        attack: The closed form.
        layer: Name of the layer in the model; empty where the network has no layer of the kind.
        kind: Class of the layer.
        qualifies: Whether it can.
        why: The reason, as a sentence whose subject is the layer.
    """

    attack: ClosedForm
    layer: str
    kind: str
    qualifies: bool
    why: str

    def __str__(self) -> str:
        return f"{self.layer} ({self.kind}) {self.why}" if self.layer else self.why


def diagnose(network: Network, count: int | None = None, rule: LocalRule | None = None) -> list[Finding]:
    """Every closed form against every layer that it might read, in the order of the forward pass.

    Args:
        network: Architecture and weights.
        count: Examples of the client; None judges each closed form at its best.
        rule: What the client does locally; None stands for one gradient in training mode.

    Source: linear: Phong et al. 2018; spear: Dimitrov et al. 2024, arXiv:2403.03945; april: Lu et al. 2022,
    arXiv:2112.14087; rgap: Zhu and Blaschko 2021, arXiv:2010.07733.
    """
    trace, rule = _trace(network), rule or LocalRule()
    return [
        *_layers("linear", trace, count, rule),
        *_layers("spear", trace, count, rule),
        _april(trace, count, rule)[0],
        *_rgap(trace, count),
    ]


def summary(findings: Sequence[Finding]) -> list[str]:
    """One sentence for each closed form: how many layers qualify, the first that does and the first that does not."""
    lines: list[str] = []
    for attack in dict.fromkeys(finding.attack for finding in findings):
        mine = [finding for finding in findings if finding.attack == attack]
        good = [finding for finding in mine if finding.qualifies]
        bad = [finding for finding in mine if not finding.qualifies]
        first = "; ".join(str(group[0]) for group in (good, bad) if group)
        lines.append(f"{attack}: {len(good)} of {len(mine)} layers qualify; {first}.")
    return lines


def qualifying_layer(observation: Observation, attack: Literal["linear", "spear"]) -> str:
    """Name of the linear layer that a closed form can read; a rule that is not granted rules nothing out.

    Raises:
        NotApplicable: there is none; the sentence says which layer was looked at and what stands in the way.
    """
    # Inference mode excludes the least: a BatchNorm behind a layer speaks against it in training mode only.
    network, rule = observation.network, observation.rule or LocalRule(mode="eval")
    findings = _layers(attack, _trace(network), observation.count, rule)
    for finding in findings:
        if finding.qualifies and f"{finding.layer}.weight" in observation.update.tensors:
            return finding.layer
    seen = f"layer {findings[0]}" if findings[0].layer else findings[0].why
    raise NotApplicable(
        f"The closed form {attack!r} needs a linear layer with a bias on the picture itself"
        f"{', a ReLU behind it' if attack == 'spear' else ''}; {network.model} does not begin with one: {seen}."
    )


@dataclass(frozen=True, eq=False)
class _Call:
    name: str
    layer: nn.Module
    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True, eq=False)
class _Trace:
    network: Network
    module: nn.Module
    pictures: Tensor
    calls: list[_Call]

    def after(self, call: _Call) -> list[_Call]:
        return self.calls[self.calls.index(call) + 1 :]


def _trace(network: Network) -> _Trace:
    """What every layer that holds parameters, or no other layers, sees and gives for two random pictures."""
    module = network.module().eval()
    pictures = torch.randn(2, *network.task.shape, generator=generator(0, "trace"))
    pictures = pictures.to(network.device, network.dtype)
    names = {layer: name for name, layer in module.named_modules()}
    calls: list[_Call] = []

    def note(layer: nn.Module, arguments: Any, keywords: dict[str, Any], result: Any) -> None:
        inputs, outputs = _first((*arguments, *keywords.values())), _first((result,))
        if inputs is not None and outputs is not None:
            # Copies: a later layer may work in place.
            calls.append(_Call(names[layer], layer, inputs.clone(), outputs.clone()))

    watched = [m for m in names if not any(m.children()) or any(True for _ in m.parameters(recurse=False))]
    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in watched]
    targets = [torch.full(network.task.target_shape(2), EMPTY, device=network.device)] if network.task.objects else []
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(pictures, *targets)
    for hook in hooks:
        hook.remove()
    return _Trace(network, module, pictures, calls)


def _first(values: Any) -> Tensor | None:
    """The first tensor among values, or in the tuple that comes first."""
    first = next((value for value in values if isinstance(value, Tensor | tuple)), None)
    return _first(first) if isinstance(first, tuple) else first


def _finding(attack: ClosedForm, call: _Call, qualifies: bool, why: str) -> Finding:
    return Finding(attack, call.name, type(call.layer).__name__, qualifies, why)


def _same(a: Tensor, b: Tensor) -> bool:
    # Bit by bit: reshaping keeps every value, while whatever computes with them changes some.
    return torch.equal(a.reshape(len(a), -1), b.reshape(len(b), -1))


def _layers(attack: Literal["linear", "spear"], trace: _Trace, count: int | None, rule: LocalRule) -> list[Finding]:
    """A closed form for linear layers against every layer that might be one."""
    reads = {"linear": _linear, "spear": _spear}[attack]
    layers = [call for call in trace.calls if isinstance(call.layer, nn.Linear | nn.Conv2d)]
    findings = [_finding(attack, call, *reads(trace, call, count, rule)) for call in layers]
    return findings or [Finding(attack, "", "", False, "the network calls no linear layer")]


def _linear(trace: _Trace, call: _Call, count: int | None, rule: LocalRule) -> tuple[bool, str]:
    layer = call.layer
    if isinstance(layer, nn.Conv2d):
        return False, "is a convolution, whose gradient is a sum over positions"
    if not _same(call.inputs, trace.pictures) or layer.in_features != trace.pictures[0].numel():
        return False, "sees features, not the picture: the features could be read, the picture not"
    if layer.bias is None:
        return False, "has no bias, by whose gradient that of the weight is divided"
    if not all(p.requires_grad for p in layer.parameters()):
        return False, "is frozen, so that no gradient of it is shared"
    if rule.optimizer != "sgd":
        return False, f"is trained by {rule.optimizer}, which rescales every entry of the gradient"
    if defended := _defended(rule, exactly=False):
        return False, defended
    norms = [c for c in trace.after(call) if isinstance(c.layer, _BatchNorm) and _same(c.inputs, call.outputs)]
    if norms and rule.mode == "train":
        return False, "is followed by BatchNorm, so that the gradient of its bias vanishes in training mode"
    defence = defence_of(rule.defence)
    exact = "exact" if defence.exact else "approximate"
    exact += "" if count in (None, 1) else f" for rows that are active for one of the {count} examples alone"
    exact += f", where {rule.defence} sends them whole" if defence.left == "largest" else ""
    return True, f"sees the picture and has a bias: {exact}"


def _spear(trace: _Trace, call: _Call, count: int | None, rule: LocalRule) -> tuple[bool, str]:
    qualifies, why = _linear(trace, call, count, rule)
    if not qualifies:
        return False, why
    active, after = call.outputs.relu(), trace.after(call)
    by_module = any(isinstance(c.layer, nn.ReLU) and _same(c.inputs, call.outputs) for c in after)
    if not by_module and not any(_same(c.inputs, active) for c in after):
        return False, "is followed by no ReLU, which would make its gradient sparse"
    if why := _several_steps(count, rule) or _defended(rule, exactly=True):
        return False, why
    if count is not None and count > LARGEST_BATCH:
        return False, f"sees {count} pictures, about 2^{count - 1} draws; up to {LARGEST_BATCH} are feasible"
    return True, "sees the picture, has a bias and feeds a ReLU: exact"


def _defended(rule: LocalRule, *, exactly: bool) -> str:
    """Why equations between the entries of a gradient do not hold for a defended one, else empty."""
    defence = defence_of(rule.defence)
    if defence.left == "signs":
        return f"is shared under the defence {rule.defence}, which leaves no sizes to divide by one another"
    if exactly and not (defence.exact and defence.left != "largest"):
        return f"is shared under the defence {rule.defence}; the equations hold exactly or not at all"
    return ""


def _several_steps(count: int | None, rule: LocalRule) -> str:
    steps = rule.steps(count or 1)
    return f"changes during the client's {steps} local steps; the equations hold for one" if steps > 1 else ""


@dataclass(frozen=True)
class Attention:
    """Names of what APRIL solves with.

    Args:
        embedding: Weight of the convolution that embeds the patches.
        position: The learned positions.
        readers: The weights that multiply embedding plus position: those of query, key and value.
    """

    embedding: str
    position: str
    readers: tuple[str, ...]

    def system(self, network: Network, gradient: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The linear system ``A z = M`` for the tokens ``z (tokens, dim)`` that the attention sees.

        For each reader ``q = z W^T`` the gradient of ``W`` is ``dq^T z`` and that of ``z`` is ``dq W``. So the sum of
        ``W^T dW`` over query, key and value is ``A z``, where ``A`` is the transposed gradient of the positions.

        Args:
            network: Gives the weights.
            gradient: In float64, by name.
        """
        terms = [network.weights[name].double().T @ gradient[name] for name in self.readers]
        right = torch.stack(terms).sum(dim=0)
        return gradient[self.position].reshape(-1, len(right)).T, right


def first_attention(observation: Observation) -> Attention:
    """The first attention, where APRIL can read its input.

    Raises:
        NotApplicable: it cannot; the sentence says why.
    """
    rule = observation.rule or LocalRule(mode="eval")
    finding, found = _april(_trace(observation.network), observation.count, rule)
    if found is None:
        raise NotApplicable(f"The closed form 'april' does not apply to {observation.network.model}: {finding}.")
    return found


def _april(trace: _Trace, count: int | None, rule: LocalRule) -> tuple[Finding, Attention | None]:
    first = trace.calls[0] if trace.calls else None
    if first is None or not (_embeds_patches(first.layer) and _same(first.inputs, trace.pictures)):
        why = "the network does not begin with a convolution of patches that do not overlap"
        return Finding("april", "", "", False, why), None
    readers = {f"{c.name}.{_weight(c.layer)}": c for c in trace.after(first) if _weight(c.layer) and c.inputs.ndim == 3}
    if not readers:
        return Finding("april", "", "", False, "the network has no attention on its patches"), None
    call = next(iter(readers.values()))
    tokens, patches = _tokens(call), first.outputs.flatten(2).transpose(1, 2)
    length, dim = tokens.shape[1:]
    position = _position(trace, patches, tokens)
    norm = next((c for c in trace.after(first) if isinstance(c.layer, nn.LayerNorm) and _same(c.outputs, tokens)), None)
    found = None
    if norm is not None:
        why = f"does not see embedding plus position: the LayerNorm {norm.name} stands between"
    elif position is None:
        why = "does not see embedding plus learned positions"
    elif (values := trace.network.weights[f"{first.name}.weight"][0].numel()) > dim:
        why = f"sees patches of {values} values in {dim} dimensions, which cannot be inverted"
    elif length > dim:
        why = f"sees {length} tokens of width {dim}, which are more unknowns than equations"
    elif count not in (None, 1):
        why = f"sees {count} pictures; the closed form reads one"
    elif rule.optimizer != "sgd":
        why = f"is trained by {rule.optimizer}, which rescales every entry of the gradient"
    elif not (why := _several_steps(count, rule) or _defended(rule, exactly=True)):
        same = tuple(name for name, c in readers.items() if _same(_tokens(c), tokens))
        found = Attention(f"{first.name}.weight", position, same)
        why = _unsolvable(trace, found, tokens[0])
    if why:
        return _finding("april", call, False, why), None
    return _finding("april", call, True, f"sees embedding plus position, {length} tokens of width {dim}: exact"), found


def _embeds_patches(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d):
        return False
    return layer.groups == 1 and layer.padding == (0, 0) and layer.stride == layer.kernel_size


def _weight(layer: nn.Module) -> str:
    """Name of the matrix that multiplies a layer's input; empty where there is none."""
    if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
        return "in_proj_weight"
    return "weight" if isinstance(layer, nn.Linear) else ""


def _tokens(call: _Call) -> Tensor:
    return call.inputs if getattr(call.layer, "batch_first", True) else call.inputs.transpose(0, 1)


def _position(trace: _Trace, patches: Tensor, tokens: Tensor) -> str | None:
    """Name of the parameter that was added to the embedded patches to give the tokens."""
    for name, parameter in trace.module.named_parameters():
        if parameter.requires_grad and parameter.numel() == tokens[0].numel() and patches.shape[2] == tokens.shape[2]:
            rest = (tokens - parameter.detach().reshape(tokens[0].shape))[:, -patches.shape[1] :]
            # Adding and subtracting a position leaves rounding.
            if rest.shape == patches.shape and torch.allclose(rest, patches, rtol=1e-4, atol=1e-5):
                return name
    return None


def _unsolvable(trace: _Trace, found: Attention, tokens: Tensor) -> str:
    """Tries the system on a random picture: why it does not hold or has many solutions, else empty."""
    parameters = dict(trace.module.named_parameters())
    names = (found.position, *found.readers)
    with sdpa_kernel(SDPBackend.MATH):
        outputs = _first((trace.module(trace.pictures[:1]),))
    if outputs is None:
        return "feeds a network whose outputs are no tensor, so that the equations cannot be tried"
    # The equations hold for any loss: a random one stands for the client's.
    weigh = torch.randn(outputs.shape, generator=generator(1, "trace")).to(outputs)
    gradients = torch.autograd.grad((outputs * weigh).sum(), [parameters[n] for n in names], materialize_grads=True)
    # In float64, so that the system adds no rounding to that of the gradients.
    matrix, right = found.system(trace.network, {n: g.double() for n, g in zip(names, gradients, strict=True)})
    values = torch.linalg.svdvals(matrix)
    # Not the other way round: values that are not finite must not qualify, here and below.
    if not float(values[-1]) * WORST_CONDITION > float(values[0]):
        return "has tokens whose gradients depend on one another, so that they cannot be told apart"
    if not float((matrix @ tokens.double() - right).norm()) < SHORTCUT * float(right.norm()):
        return "has a shortcut around it, so that the gradient of the positions is not the attention's alone"
    return ""


def _rgap(trace: _Trace, count: int | None) -> list[Finding]:
    """R-GAP's rank condition: equations against unknowns of every convolution, summed from the last one down."""
    caveats = _unlike_rgap(trace, count)
    findings: list[Finding] = []
    deficiency = 0
    for call in reversed(trace.calls):
        if not isinstance(call.layer, nn.Conv2d):
            continue
        pixels = call.inputs[0].numel()
        unknowns = F.pad(call.inputs[0], call.layer._reversed_padding_repeated_twice).numel()
        shared, forward = call.layer.weight.numel(), call.outputs[0].numel()
        deficiency += pixels - shared - forward
        why = (
            f"gives {shared} gradient, {forward} forward and {unknowns - pixels} padding equations for {unknowns} "
            f"unknowns, a deficiency of {deficiency} from the last convolution down to it"
        )
        why += f" (an indication only: {', '.join(caveats)})" if caveats else ""
        findings.append(_finding("rgap", call, deficiency <= 0 and not caveats, why))
        if deficiency > 0:
            caveats = [*caveats, f"the recursion stops at {call.name}"]
    return findings[::-1] or [Finding("rgap", "", "", False, "the network has no convolution")]


def _unlike_rgap(trace: _Trace, count: int | None) -> list[str]:
    """What the recursion does not allow for."""
    leaves = [call for call in trace.calls if not any(call.layer.children())]
    caveats = [] if count in (None, 1) else [f"{count} pictures instead of one"]
    for kind in dict.fromkeys(type(call.layer).__name__ for call in leaves if not isinstance(call.layer, _INVERTIBLE)):
        caveats.append(f"{kind} is not invertible")
    if not all(_same(first.outputs, then.inputs) for first, then in pairwise(leaves)):
        caveats.append("the layers are no plain chain")
    return caveats
