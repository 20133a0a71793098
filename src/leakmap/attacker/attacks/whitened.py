"""A search over waves that are as strong as those of public pictures."""

from dataclasses import replace

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import inverting_gradients
from leakmap.attacker.attacks.proxy_statistics import nothing_public
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.settings import TV, Count, LearningRate


@attacks.add("whitened")
def whitened(
    *,
    tv: TV = 0.2,
    lr: LearningRate = 0.4,
    steps: Count = 400,
    restarts: Count = 1,
    labels: str = "auto",
) -> GradientMatching:
    """The search of ``even_steps`` in a whitened basis, x = mean + colours . IDCT(strength z).

    Mean, colours and the strength of every wave are those of public pictures. A step of one size in every z first moves
    what pictures differ in most, their layout and colours, and grain last.

    Args:
        tv: Weight of the total variation.
        lr: Step size of Adam, in white numbers.
        steps: Iterations of each restart.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: to every differentiable model, where public pictures are granted.

    Source: this project; whitening by the spectrum of natural pictures after Field 1987.
    """
    plain = inverting_gradients(
        tv=tv,
        fade=1.0,
        lr=lr,
        sign="unit",
        basis="whitened",
        steps=steps,
        restarts=restarts,
        labels=labels,
    )
    return replace(plain, unless=nothing_public)
