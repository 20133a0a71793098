"""Steps of one size: for trained deep networks, on which Adam stands still."""

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import inverting_gradients
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.settings import TV, Count, LearningRate


@attacks.add("even_steps")
def even_steps(
    *,
    tv: TV = 0.2,
    lr: LearningRate = 0.3,
    steps: Count = 400,
    restarts: Count = 1,
    labels: str = "auto",
) -> GradientMatching:
    """Cosine matching with gradients brought to one size before Adam, and a constant total variation.

    Args:
        tv: Weight of the total variation.
        lr: Step size of Adam.
        steps: Iterations of each restart.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: to every differentiable model; made for trained ones.

    Source: this project, after the signed steps of Geiping et al. 2020, arXiv:2003.14053.
    """
    return inverting_gradients(
        tv=tv,
        fade=1.0,
        lr=lr,
        sign="unit",
        steps=steps,
        restarts=restarts,
        labels=labels,
    )
