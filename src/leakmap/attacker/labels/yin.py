"""The set of classes with the lowest entries of the weight gradient."""

from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.analytic import labels_of_set
from leakmap.attacker.labels.head import head_gradient
from leakmap.observation.observation import Observation


@label_rules.add("yin")
def yin() -> LabelRule:
    """The classes whose row of the weight gradient has the lowest minimum, as far as it is negative.

    Exact for distinct labels and non-negative features, of which each example has one that is large for it alone. It
    needs no bias and no scale. Fewer classes than examples are repeated in turn, the lowest first; of more, the lowest
    are kept. The confidence is the ratio of both numbers.

    Source: Yin et al. 2021, "See through Gradients: Image Batch Recovery via GradInversion", arXiv:2104.07586.
    """

    def rule(observation: Observation, seed: int) -> Labels:
        observation.need("count")
        return labels_of_set(head_gradient(observation).weight.amin(1), observation, "yin")

    return rule
