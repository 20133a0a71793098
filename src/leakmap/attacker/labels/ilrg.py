"""Label counts from class features, without stand-in pictures."""

from torch import Tensor

from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.counting import agreement, largest_remainder, listed, solve_counts
from leakmap.attacker.labels.head import (
    Head,
    bias_of,
    check_magnitudes,
    check_scale,
    facts_used,
    head_gradient,
    rows_of,
)
from leakmap.observation.observation import Observation

ROUNDING = 1e-6
"""A class whose bias gradient is below this share of the largest has no features to read: it is rounding."""


@label_rules.add("ilrg")
def ilrg() -> LabelRule:
    """Reads the mean features of each class off the gradient, predicts them, and solves for the class counts.

    ``h_c = dW_c / db_c`` are the features of class ``c`` as far as its examples dominate its row, and with them the
    mean gradient of the bias is linear in the counts. Exact for a single example, and close for untrained networks and
    few examples of each class. For several local steps it takes the weights halfway to the client's.

    Source: Ma et al. 2023, "Instance-wise Batch Label Restoration via Gradients in Federated Learning", ICLR.
    """

    def rule(observation: Observation, seed: int) -> Labels:
        check_scale(observation)
        check_magnitudes(observation, "ilrg")
        head = head_gradient(observation)
        bias = bias_of(head, "ilrg")
        total = observation.count or 0
        real = solve_counts(class_predictions(observation, head, bias), bias, observation)
        whole = largest_remainder(real.clamp(min=0), total)
        return Labels(
            listed(whole), "ilrg", agreement(real, whole, total * head.noise), facts_used(observation, "rule")
        )

    return rule


def class_predictions(observation: Observation, head: Head, bias: Tensor) -> Tensor:
    """``(classes, classes)``: row ``c`` is the prediction for the features that the gradient shows of class ``c``."""
    readable = bias.abs() > ROUNDING * bias.abs().max()
    absent = bias > 0
    # Rows of absent classes hold features of all examples: a class that cannot be read gets their mean.
    common = head.weight[absent].sum(0) / bias[absent].sum().clamp(min=1e-30)
    features = common.expand_as(head.weight).clone()
    features[readable] = head.weight[readable] / bias[readable, None]
    names = [f"{head.name}.weight", f"{head.name}.bias"]
    weight, own = (rows_of(observation.network.weights[name].double()) for name in names)
    # After several steps the mean gradient belongs, on average, to the weights halfway along.
    if observation.rule and observation.rule.steps(observation.count or 1) > 1:
        weight, own = (
            w + rows_of(observation.update.tensors[n].double()) / 2 for w, n in zip((weight, own), names, strict=True)
        )
    return (features @ weight.T + own).softmax(1)
