"""Greedy label counts from the bias gradient alone."""

from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.head import bias_of, check_magnitudes, head_gradient
from leakmap.attacker.labels.llg import labels_by_share
from leakmap.observation.observation import Observation


@label_rules.add("bias_corrected")
def bias_corrected() -> LabelRule:
    """Gives out labels greedily by the bias gradient, each taking its share of the negative sum off its class.

    Exact where predictions are alike for all examples and small for the classes that are present. Scale cancels.

    Source: Geiping et al., the library `breaching` (label strategy "bias-corrected"), after Wainakh et al. 2022.
    """

    def rule(observation: Observation, seed: int) -> Labels:
        observation.need("count")
        check_magnitudes(observation, "bias_corrected")
        head = head_gradient(observation)
        bias = bias_of(head, "bias_corrected")
        return labels_by_share(bias, 1.0, head.noise, observation, "bias_corrected")

    return rule
