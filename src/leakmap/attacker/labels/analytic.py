"""The set of classes with a negative bias gradient."""

from torch import Tensor

from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.counting import repeated
from leakmap.attacker.labels.head import bias_of, head_gradient
from leakmap.observation.observation import Observation


@label_rules.add("analytic")
def analytic() -> LabelRule:
    """Every class whose bias gradient is negative.

    Exact for distinct labels while ``mean_k(p_kc)`` is below ``1 / B`` for the classes that are present. It reads signs
    only, so it takes updates of Adam and of unknown scale. Fewer classes than examples are repeated in turn, the most
    negative first; of more, the most negative are kept. The confidence is the ratio of both numbers.

    Source: Geiping et al., the library `breaching` (label strategy "analytic").
    """

    def rule(observation: Observation, seed: int) -> Labels:
        observation.need("count")
        return labels_of_set(bias_of(head_gradient(observation), "analytic"), observation, "analytic")

    return rule


def labels_of_set(signal: Tensor, observation: Observation, rule: str) -> Labels:
    """Labels from the classes with a negative ``signal`` ``(classes,)``, repeated or cut to the number of examples."""
    total = observation.count or 0
    found = int((signal < 0).sum())
    # Stable, so ties go to the lower class on every machine; at least one class, even if no entry is negative.
    lowest = signal.argsort(stable=True)[: max(1, min(found, total))]
    return Labels(repeated(lowest, total), rule, min(found, total) / max(found, total))
