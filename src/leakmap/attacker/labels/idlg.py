"""The label of a single example."""

from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.head import head_gradient
from leakmap.errors import NotApplicable
from leakmap.observation.observation import Observation


@label_rules.add("idlg")
def idlg() -> LabelRule:
    """The one class whose bias gradient is negative; without a bias, the lowest row sum of the weight gradient.

    Exact for one example and cross entropy (the row sums also need non-negative features).

    Source: Zhao et al. 2020, "iDLG: Improved Deep Leakage from Gradients", arXiv:2001.02610.
    """

    def rule(observation: Observation, seed: int) -> Labels:
        observation.need("count")
        if observation.count != 1:
            raise NotApplicable(
                f"idlg reads the label of one example; this client has {observation.count}: use counts."
            )
        head = head_gradient(observation)
        signal = head.weight.sum(1) if head.bias is None else head.bias
        lowest = signal.topk(2, largest=False).values
        # 1e-30 gives a gradient of zeros the margin 0 in place of NaN.
        margin = (lowest[1] - lowest[0]) / (signal.abs().max() + 1e-30)
        return Labels(signal.argmin().view(1), "idlg", float(margin.clamp(0, 1)))

    return rule
