"""What one example is labelled with, of tasks without classes."""

import torch

from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.head import bias_of, check_magnitudes, check_scale, facts_used, head_gradient
from leakmap.errors import NotApplicable
from leakmap.observation.observation import GRANT_LABELS, Observation


@label_rules.add("single")
def single() -> LabelRule:
    """The labels, or the values, of one example: each output's gradient is its residual.

    With ``dz`` the gradient of the outputs, ``db = dz`` and ``dW = dz h``. Of logits under binary cross entropy
    ``dz_k = (p_k - y_k) / K``, so a label is there where it is negative. Of values under the squared difference
    ``dz_k = 2 (z_k - y_k) / K``: the features ``h`` follow from ``dW`` and ``db``, the outputs ``z`` from them, and
    ``y`` from both; exactly, after one local step.

    Source: the sign rule of Zhao et al. 2020 (iDLG), arXiv:2001.02610, for several outputs; for values the same ratio
    of both gradients that reads the input of a linear layer (Phong et al. 2017, "Privacy-Preserving Deep Learning:
    Revisited and Enhanced").
    """

    def rule(observation: Observation, seed: int) -> Labels:
        observation.need("count")
        steps = observation.rule.steps(observation.count or 1) if observation.rule else 1
        task = observation.network.task
        if observation.count != 1:
            raise NotApplicable(
                f"single reads what one example is labelled with; this client has {observation.count}: {GRANT_LABELS}."
            )
        head = head_gradient(observation, ("multilabel", "regression"))
        bias = head.weight.sum(1) if head.bias is None and task.target == "multilabel" else bias_of(head, "single")
        if task.target == "multilabel":
            # The smallest magnitude is the output whose sign noise would turn first.
            confidence = float((bias.abs().min() / bias.abs().max().clamp(min=1e-300)).clamp(0, 1))
            return Labels((bias < 0).long()[None], "single", confidence)
        if steps > 1:
            raise NotApplicable(f"single reads values after one local step; this client takes {steps}: {GRANT_LABELS}.")
        check_magnitudes(observation, "single")
        check_scale(observation)
        features = head.weight.T @ bias / bias.square().sum()
        weights = observation.network.weights
        outputs = weights[f"{head.name}.weight"].double() @ features + weights[f"{head.name}.bias"].double()
        y = outputs - bias * len(bias) / 2
        fitted = torch.outer(bias, features)
        confidence = float((1 - (head.weight - fitted).norm() / head.weight.norm().clamp(min=1e-300)).clamp(0, 1))
        return Labels(y.float()[None], "single", confidence, facts_used(observation, "rule"))

    return rule
