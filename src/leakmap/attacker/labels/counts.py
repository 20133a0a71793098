"""How many examples of each class a batch holds, by the mean prediction."""

from torch import Tensor

from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.counting import (
    agreement,
    counts_from_mean_label,
    label_smoothing,
    largest_remainder,
    listed,
)
from leakmap.attacker.labels.head import Head, check_magnitudes, check_scale, facts_used, head_gradient, stand_ins, view
from leakmap.errors import NotApplicable
from leakmap.observation.observation import GRANT_LABELS, Observation


@label_rules.add("counts")
def counts(*, dummies: int = 64) -> LabelRule:
    """Class counts from ``n_c = B (p_c - db_c)``, with the mean prediction ``p`` measured on stand-in pictures.

    The stand-ins are the granted public pictures, else noise, in the client's mode. Without a bias, the row sums of the
    weight gradient over the mean sum of features, measured too, stand for ``db``. Exact where ``p`` is; for several
    local steps it reads their mean gradient.

    Args:
        dummies: Number of noise pictures where no public ones are granted.

    Source: the identity behind LLG (Wainakh et al. 2022, arXiv:2105.09369) and iLRG (Ma et al. 2023).
    """

    def rule(observation: Observation, seed: int) -> Labels:
        check_scale(observation)
        check_magnitudes(observation, "counts")
        head = head_gradient(observation)
        seen = view(observation, head, stand_ins(observation, seed, dummies))
        used = facts_used(observation, "rule", "public")
        return labels_by_mean(
            observation, head, seen.probabilities.mean(0), seen.features.sum(1).mean(), "counts", used
        )

    return rule


def labels_by_mean(
    observation: Observation, head: Head, predicted: Tensor, sums: Tensor, rule: str, used: tuple[str, ...]
) -> Labels:
    """Labels from the mean prediction ``(classes,)`` and, where there is no bias, the mean sum of features."""
    total = observation.count or 0
    scale = total / (1 - label_smoothing(observation))
    if head.bias is None and not abs(float(sums)) > 0:
        raise NotApplicable(
            f"{rule} needs the sum of the features where the last layer has no bias, and on stand-in pictures it is 0; "
            f"grant public pictures (--public N) or the labels: {GRANT_LABELS}."
        )
    if head.bias is None:
        bias, noise = head.weight.sum(1) / sums, scale * head.row_noise / abs(float(sums))
    else:
        bias, noise = head.bias, scale * head.noise
    real = counts_from_mean_label(predicted - bias, observation)
    whole = largest_remainder(real.clamp(min=0), total)
    return Labels(listed(whole), rule, agreement(real, whole, noise), used)
