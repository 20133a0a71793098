"""The objects in a detector's pictures, from the gradient of its class biases."""

import torch
from torch import Tensor, nn

from leakmap.attacker.labels import LabelRule, Labels, label_rules, placed
from leakmap.errors import NotApplicable
from leakmap.observation.observation import Observation

MOST_ANCHORS = 9
"""Boxes that a head predicts at each place, of published detectors."""
MOST_OF_A_CLASS = 10


@label_rules.add("objects", objects=True)
def objects() -> LabelRule:
    """The classes of objects and their numbers, relative to the rarest, from the gradient of a detector's class biases.

    With a loss that adds up over all places, such as binary cross entropy or the focal loss, absent classes only push
    their bias down, by the predicted score of every place: ``db_c > 0``. The places of an object push that of its class
    up, so ``db_c < 0`` where they outweigh the rest, in proportion to how much is assigned to the class. Sizes and
    positions leave no such trace; boxes are drawn at random. The confidence is the share of the gradient's magnitude
    that lies on classes found present.

    Source: the sign rule of Zhao et al. 2020 (iDLG), arXiv:2001.02610, for the scores of a detector.
    """

    def rule(observation: Observation, seed: int) -> Labels:
        observation.need("count")
        if not observation.network.task.objects:
            raise NotApplicable("The rule objects reads what a detector shares; these pictures have classes instead.")
        signal = _class_signal(observation)
        present = (signal < 0).nonzero()[:, 0]
        if not len(present):
            # A client may hold no object whose push outweighs the rest; the likeliest class is taken, at confidence 0.
            present = signal.argmin()[None]
        pull = signal[present].abs().clamp(min=1e-30)
        counts = (pull / pull.min()).round().clamp(1, MOST_OF_A_CLASS).long()
        confidence = float(pull.sum() / signal.abs().sum().clamp(min=1e-30)) if bool((signal < 0).any()) else 0.0
        return Labels(placed(observation, present.repeat_interleave(counts), seed), "objects", confidence)

    return rule


def _class_signal(observation: Observation) -> Tensor:
    """``(classes,)`` gradient of the class biases, added up over levels and anchors, float64.

    Raises:
        NotApplicable: the update holds none.
    """
    classes, tensors = observation.network.task.classes, observation.update.tensors
    # A delta is a step down the gradient, so its sign is the opposite.
    sign = 1.0 if observation.update.kind == "gradient" else -1.0
    module = observation.network.module()
    biases = [
        tensors[f"{name}.bias"].double()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and f"{name}.bias" in tensors and _about_classes(name)
    ]
    exact = [bias for bias in biases if len(bias) == classes]
    # torchvision's heads with a softmax put the background first.
    with_background = [bias[1:] for bias in biases if len(bias) == classes + 1]
    of_anchors = [
        bias.view(-1, classes).sum(0)
        for bias in biases
        if len(bias) % classes == 0 and len(bias) <= MOST_ANCHORS * classes
    ]
    for found in (exact, with_background, of_anchors):
        if found:
            return sign * torch.stack(found).sum(0)
    raise NotApplicable(
        f"The rule objects reads the gradient of class biases, and {observation.network.model} shares none for its "
        f"{classes} classes; grant the boxes or their counts: --labels known or counts in an audit."
    )


def _about_classes(name: str) -> bool:
    return any(word in name for word in ("cls", "class", "cv3"))
