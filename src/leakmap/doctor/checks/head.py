"""Checks of the last layer, whose update counts classes."""

import math
from collections.abc import Iterator

from torch import Tensor

from leakmap.attacker.gradients import step_weights
from leakmap.attacker.labels.head import head_gradient
from leakmap.defences import NONE, defence_of
from leakmap.doctor.finding import Finding, Level
from leakmap.doctor.values import rounding, whole_numbers
from leakmap.errors import LeakmapError
from leakmap.observation.observation import Observation

SUM = 1e-2
"""Sum of the head's gradient over the classes, relative: 0 for softmax cross entropy, about 1 without a softmax."""


def head(o: Observation) -> Iterator[Finding]:
    """What the change of the last layer says of loss, sign and scale, of a softmax over classes."""
    if (target := o.network.task.target) != "class":
        why = f"pictures have the target {target}, whose outputs have no sum to check; a replay does"
        yield Finding("loss", "notice", f"The head does not tell loss, sign and labels here: {why}.")
        return
    defence = defence_of(o.rule.defence if o.rule is not None else NONE)
    defended = not defence.exact or defence.left != "values"
    adam = o.rule is not None and o.rule.optimizer != "sgd"
    try:
        name = head_gradient(o).name
    except LeakmapError:
        name = ""
    if not name or defended or adam:
        why = (
            "a defence changes it" if defended else "Adam rescales it" if adam else "loss or last layer is another one"
        )
        yield Finding("loss", "notice", f"The head does not tell loss, sign and labels here: {why}.")
        return
    tensors, classes = o.update.tensors, o.network.task.classes
    parts = [tensors[full].double() for full in (f"{name}.weight", f"{name}.bias") if full in tensors]
    absolute = math.fsum(float(part.abs().sum()) for part in parts)
    if not absolute:
        return
    total = math.fsum(float(part.sum(0).abs().sum()) for part in parts) / absolute
    decay = o.rule is None or o.rule.weight_decay > 0
    tolerance = max(SUM, 20 * rounding(o)[1])
    if total > tolerance:
        level: Level = "notice" if decay or total < 0.1 else "wrong"
        yield Finding(
            "loss",
            level,
            f"Summed over the classes, the change of {name!r} leaves {total:.2g} of it; softmax cross entropy leaves "
            "0. The loss is another one (sigmoid, weighted), the optimiser is Adam, tensors are swapped, there is noise"
            + (", or weights decay" if decay else "")
            + "; a replay says which.",
        )
    else:
        yield Finding(
            "loss", "fine", f"Summed over the classes, the change of {name!r} is 0, as softmax cross entropy makes it."
        )
    if f"{name}.bias" in tensors and total <= tolerance:
        yield from _sign(o, tensors[f"{name}.bias"].double(), classes)


def _sign(o: Observation, bias: Tensor, classes: int) -> Iterator[Finding]:
    """Only a class that is there lowers its bias gradient, ``mean(p_c) - n_c / N``; in all it is at most 2."""
    kind, smoothed = o.update.kind, bool(o.network.task.loss.params.get("label_smoothing"))
    entries = bias if kind == "gradient" else -bias
    below, above = int((entries < 0).sum()), int((entries > 0).sum())
    if o.count is None or o.count >= classes or smoothed:
        why = "label smoothing is set" if smoothed else "the count is not given" if o.count is None else None
        reason = why or f"{o.count} pictures may hold all {classes} classes"
        yield Finding("sign", "notice", f"Whether the sign is right cannot be told from the head: {reason}.")
    elif below <= o.count:
        tail = "" if above > o.count else " The opposite sign would be possible too."
        level: Level = "fine" if not tail else "notice"
        yield Finding(
            "sign",
            level,
            f"{below} of {classes} classes have the sign of one that is there; {o.count} pictures can have so "
            f"many.{tail}",
        )
    elif above <= o.count:
        yield Finding(
            "sign",
            "wrong",
            f"{below} of {classes} classes have the sign of one that is there, with {o.count} pictures: the sign of "
            f"the {kind} is turned (before - after), or a {'delta' if kind == 'gradient' else 'gradient'} is called a "
            f"{kind}. Send after - before.",
        )
    else:
        low = entries[entries < 0].sort(descending=True).values[: below - o.count]
        even = len(low) > 1 and float(low.std()) < 0.1 * float(-low.mean())
        hint = f" near {-float(low.mean()) * classes:.2g}" if even and kind == "gradient" else ""
        yield Finding(
            "sign",
            "notice",
            f"{below} of {classes} classes have the sign of one that is there, with {o.count} pictures: label smoothing"
            f"{hint}, more pictures than given, weight decay, or another loss. Set label_smoothing in the loss, or "
            "correct the count.",
        )
    largest = None
    if kind == "gradient":
        largest = 2.0
    elif o.rule is not None and o.count is not None and not o.rule.weight_decay:
        largest = 2 * math.fsum(map(abs, step_weights(o.rule, o.count)))
    size = float(bias.abs().sum())
    if largest is not None and size > 1.01 * largest and whole_numbers(o) < 2:
        advice = (
            "the loss is summed rather than averaged, or the gradient is scaled: divide it by the number of pictures"
            if kind == "gradient"
            else "the learning rate is larger than given, the loss is summed, or this is a gradient: replay it"
        )
        yield Finding(
            "scale",
            "wrong",
            f"The bias of the head changed by {size:.2g} in all; the facts allow {largest:.2g} at most. So {advice}.",
        )
