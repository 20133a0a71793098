"""Greedy label counts from the row sums of the weight gradient alone."""

from torch import Tensor

from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.counting import agreement, greedy, listed
from leakmap.attacker.labels.head import check_magnitudes, head_gradient
from leakmap.observation.observation import Observation


@label_rules.add("llg")
def llg() -> LabelRule:
    """Gives out labels greedily by the row sums of the weight gradient, each taking its share of the sum off its class.

    One example adds ``(1 + 1 / classes) / B`` times the sum of the negative row sums. Exact where predictions and
    features are alike for all examples and features are non-negative, as in untrained networks. Scale cancels.

    Source: Wainakh et al. 2022, "User-Level Label Leakage from Gradients in Federated Learning" (LLG),
    arXiv:2105.09369.
    """

    def rule(observation: Observation, seed: int) -> Labels:
        observation.need("count")
        check_magnitudes(observation, "llg")
        head = head_gradient(observation)
        rows = head.weight.sum(1)
        return labels_by_share(rows, 1 + 1 / len(rows), head.row_noise, observation, "llg")

    return rule


def labels_by_share(signal: Tensor, factor: float, noise: float, observation: Observation, rule: str) -> Labels:
    """Labels given out greedily, one example adding ``factor / B`` times the sum of the negative ``signal``.

    The confidence is the agreement with classes that, their labels taken off, would all be left with the same rest.

    Args:
        signal: ``(classes,)``.
        factor: See above.
        noise: Standard deviation of the noise in each entry of ``signal``.
        observation: Gives the number of examples.
        rule: Name of the rule.
    """
    total = observation.count or 0
    # Without a negative entry there is no impact to read; -1 keeps the divisions below defined.
    impact = factor * float(signal.clamp(max=0).sum()) / total or -1.0
    counts = greedy(signal, impact, 0.0, total)
    rest = signal / impact - counts
    return Labels(listed(counts), rule, agreement(counts + rest - rest.mean(), counts, noise / -impact))
