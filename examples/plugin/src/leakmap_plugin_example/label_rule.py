"""The labels with the lowest sums of weight gradients."""

from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.analytic import labels_of_set
from leakmap.attacker.labels.head import head_gradient


@label_rules.add("plugin_label_rule")
def build() -> LabelRule:
    """The classes whose row of the weight gradient has the lowest sum.

    Source: Zhao et al. 2020, arXiv:2001.02610.
    """

    def rule(observation, seed) -> Labels:
        observation.need("count")
        return labels_of_set(head_gradient(observation).weight.sum(1), observation, "plugin_label_rule")

    return rule
