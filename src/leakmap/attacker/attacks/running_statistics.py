"""Running statistics as if they were the batch's: the strongest attack before the paper's."""

from dataclasses import replace

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import inverting_gradients
from leakmap.attacker.matching.descent import Schedule, Sign
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.settings import (
    FADE,
    STEP,
    TV,
    VARIATION,
    Count,
    Fraction,
    LearningRate,
    StatisticsWeight,
)
from leakmap.attacker.matching.statistics import Statistics


@attacks.add("running_statistics")
def running_statistics(
    *,
    weight: StatisticsWeight = 1e-3,
    tv: TV = VARIATION,
    fade: Fraction = FADE,
    steps: Count = 400,
    lr: LearningRate = STEP,
    schedule: Schedule = "cosine",
    sign: Sign = "none",
    restarts: Count = 1,
    labels: str = "auto",
) -> GradientMatching:
    """Cosine matching, and BatchNorm inputs that have the client's running statistics after its step.

    These mix mostly old statistics with the batch's. Where the buffers are not returned, the server's own are taken.

    Args:
        weight: Of the statistics; published are 0.005 and, with unknown labels, 0.001.
        tv: Weight of the total variation; published are 0.1 and 0.05.
        fade: Fraction of that weight that is left at the end; it falls as the step size does.
        steps: Iterations of each restart; published are 10,000.
        lr: Step size of Adam; published is 0.1.
        schedule: Of the step size; published is ``step``.
        sign: What Adam is fed of the gradient.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: where the model has BatchNorm with running statistics.

    Source: Huang et al. 2021, "Evaluating Gradient Inversion Attacks and Defenses in Federated Learning",
    arXiv:2112.00059 (GradAttack).
    """
    plain = inverting_gradients(
        tv=tv, fade=fade, steps=steps, lr=lr, schedule=schedule, sign=sign, restarts=restarts, labels=labels
    )
    return replace(plain, terms=(Statistics("running", weight),), leaky_model="convnet,norm=batch")
