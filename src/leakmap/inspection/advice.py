"""What each trait is expected to do to leakage, and what to change.

Directions come from published claims and from the rules that this project audits by; they are expectations about
architectures, not measurements of the network at hand. docs/inspect.md lists the claims by number.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from leakmap.inspection.traits import Norm, Traits

_PAPER = "arXiv 2508.19819, expected direction"
_PLACES = {
    "pre": "in front of weight layers (pre-activation, pre-norm)",
    "post": "behind weight layers or additions (post-activation, post-norm)",
    "inside": "between the weight layers of a branch only",
    "none": "no normalization",
}

_CURES = {
    "linear": "Begin with a convolution, or drop the bias of this layer; then audit again.",
    "april": "Keep the shortcut around the first attention, or a LayerNorm in front of it.",
    "patch_positions": "Freeze the positions or the patch embedding, so that their gradients are never sent, or use "
    "fixed sinusoidal positions; several pictures in a batch mix theirs. Then audit again.",
}
"""Closed form -> what stops it; SPEAR reads no layer that ``linear`` does not, and R-GAP needs a chain of layers."""


@dataclass(frozen=True)
class Advice:
    """One trait in words.

    Args:
        trait: Its name.
        found: What the network has.
        meaning: What that is expected to do to leakage.
        change: What to change to lower it; empty where nothing needs to be.
        source: Where the expectation comes from.
    """

    trait: str
    found: str
    meaning: str
    change: str
    source: str


def advise(traits: Traits) -> list[Advice]:
    """Every trait in the order of the forward pass, then those that concern the whole network."""
    parts = (_stem, _closed_forms, _size, _skips, _placement, _normalization, _noise, _activation, _attention, _start)
    return [advice for part in parts for advice in part(traits)]


def _stem(traits: Traits) -> Iterator[Advice]:
    stem, total = traits.stem, traits.total_stride
    if stem.kind == "linear":
        found = f"linear layer, {stem.channels} wide" + (f", on patches of {stem.patch} pixels" if stem.patch else "")
    else:
        found = f"{stem.kernel}x{stem.kernel} convolution, stride {stem.stride}, {stem.channels} channels"
        found += f", patches of {stem.patch} pixels" if stem.patch else ""
        found += f", then pooling with stride {stem.pool_stride}" if stem.pool_stride > 1 else ""
        found += f"; total stride {total}" if total else ""
    if stem.kind == "linear" and not stem.patch:
        meaning = "The first layer mixes all pixels; its gradient is a sum of whole pictures (see closed forms)."
        change = "Begin with a strided convolution."
    elif stem.stride * stem.pool_stride > 1:
        meaning = (
            "Early down-sampling leaves fine detail to the gradient of the stem alone; expected to leak less detail."
        )
        change = ""
    else:
        meaning = "The first features keep the full resolution; expected to leak more detail."
        change = "Down-sample in the stem: stride 2 and a pooling, or patches."
    yield Advice("stem", found, meaning, change, "rule 6.9, expected direction")


def _closed_forms(traits: Traits) -> Iterator[Advice]:
    if traits.closed_forms:
        yield Advice(
            "closed form",
            "; ".join(traits.closed_forms),
            "An equation gives the picture back exactly; no search is needed.",
            " ".join(
                cure for name, cure in _CURES.items() if name in {c.partition(":")[0] for c in traits.closed_forms}
            ),
            "rule 6.9; Phong et al. 2018, arXiv 2403.03945 (SPEAR), 2112.14087 (APRIL), 2010.07733 (R-GAP), "
            "docs/results/patch-positions.md",
        )
    else:
        yield Advice(
            "closed form",
            "no layer qualifies",
            "No linear layer with a bias sees the picture, no learned positions give its patches away and no first "
            "attention can be solved; a search is needed.",
            "",
            "rule 6.9; leakmap audit names what stands in the way",
        )


def _size(traits: Traits) -> Iterator[Advice]:
    yield Advice(
        "depth",
        f"{traits.depth} weight layers on the longest path",
        "Deeper networks are expected to leak less, shallower ones more.",
        "More layers, which also cost accuracy and time; depth alone is no defence.",
        f"C4 ({_PAPER})",
    )
    if traits.stages:
        yield Advice(
            "width",
            ", ".join(_stage(s.positions, s.low, s.high) for s in traits.stages),
            "Wider networks are expected to leak more: a gradient with more values says more about each pixel.",
            "Fewer channels, in the first stages above all.",
            f"C4 ({_PAPER})",
        )
    shares = ", ".join(
        f"{kind} {share:.1%}" if share >= 5e-4 else f"{kind} below 0.1%" for kind, share in traits.shares.items()
    )
    frozen = f", {traits.frozen:,} of them frozen" if traits.frozen else ""
    frozen += ", only the head is trained" if traits.only_head else ""
    yield Advice(
        "parameters",
        f"{traits.parameters:,}{frozen}: {shares}",
        "The update shows what the head sees of the pictures; nothing of the layers below it is sent."
        if traits.only_head
        else "Every trained parameter is one equation about the picture; frozen ones send nothing.",
        "" if traits.only_head else "Freeze what need not be trained.",
        "no claim on its direction",
    )


def _stage(positions: int, low: int, high: int) -> str:
    side = math.isqrt(positions)
    where = f"{side}x{side}" if side**2 == positions else f"{positions} tokens"
    return f"{low if low == high else f'{low}-{high}'} channels" + (f" at {where}" if positions > 1 else "")


def _skips(traits: Traits) -> Iterator[Advice]:
    kinds = {"identity": traits.identities, "projection": traits.projections, "concatenation": traits.concatenations}
    held = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    yield Advice(
        "skip connections",
        f"{traits.skips} ({held})" if held else "none",
        "Gradients reach the first layers undisturbed; expected to leak more."
        if held
        else "Gradients pass every layer; expected to leak less than with skip connections.",
        "Networks without them are harder to train; change the placement of normalization first." if held else "",
        f"C5 ({_PAPER})",
    )


def _placement(traits: Traits) -> Iterator[Advice]:
    mixed = [f"{place} {count}" for place, count in traits.placements.items()] if len(traits.placements) > 1 else []
    meanings = {
        "pre": "In training mode this is expected to be what helps an attack most; shallow, wide and with skip "
        "connections besides, a network is expected to leak visibly.",
        "post": "In training mode expected to leak less than pre-activation; in inference mode no difference.",
        "inside": "The branches are neither pre- nor post-activation; the claims do not cover this order.",
        "none": "Nothing rescales the signal; the claims on placement do not apply.",
    }
    batch = any(norm.kind == "BatchNorm" for norm in traits.norms)
    change = "Normalize behind each convolution instead (post-activation)." if traits.placement == "pre" else ""
    if traits.placement == "pre" and not batch:
        change = "The claims are about BatchNorm; with other kinds, audit both orders before you change it."
    found = _PLACES[traits.placement] + (f"; branches: {', '.join(mixed)}" if mixed else "")
    if not traits.skips and traits.norms:
        found += "; without skip connections only the ends of the network tell the two apart"
    yield Advice("normalization at", found, meanings[traits.placement], change, f"C2, C3 ({_PAPER})")


def _normalization(traits: Traits) -> Iterator[Advice]:
    for norm in traits.norms:
        if norm.running:
            yield Advice(
                "normalization",
                _norm(norm),
                "A client in inference mode is expected to leak far more. In training mode the returned running "
                "statistics give away those of the batch (new = (1 - momentum) old + momentum batch), most of all "
                "those of the last, partial batch of an epoch.",
                "Train in training mode and keep the buffers on the client, or use GroupNorm; at least set "
                "drop_last=True in the data loader.",
                f"C1, C6, C7 ({_PAPER}); docs/results/learned.md, docs/results/last-batch.md",
            )
        elif norm.kind == "BatchNorm":
            yield Advice(
                "normalization",
                _norm(norm),
                "Every batch is normalized by its own statistics in either mode, and none of them leave the client.",
                "",
                f"C1, C6 ({_PAPER})",
            )
        else:
            yield Advice(
                "normalization",
                _norm(norm),
                "Each picture is normalized for itself: training and inference mode do not differ in it, and no "
                "buffers carry statistics of the client.",
                "",
                f"C1, C6 ({_PAPER})",
            )


def _norm(norm: Norm) -> str:
    words = f"{norm.layers} {norm.kind}" if norm.kind != "by hand" else f"{norm.layers} written by hand, as RMSNorm is"
    if norm.groups:
        words += (
            f" of {'-'.join(map(str, norm.groups))} groups"
            if norm.groups != (1,)
            else " of 1 group (the whole picture)"
        )
    if norm.eps:
        words += f", eps {', '.join(f'{value:g}' for value in norm.eps)}"
    if norm.momentum:
        words += f", momentum {', '.join('cumulative' if m is None else f'{m:g}' for m in norm.momentum)}"
    return words + (", running statistics" if norm.running else "")


def _noise(traits: Traits) -> Iterator[Advice]:
    if traits.training_fails:
        yield Advice(
            "dropout", f"not seen: {traits.training_fails}", "A client cannot train this way.", "", "forward pass"
        )
    elif not traits.noise:
        yield Advice(
            "dropout",
            "none",
            "An attack can repeat the client's computation exactly in training mode.",
            "Dropout between layers; audit it with dropout_inversion, which searches the masks.",
            f"C8 ({_PAPER})",
        )
    for noise in traits.noise:
        rate = (
            ""
            if noise.low is None
            else f", rate {noise.low:g}" + (f" to {noise.high:g}" if noise.high != noise.low else "")
        )
        yield Advice(
            "dropout",
            f"{noise.kind}{rate}, drawn {f'{noise.places} times' if noise.places > 1 else 'once'} a pass"
            + (", in front of the head only" if noise.before_head_only else ""),
            "Masks that the server does not see are expected to hinder an attack in training mode"
            + (
                "; in front of the head alone they leave everything below without noise."
                if noise.before_head_only
                else "; an attack that searches them recovers part."
            ),
            "Dropout between layers too." if noise.before_head_only else "",
            f"C8 ({_PAPER})",
        )


def _activation(traits: Traits) -> Iterator[Advice]:
    if not traits.activations:
        return
    relu = "ReLU" in traits.activations
    yield Advice(
        "activation",
        ", ".join(f"{count} {name}" for name, count in traits.activations.items())
        + (f"; {traits.gates} gates (squeeze and excitation)" if traits.gates else ""),
        "A ReLU silences its negative inputs, which makes the search rougher; behind a linear layer on the picture its "
        "zeros let a batch be taken apart."
        if relu
        else "Smooth activations have second derivatives everywhere, which makes the search smoother.",
        "",
        "no claim on its direction; arXiv 2403.03945" if relu else "no claim on its direction",
    )


def _attention(traits: Traits) -> Iterator[Advice]:
    if not traits.attention:
        return
    yield Advice(
        "attention",
        f"{traits.attention} layers" + (f" on patches of {traits.stem.patch} pixels" if traits.stem.patch else ""),
        "Modern architectures are expected to resist searches visually at 224 pixels, partly because of how they are "
        "initialised; closed forms need no search, and attention that sees embedding plus positions without a shortcut "
        "can be solved exactly.",
        "Audit with trained weights; keep shortcuts and LayerNorm around the first attention.",
        "C10, C14 (arXiv 2508.19819 v2, expected direction); arXiv 2112.14087",
    )


def _start(traits: Traits) -> Iterator[Advice]:
    if traits.zero_head:
        yield Advice(
            "zero head",
            f"{traits.head} is exactly 0",
            "The gradient of everything below the head is exactly 0: the update says hardly anything about the picture "
            "until the head has moved. That is the state of these weights, not a strength of the architecture.",
            "Audit with trained weights (--weights FILE) or after a few steps of training.",
            "C14 (leakmap, expected direction)",
        )
    else:
        yield Advice(
            "zero head", "no", f"The head {traits.head} passes gradients on to the layers below.", "", "C14 (leakmap)"
        )
    if traits.zero_branches:
        names = traits.zero_branches
        yield Advice(
            "zero branches",
            f"{len(names)} weights are exactly 0: {names[0]}{' and others' if len(names) > 1 else ''}",
            "What stands in front of them in their branch gets no gradient yet; less leaks than after some training.",
            "Audit with trained weights.",
            "C14 (leakmap, expected direction)",
        )
    if traits.tiny_scales:
        yield Advice(
            "tiny scales",
            f"{traits.tiny_scales} of {traits.scales} learned scales below 1e-3, smallest {traits.smallest_scale:.1g}",
            "The gradients of the scaled branches are as much smaller and vanish beside those of stem and head; less "
            "leaks than after training.",
            "Audit with trained weights.",
            "C14 (leakmap, expected direction)",
        )
