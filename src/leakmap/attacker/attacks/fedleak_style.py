"""Partial matching and a flat objective, in the style of FedLeak."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import inverting_gradients
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.settings import TV, Count, Fraction, LearningRate
from leakmap.attacker.matching.weighting import Partial
from leakmap.registry.spec import Tunable


@attacks.add("fedleak_style")
def fedleak_style(
    *,
    share: Annotated[float, Field(gt=0, le=1), Tunable(choices=(0.1, 0.3, 1.0))] = 0.3,
    by: Literal["random", "magnitude"] = "random",
    flatness: Annotated[Fraction, Tunable(choices=(0.0, 0.5))] = 0.5,
    tv: TV = 1e-2,
    steps: Count = 400,
    lr: LearningRate = 0.3,
    restarts: Count = 1,
    labels: str = "auto",
) -> GradientMatching:
    """Cosine matching of a share of the entries, with a penalty on a steep matching term.

    FedLeak's text was not at hand: the two ideas are its, the definitions this project's. With ``share=1,flatness=0``
    it is plain cosine matching.

    Args:
        share: Fraction of the entries of each tensor that is matched.
        by: ``random`` entries, drawn anew every 25 iterations, or those of the largest ``magnitude``.
        flatness: Fraction of the gradient that is taken a little further along itself; doubles the cost.
        tv: Weight of the total variation.
        steps: Iterations of each restart.
        lr: Step size of Adam.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: to every differentiable model.

    Source: after FedLeak, 2025, arXiv:2506.08435.
    """
    plain = inverting_gradients(tv=tv, fade=1.0, steps=steps, lr=lr, sign="hard", restarts=restarts, labels=labels)
    return replace(plain, weighting=Partial(share, by) if share < 1 else None, flatness=flatness)
