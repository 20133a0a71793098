"""Greedy label counts, with impact and offset measured on stand-in pictures."""

from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.counting import agreement, greedy, listed
from leakmap.attacker.labels.head import check_magnitudes, check_scale, facts_used, head_gradient, stand_ins, view
from leakmap.observation.observation import Observation


@label_rules.add("llg_star")
def llg_star(*, dummies: int = 64) -> LabelRule:
    """LLG with white box: what one example adds to its class, and what a class has without any, are measured.

    The stand-ins are the granted public pictures, else noise, in the client's mode. Exact where predictions and sums of
    features are those of the stand-ins; it degrades with local steps.

    Args:
        dummies: Number of noise pictures where no public ones are granted.

    Source: Wainakh et al. 2022, "User-Level Label Leakage from Gradients in Federated Learning" (LLG*),
    arXiv:2105.09369.
    """

    def rule(observation: Observation, seed: int) -> Labels:
        check_scale(observation)
        check_magnitudes(observation, "llg_star")
        total = observation.count or 0
        head = head_gradient(observation)
        rows = head.weight.sum(1)
        seen = view(observation, head, stand_ins(observation, seed, dummies))
        sums = seen.features.sum(1, keepdim=True)
        offset = (seen.probabilities * sums).mean(0)
        own = float(((seen.probabilities - 1) * sums).mean())
        impact = (1 + 1 / len(rows)) * own / total
        counts = greedy(rows, impact, offset, total)
        confidence = agreement((rows - offset) / impact, counts, head.row_noise / -impact) if impact < 0 else 0.0
        return Labels(listed(counts), "llg_star", confidence, facts_used(observation, "rule", "public"))

    return rule
