"""Pixels with hardly any total variation: for networks that give every pixel away."""

from typing import Annotated

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import inverting_gradients
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.settings import STEP, Count, LearningRate, Weight
from leakmap.registry.spec import Tunable

LowTV = Annotated[Weight, Tunable(1e-5, 1e-1)]


@attacks.add("low_variation")
def low_variation(
    *, tv: LowTV = 1e-3, lr: LearningRate = STEP, steps: Count = 400, restarts: Count = 1, labels: str = "auto"
) -> GradientMatching:
    """Cosine matching with a total variation that hardly smooths, and none at the end.

    The last fifth of the iterations polishes, without total variation, if the matching term is below 0.01 by then.

    Args:
        tv: Weight of the total variation.
        lr: Step size of Adam.
        steps: Iterations of each restart.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: to every differentiable model; where the update fixes every pixel, as that of a shallow wide network does,
    total variation only holds the search back.

    Source: this project, after Geiping et al. 2020, arXiv:2003.14053.
    """
    return inverting_gradients(tv=tv, fade=1.0, lr=lr, steps=steps, polish=steps // 5, restarts=restarts, labels=labels)
