"""Which layers a closed form can read, and why not the others: from the network alone, without update or truth.

One forward pass of random inputs in inference mode shows what every layer sees; comparing values, not names, tells
whether that is the picture, and what follows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from leakmap.attacker.finding import ClosedForm, Finding, defended, several_steps
from leakmap.attacker.patches import examined, tiles
from leakmap.attacker.trace import Call, Trace, first_tensor, same, traced
from leakmap.defences import defence_of
from leakmap.errors import NotApplicable
from leakmap.local_rule import LocalRule
from leakmap.models.network import Network
from leakmap.observation.observation import Observation
from leakmap.seeds import generator

LARGEST_BATCH = 24
"""SPEAR draws about ``2 ** (batch - 1)`` sets of rows; beyond this batch that takes hours."""
WORST_CONDITION = 1e6
"""Of the system that APRIL solves: single precision then leaves one digit."""
SHORTCUT = 1e-3
"""Relative residual above which APRIL's system does not hold; rounding leaves 1e-6."""
_INVERTIBLE = (nn.Conv2d, nn.Linear, nn.Flatten, nn.Identity, nn.Dropout, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid)


def diagnose(network: Network, count: int | None = None, rule: LocalRule | None = None) -> list[Finding]:
    """Every closed form against every layer that it might read, in the order of the forward pass.

    Args:
        network: Architecture and weights.
        count: Examples of the client; None judges each closed form at its best.
        rule: What the client does locally; None stands for one gradient in training mode.

    Source: linear: Phong et al. 2018; spear: Dimitrov et al. 2024, arXiv:2403.03945; april: Lu et al. 2022,
    arXiv:2112.14087; patch_positions: this project; rgap: Zhu and Blaschko 2021, arXiv:2010.07733.
    """
    trace, rule = traced(network), rule or LocalRule()
    return [
        *_layers("linear", trace, count, rule),
        *_layers("spear", trace, count, rule),
        _april(trace, count, rule)[0],
        examined(network, count, rule)[0],
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
    findings = _layers(attack, traced(network), observation.count, rule)
    for finding in findings:
        if finding.qualifies and f"{finding.layer}.weight" in observation.update.tensors:
            return finding.layer
    seen = f"layer {findings[0]}" if findings[0].layer else findings[0].why
    raise NotApplicable(
        f"The closed form {attack!r} needs a linear layer with a bias on the picture itself"
        f"{', a ReLU behind it' if attack == 'spear' else ''}; {network.model} does not begin with one: {seen}."
    )


def _finding(attack: ClosedForm, call: Call, qualifies: bool, why: str) -> Finding:
    return Finding(attack, call.name, type(call.layer).__name__, qualifies, why)


def _layers(attack: Literal["linear", "spear"], trace: Trace, count: int | None, rule: LocalRule) -> list[Finding]:
    """A closed form for linear layers against every layer that might be one."""
    reads = {"linear": _linear, "spear": _spear}[attack]
    layers = [call for call in trace.calls if isinstance(call.layer, nn.Linear | nn.Conv2d)]
    findings = [_finding(attack, call, *reads(trace, call, count, rule)) for call in layers]
    return findings or [Finding(attack, "", "", False, "the network calls no linear layer")]


def _linear(trace: Trace, call: Call, count: int | None, rule: LocalRule) -> tuple[bool, str]:
    layer = call.layer
    if isinstance(layer, nn.Conv2d):
        return False, "is a convolution, whose gradient is a sum over positions"
    if not same(call.inputs, trace.pictures) or layer.in_features != trace.pictures[0].numel():
        return False, "sees features, not the picture: the features could be read, the picture not"
    if layer.bias is None:
        return False, "has no bias, by whose gradient that of the weight is divided"
    if not all(p.requires_grad for p in layer.parameters()):
        return False, "is frozen, so that no gradient of it is shared"
    if rule.optimizer != "sgd":
        return False, f"is trained by {rule.optimizer}, which rescales every entry of the gradient"
    if why := defended(rule, exactly=False):
        return False, why
    norms = [c for c in trace.after(call) if isinstance(c.layer, _BatchNorm) and same(c.inputs, call.outputs)]
    if norms and rule.mode == "train":
        return False, "is followed by BatchNorm, so that the gradient of its bias vanishes in training mode"
    defence = defence_of(rule.defence)
    exact = "exact" if defence.exact else "approximate"
    exact += "" if count in (None, 1) else f" for rows that are active for one of the {count} examples alone"
    exact += f", where {rule.defence} sends them whole" if defence.left == "largest" else ""
    return True, f"sees the picture and has a bias: {exact}"


def _spear(trace: Trace, call: Call, count: int | None, rule: LocalRule) -> tuple[bool, str]:
    qualifies, why = _linear(trace, call, count, rule)
    if not qualifies:
        return False, why
    active, after = call.outputs.relu(), trace.after(call)
    by_module = any(isinstance(c.layer, nn.ReLU) and same(c.inputs, call.outputs) for c in after)
    if not by_module and not any(same(c.inputs, active) for c in after):
        return False, "is followed by no ReLU, which would make its gradient sparse"
    if why := several_steps(count, rule) or defended(rule, exactly=True):
        return False, why
    if count is not None and count > LARGEST_BATCH:
        return False, f"sees {count} pictures, about 2^{count - 1} draws; up to {LARGEST_BATCH} are feasible"
    return True, "sees the picture, has a bias and feeds a ReLU: exact"


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
    finding, found = _april(traced(observation.network), observation.count, rule)
    if found is None:
        raise NotApplicable(f"The closed form 'april' does not apply to {observation.network.model}: {finding}.")
    return found


def _april(trace: Trace, count: int | None, rule: LocalRule) -> tuple[Finding, Attention | None]:
    first = trace.calls[0] if trace.calls else None
    if first is None or not (tiles(first.layer) and same(first.inputs, trace.pictures)):
        why = "the network does not begin with a convolution of patches that do not overlap"
        return Finding("april", "", "", False, why), None
    readers = {f"{c.name}.{_weight(c.layer)}": c for c in trace.after(first) if _weight(c.layer) and c.inputs.ndim == 3}
    if not readers:
        return Finding("april", "", "", False, "the network has no attention on its patches"), None
    call = next(iter(readers.values()))
    tokens, patches = _tokens(call), first.outputs.flatten(2).transpose(1, 2)
    length, dim = tokens.shape[1:]
    position = _position(trace, patches, tokens)
    norm = next((c for c in trace.after(first) if isinstance(c.layer, nn.LayerNorm) and same(c.outputs, tokens)), None)
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
    elif not (why := several_steps(count, rule) or defended(rule, exactly=True)):
        alike = tuple(name for name, c in readers.items() if same(_tokens(c), tokens))
        found = Attention(f"{first.name}.weight", position, alike)
        why = _unsolvable(trace, found, tokens[0])
    if why:
        return _finding("april", call, False, why), None
    return _finding("april", call, True, f"sees embedding plus position, {length} tokens of width {dim}: exact"), found


def _weight(layer: nn.Module) -> str:
    """Name of the matrix that multiplies a layer's input; empty where there is none."""
    if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
        return "in_proj_weight"
    return "weight" if isinstance(layer, nn.Linear) else ""


def _tokens(call: Call) -> Tensor:
    return call.inputs if getattr(call.layer, "batch_first", True) else call.inputs.transpose(0, 1)


def _position(trace: Trace, patches: Tensor, tokens: Tensor) -> str | None:
    """Name of the parameter that was added to the embedded patches to give the tokens."""
    for name, parameter in trace.module.named_parameters():
        if parameter.requires_grad and parameter.numel() == tokens[0].numel() and patches.shape[2] == tokens.shape[2]:
            rest = (tokens - parameter.detach().reshape(tokens[0].shape))[:, -patches.shape[1] :]
            # Adding and subtracting a position leaves rounding.
            if rest.shape == patches.shape and torch.allclose(rest, patches, rtol=1e-4, atol=1e-5):
                return name
    return None


def _unsolvable(trace: Trace, found: Attention, tokens: Tensor) -> str:
    """Tries the system on a random picture: why it does not hold or has many solutions, else empty."""
    parameters = dict(trace.module.named_parameters())
    names = (found.position, *found.readers)
    with sdpa_kernel(SDPBackend.MATH):
        outputs = first_tensor((trace.module(trace.pictures[:1]),))
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


def _rgap(trace: Trace, count: int | None) -> list[Finding]:
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


def _unlike_rgap(trace: Trace, count: int | None) -> list[str]:
    """What the recursion does not allow for."""
    leaves = [call for call in trace.calls if not any(call.layer.children())]
    caveats = [] if count in (None, 1) else [f"{count} pictures instead of one"]
    for kind in dict.fromkeys(type(call.layer).__name__ for call in leaves if not isinstance(call.layer, _INVERTIBLE)):
        caveats.append(f"{kind} is not invertible")
    if not all(same(first.outputs, then.inputs) for first, then in pairwise(leaves)):
        caveats.append("the layers are no plain chain")
    return caveats
