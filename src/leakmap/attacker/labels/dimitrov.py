"""Class counts behind several local steps."""

import torch
from torch import Tensor

from leakmap.attacker.gradients import step_weights
from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.counts import labels_by_mean
from leakmap.attacker.labels.head import check_magnitudes, check_scale, facts_used, head_gradient, stand_ins, view
from leakmap.observation.observation import Observation


@label_rules.add("dimitrov")
def dimitrov(*, dummies: int = 128) -> LabelRule:
    """Class counts with the mean prediction interpolated between the server's weights and the client's.

    Predictions and sums of features of stand-in pictures (granted public ones, else noise, in the client's mode) are
    measured at both ends of the local training and interpolated linearly over its steps. Exact where they are those of
    the client's examples at every step. Without a bias the row sums of the weight gradient over the sum of features
    stand for it, as in the paper. In a partial last mini-batch the examples weigh more, which no rule can see.

    Args:
        dummies: Number of noise pictures where no public ones are granted.

    Source: Dimitrov et al. 2022, "Data Leakage in Federated Averaging", arXiv:2206.12395, after Geng et al. 2021,
    "Towards General Deep Leakage in Federated Learning", arXiv:2110.09074.
    """

    def rule(observation: Observation, seed: int) -> Labels:
        check_scale(observation)
        check_magnitudes(observation, "dimitrov")
        head = head_gradient(observation)
        x = stand_ins(observation, seed, dummies)
        ends = [view(observation, head, x), view(observation, head, x, client_weights(observation))]
        along = progress(observation).to(head.weight.device)

        def interpolated(before: Tensor, after: Tensor) -> Tensor:
            return before + along * (after - before)

        predicted = interpolated(*(end.probabilities.mean(0) for end in ends))
        sums = interpolated(*(end.features.sum(1).mean() for end in ends))
        used = facts_used(observation, "rule", "public", "buffers")
        return labels_by_mean(observation, head, predicted, sums, "dimitrov", used)

    return rule


def client_weights(observation: Observation) -> dict[str, Tensor]:
    """The client's weights after its local training, with its buffers where they are granted; of a gradient, before."""
    weights = {**observation.network.weights, **(observation.buffers or {})}
    if observation.update.kind == "delta":
        weights |= {name: weights[name] + change for name, change in observation.update.tensors.items()}
    return weights


def progress(observation: Observation) -> Tensor:
    """How far from the server's weights (0) to the client's (1) the steps start on average, by their weight."""
    if observation.rule is None or observation.update.kind == "gradient":
        return torch.zeros((), dtype=torch.float64)
    weight = torch.tensor(step_weights(observation.rule, observation.count or 1), dtype=torch.float64)
    return (weight * torch.arange(len(weight)) / len(weight)).sum() / weight.sum()
