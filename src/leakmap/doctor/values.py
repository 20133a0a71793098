"""What the values of an update look like: number format, traces of a defence."""

import math

import torch
from torch import Tensor

from leakmap.auditing.case import norm
from leakmap.observation.observation import Observation

SAMPLE = 2**16
"""Entries of a tensor that are looked at for their number format."""
EVEN = 1.25
"""Noise has the same size in every tensor: largest root mean square over smallest below this."""


def rounding(observation: Observation) -> tuple[str, float]:
    """Number format in which the update travelled, and about which share of its norm that rounded away.

    A delta is a difference of weights, so it is rounded as weights are: a small one is mostly rounding. Values that all
    fit into a smaller format than they are stored in have been through it.
    """
    tensors, weights = observation.update.tensors, observation.network.weights
    size = norm(list(tensors.values()))
    if not size:
        return str(next(iter(tensors.values())).dtype).removeprefix("torch."), math.inf
    held = norm([weights[name] for name in tensors])
    stored = next(iter(tensors.values())).dtype
    delta = observation.update.kind == "delta"
    # Multiples of one step fit into bfloat16 if they are few, but have not been through it.
    stepped = _levels([t.flatten() for t in tensors.values() if t.numel() >= 1024]) is not None
    for form in () if stepped else (torch.bfloat16, torch.float16):
        if stored.itemsize <= form.itemsize:
            continue
        if delta and _fits([weights[name] + t for name, t in tensors.items()], form, torch.finfo(stored).eps):
            return form_name(form), torch.finfo(form).eps / 4 * held / size
        if _fits(list(tensors.values()), form, 0.0):
            return form_name(form), torch.finfo(form).eps / 4
    eps = torch.finfo(stored).eps
    return form_name(stored), eps / 4 * (held / size if delta else 1.0)


def whole_numbers(observation: Observation) -> int:
    """Largest magnitude where every entry is a whole number, at most that of 16 bits; else 0."""
    tensors = observation.update.tensors.values()
    if not all(torch.equal(t, t.round()) for t in tensors):
        return 0
    largest = max(float(t.abs().max()) for t in tensors)
    return round(largest) if largest < 2**15 else 0


def likely_defence(observation: Observation) -> str | None:
    """Specification of the defence that the values of an update look like, None if they look like none."""
    tensors = [tensor.flatten() for tensor in observation.update.tensors.values()]
    magnitudes = torch.cat([t[:SAMPLE].abs() for t in tensors])
    if bool(magnitudes.any()) and bool(((magnitudes == 0) | (magnitudes == 1)).all()):
        return "sign"
    large = [t for t in tensors if t.numel() >= 64 and bool(t.any())]
    if not large:
        return None
    matrices = [t for t in observation.update.tensors.values() if t.ndim > 1 and t.numel() >= 64]
    scattered = any(map(_scattered, matrices)) or not matrices
    keep = round(float((max(large, key=Tensor.numel) != 0).double().mean()), 2)
    counts = [(int((t != 0).sum()), t.numel()) for t in large]
    if scattered and 0 < keep <= 0.9 and all(abs(kept - math.ceil(keep * n)) <= 1 + 0.005 * n for kept, n in counts):
        return f"topk,keep={keep:g}"
    if levels := _levels([t for t in large if t.numel() >= 1024]):
        bits = next(bits for bits in range(2, 17) if 2 ** (bits - 1) - 1 >= levels)
        return f"quantise,bits={bits}"
    total = norm(tensors)
    leading = float(f"{total:.0e}")
    if abs(total / leading - 1) < 1e-5:
        return f"clip_noise,clip={leading:g},noise=0"
    return None


def _scattered(tensor: Tensor) -> bool:
    """Whether some zeros are no whole rows or columns, which a unit that gave nothing for any picture leaves."""
    left = tensor.flatten(1) != 0
    return bool((~left & left.any(1, keepdim=True) & left.any(0, keepdim=True)).any())


def form_name(form: torch.dtype) -> str:
    """Of a number format, for readers."""
    return str(form).removeprefix("torch.")


def halves(tensors: list[Tensor]) -> list[torch.dtype]:
    """Formats of 16 bits that all values fit into, so that they may have been through them."""
    return [form for form in (torch.bfloat16, torch.float16) if tensors and _fits(tensors, form, 0.0)]


def _fits(tensors: list[Tensor], form: torch.dtype, slack: float) -> bool:
    """Whether nearly all values but 0 are those of a smaller format, to a relative slack."""
    values = torch.cat([tensor.flatten()[:SAMPLE] for tensor in tensors])
    values = values[values.abs() > 16 * torch.finfo(form).tiny]
    if len(values) < 16:
        return False
    near = (values - values.to(form).to(values.dtype)).abs() <= slack * values.abs()
    return float(near.float().mean()) > 0.98


def _levels(tensors: list[Tensor]) -> int | None:
    """Most multiples of a common step up to the largest magnitude of a tensor; None unless all values are such."""
    most = 0
    for tensor in tensors:
        values = tensor[:SAMPLE].abs().unique()
        values = values[values > 0]
        if not 0 < len(values) <= 127:
            return None
        multiples = values / values[0]
        if float((multiples - multiples.round()).abs().max()) > 1e-3:
            return None
        most = max(most, round(float(multiples[-1])))
    return most if most > 1 else None


def is_even(o: Observation) -> bool:
    """Whether all tensors have the same size, as noise has and gradients have not."""
    sizes = [float(t.double().square().mean().sqrt()) for t in o.update.tensors.values() if t.numel() >= 64]
    return len(sizes) > 2 and max(sizes) < EVEN * min(sizes)
