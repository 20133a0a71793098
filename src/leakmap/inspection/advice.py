"""What is known of each trait's effect on leakage, and what to change.

A direction is given where measurement gave it: by the reference map, on which single traits were changed with
everything else the same, by the pages of results, or by an equation that gives the picture back. Of published claims
the outcome is quoted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from leakmap.inspection.claims import PAPER, quoted
from leakmap.inspection.reference import helps, raises, shipped, words_of
from leakmap.inspection.traits import Norm, Traits

_MAP = "docs/results/atlas.md"
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
        meaning: What it does to leakage, as far as that was measured or follows.
        change: What to change to lower it; empty where no measurement supports a change.
        source: Where that is shown.
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


def _shown(*names: str) -> str:
    """What changes of these traits did on the map, or that none was measured."""
    reference = shipped()
    effects = [effect for name in names for effect in reference.of(name)] if reference else []
    if not effects:
        return "Its effect was not measured."
    return f"On the map (relative rank: 0 first, .5 chance) {words_of(effects)}."


def _lower(trait: str, changes: dict[str, str]) -> str:
    """The changes of a trait after which less was read of some client and more of none, with the clients of whom.

    Args:
        trait: Its name on the map.
        changes: Its value there -> what to do, without a full stop.
    """
    reference = shipped()
    effects = reference.of(trait) if reference else []
    good = helps(effects)
    clients: dict[str, list[str]] = {}
    for value, words in changes.items():
        less = [effect.client for effect in effects if effect.value == value and effect.change == "less"]
        if value in good:
            clients[words] = list(dict.fromkeys([*clients.get(words, []), *less]))
    return " ".join(f"{words} ({'; '.join(which)})." for words, which in clients.items())


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
        yield Advice("stem", found, meaning, "Begin with a convolution.", "Phong et al. 2018")
        return
    plain = stem.stride * stem.pool_stride == 1
    down = "Down-sample in the stem"
    yield Advice(
        "stem", found, _shown("stem"), _lower("stem", {"imagenet": down, "patch": down}) if plain else "", _MAP
    )


def _closed_forms(traits: Traits) -> Iterator[Advice]:
    if traits.closed_forms:
        yield Advice(
            "closed form",
            "; ".join(traits.closed_forms),
            "An equation gives the picture back exactly; no search is needed.",
            " ".join(
                cure for name, cure in _CURES.items() if name in {c.partition(":")[0] for c in traits.closed_forms}
            ),
            "Phong et al. 2018, arXiv 2403.03945 (SPEAR), 2112.14087 (APRIL), 2010.07733 (R-GAP), "
            "docs/results/patch-positions.md",
        )
    else:
        yield Advice(
            "closed form",
            "no layer qualifies",
            "No linear layer with a bias sees the picture, no learned positions give its patches away and no first "
            "attention can be solved; what is left are attacks that are fitted, and searches.",
            "",
            "leakmap audit names what stands in the way",
        )


def _size(traits: Traits) -> Iterator[Advice]:
    yield Advice(
        "depth",
        f"{traits.depth} weight layers on the longest path",
        f"{_shown('depth')} {quoted('C4')}",
        _lower("depth", {"2-2-2": "More layers", "3-3-3": "More layers"}),
        f"{_MAP}; {PAPER}",
    )
    if traits.stages:
        yield Advice(
            "width",
            ", ".join(_stage(s.positions, s.low, s.high) for s in traits.stages),
            f"{_shown('width')} {quoted('C4')}",
            _lower("width", {"8": "Fewer channels"}),
            f"{_MAP}; {PAPER}",
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
        else "Frozen ones send nothing.",
        "",
        "the client step",
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
        f"{_shown('skip')} {quoted('C5')}",
        _lower("skip", {"none": "Leave them out, which makes training harder"}) if held else "",
        f"{_MAP}; {PAPER}",
    )


def _placement(traits: Traits) -> Iterator[Advice]:
    mixed = [f"{place} {count}" for place, count in traits.placements.items()] if len(traits.placements) > 1 else []
    found = _PLACES[traits.placement] + (f"; branches: {', '.join(mixed)}" if mixed else "")
    if not traits.skips and traits.norms:
        found += "; without skip connections only the ends of the network tell the two apart"
    if traits.placement in ("inside", "none"):
        yield Advice("norm placement", found, "What was measured compares the other two orders.", "", _MAP)
        return
    batch = any(norm.kind == "BatchNorm" for norm in traits.norms)
    reference = shipped()
    effects = reference.of("placement") if reference else []
    change = ""
    if batch and traits.placement == "pre" and raises(effects):
        change = "Normalize behind each convolution (post-activation)."
    elif batch and traits.placement == "post":
        change = _lower(
            "placement", {"pre-activation": "Normalize in front of each convolution, as pre-activation does"}
        )
    meaning = f"{_shown('placement')} {quoted('C2', 'C3')}"
    yield Advice("norm placement", found, meaning, change, f"{_MAP}; {PAPER}")


def _normalization(traits: Traits) -> Iterator[Advice]:
    for norm in traits.norms:
        if norm.running:
            yield Advice(
                "normalization",
                _norm(norm),
                "Returned running statistics give away those of the batch (new = (1 - momentum) old + momentum batch), "
                "most of all those of the last, partial batch of an epoch. "
                f"{_shown('buffers', 'mode', 'norm')} {quoted('C1', 'C6', 'C7')}",
                "Keep the buffers on the client; at least set drop_last=True in the data loader.",
                f"docs/results/learned.md, docs/results/last-batch.md; {_MAP}; {PAPER}",
            )
        elif norm.kind == "BatchNorm":
            yield Advice(
                "normalization",
                _norm(norm),
                "Every batch is normalized by its own statistics in either mode, and none of them leave the client.",
                "",
                "forward pass",
            )
        else:
            yield Advice(
                "normalization",
                _norm(norm),
                "Each picture is normalized for itself: training and inference mode do not differ in it, and no "
                f"buffers carry statistics of the client. {_shown('norm')}",
                "",
                f"forward pass; {_MAP}",
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
            f"An attack can repeat the client's computation exactly in training mode. {quoted('C8')}",
            "Dropout between layers; audit it with dropout_inversion, which searches the masks.",
            f"docs/results/dropout.md; {PAPER}",
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
            quoted("C8")
            + (
                " In front of the head alone masks leave everything below without noise."
                if noise.before_head_only
                else ""
            ),
            "Dropout between layers too." if noise.before_head_only else "",
            f"docs/results/dropout.md; {PAPER}",
        )


def _activation(traits: Traits) -> Iterator[Advice]:
    if not traits.activations:
        return
    yield Advice(
        "activation",
        ", ".join(f"{count} {name}" for name, count in traits.activations.items())
        + (f"; {traits.gates} gates (squeeze and excitation)" if traits.gates else ""),
        _shown("activation"),
        "",
        _MAP,
    )


def _attention(traits: Traits) -> Iterator[Advice]:
    if not traits.attention:
        return
    yield Advice(
        "attention",
        f"{traits.attention} layers" + (f" on patches of {traits.stem.patch} pixels" if traits.stem.patch else ""),
        "Learned positions give single pictures away without a search, and attention that sees embedding plus "
        f"positions without a shortcut can be solved exactly. {quoted('C10')}",
        "Keep shortcuts and LayerNorm around the first attention.",
        f"docs/results/patch-positions.md; arXiv 2112.14087; {PAPER}",
    )


def _start(traits: Traits) -> Iterator[Advice]:
    if traits.zero_head:
        yield Advice(
            "zero head",
            f"{traits.head} is exactly 0",
            "The gradient of everything below the head is exactly 0: the update says hardly anything about the picture "
            "until the head has moved. That is the state of these weights, not a strength of the architecture.",
            "Audit with trained weights (--weights FILE) or after a few steps of training.",
            "the chain rule",
        )
    else:
        yield Advice(
            "zero head", "no", f"The head {traits.head} passes gradients on to the layers below.", "", "the chain rule"
        )
    if traits.zero_branches:
        names = traits.zero_branches
        yield Advice(
            "zero branches",
            f"{len(names)} weights are exactly 0: {names[0]}{' and others' if len(names) > 1 else ''}",
            "What stands in front of them in their branch gets no gradient yet.",
            "Audit with trained weights.",
            "the chain rule",
        )
    if traits.tiny_scales:
        yield Advice(
            "tiny scales",
            f"{traits.tiny_scales} of {traits.scales} learned scales below 1e-3, smallest {traits.smallest_scale:.1g}",
            f"The gradients of the scaled branches are as much smaller. {quoted('C14')}",
            "Audit with trained weights.",
            f"the chain rule; {PAPER}",
        )
