"""Checks of the tensors that were sent."""

import math
from collections.abc import Iterator

from leakmap.auditing.case import norm
from leakmap.defences import NONE, defence_of
from leakmap.doctor.finding import Finding
from leakmap.doctor.values import EVEN, form_name, is_even, likely_defence, rounding, whole_numbers
from leakmap.models.naming import names_of
from leakmap.observation.observation import Observation

SAME_DIRECTION = 0.95
"""Cosine to the weights above which an update of their size is taken to be the weights."""
SUBTRACTED = 0.1
"""By how much the part of a delta along the weights may differ from -1 for the weights to have been subtracted from a
delta or gradient, which has hardly any part along them."""
ROUNDED = 0.01
"""Share of the update that is rounding above which it is worth a word; a tenth of the update is wrong."""


def architecture(o: Observation) -> Iterator[Finding]:
    """Whether the tensors are those that the architecture trains."""
    trained, sent = o.network.trained(), list(o.update.tensors)
    missing = [name for name in trained if name not in o.update.tensors]
    if odd := [name for name in sent if name not in trained]:
        yield Finding(
            "architecture",
            "wrong",
            f"The update has {len(odd)} tensors that {o.network.model} does not train (first {odd[0]!r}); an attack "
            "cannot simulate them. Leave buffers and frozen parameters out of the update.",
        )
    if kept := names_of(o.network.module()).kept(o.update.tensors):
        yield Finding(
            "architecture",
            "notice",
            f"The update lacks {len(kept)} tensors, all of normalization layers (first {kept[0]!r}): the client keeps "
            "them, as in FedBN. Attacks and replays start them at the values in the file; those of a client that has "
            "trained before are others, which the server does not know, and then no replay is exact.",
        )
    elif missing:
        yield Finding(
            "architecture",
            "wrong",
            f"The update lacks {len(missing)} of {len(trained)} trained parameters (first {missing[0]!r}); the "
            "simulated client trains them. Freeze what the client freezes: requires_grad_(False).",
        )
    if not odd and not missing:
        frozen = [name for name, p in o.network.module().named_parameters() if not p.requires_grad]
        told = f"All {len(trained)} trained parameters of {o.network.model} are there with their shapes"
        told += f"; {len(frozen)} are frozen" if frozen else ""
        layers = {name.rpartition(".")[0] for name in trained}
        if frozen and len(layers) == 1:
            told += f": only the layer {layers.pop()!r} is trained, whose update shows what it sees, not the pictures"
        yield Finding(
            "architecture",
            "fine",
            f"{told}. Tensors of equal shape could still be swapped; only a replay shows that.",
        )


def zeros(o: Observation) -> Iterator[Finding]:
    """Tensors that say nothing."""
    tensors = o.update.tensors
    zero = [name for name, tensor in tensors.items() if not tensor.any()]
    if len(zero) == len(tensors):
        yield Finding(
            "zero tensors",
            "wrong",
            "Every tensor of the update is exactly zero: the same weights were given as sent and as returned. Take a "
            "copy of the weights before training (copy.deepcopy).",
        )
    elif zero:
        most = 2 * len(zero) > len(tensors)
        yield Finding(
            "zero tensors",
            "wrong" if most else "notice",
            f"{len(zero)} of {len(tensors)} tensors are exactly zero (first {zero[0]!r}): the client froze them, or no "
            "gradient reaches them, as below a head of zeros. They say nothing about a picture; freeze them in the "
            "architecture too (requires_grad_(False)) or use weights past their initialisation.",
        )
    else:
        yield Finding("zero tensors", "fine", f"None of {len(tensors)} tensors is exactly zero.")


def kind(o: Observation) -> Iterator[Finding]:
    """Whether it can be what it is called."""
    tensors, weights = list(o.update.tensors.values()), [o.network.weights[name] for name in o.update.tensors]
    size, held = norm(tensors), norm(weights)
    if not size:
        return
    kind = o.update.kind
    dot = math.fsum(float((t.double() * w.double()).sum()) for t, w in zip(tensors, weights, strict=True))
    ratio, cosine = size / held if held else math.inf, dot / (size * held) if held else 0.0
    along = dot / held**2 if held else 0.0
    found = f"The {kind} has norm {size:.3g}, {ratio:.2g} of the weights', and cosine {cosine:.2f} to them"
    if cosine > SAME_DIRECTION and 0.5 < ratio < 2:
        yield Finding(
            "kind",
            "wrong",
            f"{found}: these are weights, not a {kind}. Capture them again with --kind weights, which subtracts those "
            "that were sent.",
        )
        return
    if kind == "delta" and abs(along + 1) < SUBTRACTED:
        yield Finding(
            "kind",
            "wrong",
            f"{found}: it is something less the weights, so they were subtracted from what is no weights. What came "
            "back was a delta or a gradient; capture it again with --kind delta or --kind gradient.",
        )
        return
    if kind == "delta" and ratio > 1:
        yield Finding(
            "kind",
            "notice",
            f"{found}: local training that moves weights so far has diverged, or this is a gradient, or a delta "
            "divided by the learning rate. A replay says which.",
        )
    elif kind == "delta" and o.rule is not None and o.rule.optimizer != "sgd":
        count = o.count or o.rule.batch_size or 1
        reach = 12 * o.rule.lr * o.rule.steps(count)
        largest = max(float(t.abs().max()) for t in tensors)
        told = f"{found}; its largest entry is {largest:.2g}, {o.rule.optimizer} with this lr reaches {reach:.2g}"
        far = o.count is not None and largest > reach
        advice = " at most: learning rate, steps or optimiser are not those given." if far else "."
        yield Finding("kind", "wrong" if far else "fine", f"{told}{advice}")
    else:
        yield Finding(
            "kind",
            "fine",
            f"{found}, as a {kind} may have. Whether it is a gradient, a delta or either with its sign turned shows "
            "only where classes can be counted (below), or in a replay.",
        )


def precision(o: Observation) -> Iterator[Finding]:
    """How much of it was rounded away."""
    form, share = rounding(o)
    if math.isinf(share):
        return
    if (largest := whole_numbers(o)) > 1:
        yield Finding(
            "precision",
            "wrong",
            f"Every entry is a whole number up to {largest}, as int{8 if largest < 128 else 16} holds: the factor of "
            f"each tensor that makes a {o.update.kind} of them is missing. Multiply by it before you capture.",
        )
        return
    stored = form_name(next(iter(o.update.tensors.values())).dtype)
    told = f"The update travelled as {form}" + (f" (stored as {stored})" if form != stored else "")
    told += f"; rounding is about {share:.1g} of its norm"
    if share > ROUNDED or form != stored:
        yield Finding(
            "precision",
            "wrong" if share > 10 * ROUNDED else "notice",
            f"{told}. An attack cannot match below that; have the client send float32, and its delta rather than its "
            "weights.",
        )
    else:
        yield Finding("precision", "fine", f"{told}.")


def defence(o: Observation) -> Iterator[Finding]:
    """Whether it looks defended."""
    if not any(bool(t.any()) for t in o.update.tensors.values()):
        return
    told = o.rule.defence if o.rule is not None else None
    seen = likely_defence(o)
    if told is not None and told != NONE:
        yield Finding(
            "defence",
            "fine" if defence_of(told).exact else "notice",
            f"The rule says {told}; an attack simulates it"
            + ("." if defence_of(told).exact else " but for its noise."),
        )
    elif seen is not None:
        yield Finding(
            "defence",
            "wrong" if told == NONE else "notice",
            f"{_LOOKS[seen.partition(',')[0]]}: this looks like the defence {seen}"
            + (", but the rule says none" if told else "")
            + f". Set defence = {seen!r} in the facts if the client does that.",
        )
    elif is_even(o):
        yield Finding(
            "defence",
            "notice",
            f"Every tensor has the same root mean square to a factor of {EVEN}, as noise has and gradients have not: "
            "this looks like differential privacy, or Adam's first step. Set defence or optimizer in the facts.",
        )
    else:
        yield Finding("defence", "fine", "No sign of clipping to a round norm, sparsity, few levels, signs or noise.")


_LOOKS = {
    "sign": "Every entry is -1, 0 or 1",
    "topk": "The same share of every tensor is left, the rest is zero",
    "quantise": "Entries take few, evenly spaced values",
    "clip_noise": "The norm is a round number",
}


def missing(o: Observation) -> Iterator[Finding]:
    """Facts that are not given, and what that costs."""
    costs = {
        "count": "how many pictures to search is a guess; set count in the facts, or send num_examples",
        "rule": "an attack assumes one step in the mode that returned buffers show, else in training mode; set [rule]",
    }
    for fact, cost in costs.items():
        if getattr(o, fact) is None:
            yield Finding(fact, "notice", f"The {fact} is not given: {cost}.")
