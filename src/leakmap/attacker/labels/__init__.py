"""Label recovery: which classes a client held, from the gradient of the last linear layer.

With cross entropy, the gradient of the bias is ``db_c = mean_k(p_kc) - n_c / B``, so it counts the classes up to the
mean prediction, and that of the weights is ``dW_c = mean_k((p_kc - [y_k = c]) h_k)`` for features ``h``. This holds in
both modes of the body. A rule takes an Observation and returns a :class:`Labels`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from leakmap.errors import NotApplicable, NotGranted
from leakmap.observation.observation import Observation
from leakmap.problem.objects import pack
from leakmap.registry.registry import Registry
from leakmap.seeds import generator


@dataclass(frozen=True)
class Labels:
    """Recovered classes.

    Args:
        y: ``(count,)`` classes in ascending order: the order inside a batch cannot be seen. For detection ``(count, M,
            5)`` objects in boxes that :func:`placed` draws, for other tasks see :mod:`leakmap.problem.targets`.
        rule: Name of the rule.
        confidence: In [0, 1], from the rule's own residual; never from the truth.
        used: Facts that it drew on besides the number of examples.
        probabilities: ``(count, classes)`` soft labels, of rules that recover them; ``y`` is their argmax.
    """

    y: Tensor
    rule: str
    confidence: float
    used: tuple[str, ...] = ()
    probabilities: Tensor | None = None


LabelRule = Callable[[Observation, int], Labels]
"""``rule(observation, seed)``; all randomness comes from ``seed``."""

label_rules: Registry[LabelRule] = Registry("label_rule", __name__)


def recover(observation: Observation, rule: str, seed: int) -> Labels:
    """The labels that an attack works with: granted ones, else by a rule.

    Args:
        observation: Gives ``count``, and labels or counts where granted.
        rule: ``auto`` takes granted labels or counts, else the most confident of the rules of :func:`fitting_rules`;
            ``blind`` takes granted labels or counts, else random classes, for floors; any other value is the name of a
            rule.
        seed: For the rule.

    Raises:
        NotGranted: the number of examples is not granted, or another fact that the rule cannot do without.
        NotApplicable: the rule's precondition does not hold.
    """
    observation.need("count")
    task = observation.network.task
    if rule == "blind" and observation.label_counts is None and observation.labels is None:
        count = observation.count or 1
        if not task.counted:
            return Labels(task.blank(count).to(observation.network.device), "random", 0.0)
        y = torch.randint(task.labels, (count,), generator=generator(seed, "blind labels")).sort().values
        y = placed(observation, y, seed) if task.objects else y
        return Labels(y.to(observation.network.device), "random", 0.0)
    if rule not in ("auto", "blind"):
        return label_rules.build(rule)(observation, seed)
    if observation.labels is not None:
        return Labels(observation.labels.clone(), "granted", 1.0, ("labels",))
    if observation.label_counts is not None:
        counts = observation.label_counts
        y = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        y = placed(observation, y, seed) if task.objects else y
        return Labels(y, "granted counts", 1.0, ("labels",))
    found: list[Labels] = []
    refused: list[NotApplicable] = []
    for name in fitting_rules(observation):
        try:
            found.append(label_rules.build(name)(observation, seed))
        except NotApplicable as error:
            refused.append(error)
    if not found:
        raise refused[0]
    # max keeps the first of equals, and fitting_rules puts the rule that wins ties first.
    return max(found, key=lambda labels: labels.confidence)


def to_search(observation: Observation) -> Labels:
    """Labels that say nothing yet, for an attack that searches them together with the pictures.

    Raises:
        NotApplicable: they are of objects or pixels, which are not searched.
    """
    observation.need("count")
    task = observation.network.task
    if task.target == "pixels" or task.objects:
        what = "objects" if task.objects else "pixels"
        raise NotApplicable(
            f"This attack searches labels together with pictures, and labels of {what} cannot be searched: use "
            "inverting_gradients with granted labels (--labels known)."
        )
    blank = task.blank(observation.count or 1).to(observation.network.device)
    return Labels(blank, "searched with the pictures", 0.0)


def told(observation: Observation, rule: str, seed: int) -> Labels:
    """As :func:`recover`, for an attack that reads pictures without labels: what cannot be read is left blank."""
    try:
        return recover(observation, rule, seed)
    except (NotApplicable, NotGranted):
        observation.need("count")
        blank = observation.network.task.blank(observation.count or 1).to(observation.network.device)
        return Labels(blank, UNREAD, 0.0)


UNREAD = "not read"
"""In place of the name of a rule."""


def placed(observation: Observation, classes: Tensor, seed: int) -> Tensor:
    """``(count, M, 5)``: objects dealt out to the pictures in turn, in boxes of random size and place.

    Args:
        observation: Gives the number of pictures and the most objects of one.
        classes: ``(n,)`` of the objects of all pictures together.
        seed: For the boxes.
    """
    task, count = observation.network.task, observation.count or 1
    source = generator(seed, "boxes")
    sides = 0.2 + 0.4 * torch.rand(len(classes), 2, generator=source)
    # Centres are drawn such that no box leaves the picture.
    centres = sides / 2 + (1 - sides) * torch.rand(len(classes), 2, generator=source)
    drawn = torch.cat([classes.cpu()[:, None].float(), centres, sides], 1)
    return pack([drawn[i::count][: task.objects] for i in range(count)], task.objects).to(observation.network.device)


def fitting_rules(observation: Observation) -> tuple[str, ...]:
    """The rules that fit what is granted, those that win ties first.

    A detector has a rule of its own. One example is exact. Adam and some defences leave signs, and class weights leave
    no more that counts; without the rule a delta leaves ratios, and so do clients that clip. Otherwise the mean
    prediction can be measured, which is best with public pictures or batch statistics, or be read off the gradient,
    which is best for trained networks in inference mode: their confidences tell them apart.
    """
    rule = observation.rule
    if observation.network.task.objects:
        return ("objects",)
    if not observation.network.task.counted:
        return ("single",)
    if observation.count == 1:
        return ("idlg",)
    if "class_weights" in observation.network.task.loss.params:
        return ("analytic", "yin")
    if rule is None:
        return ("bias_corrected", "llg") if observation.update.kind == "delta" else ("counts", "ilrg")
    if rule.optimizer != "sgd" or rule.left in ("signs", "largest"):
        return ("analytic", "yin")
    if rule.left == "ratios":
        return ("bias_corrected", "llg")
    return ("counts" if rule.steps(observation.count or 1) == 1 else "dimitrov", "ilrg")
