"""The reference attack by optimisation."""

from typing import Annotated, Literal

from pydantic import Field

from leakmap.attacker.attacks import attacks
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.registry import Tunable

Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@attacks.add("inverting_gradients")
def inverting_gradients(
    *,
    tv: Annotated[Weight, Tunable(1e-4, 1e-1)] = 1e-2,
    steps: Count = 400,
    lr: Annotated[Positive, Tunable(3e-2, 1.0)] = 0.3,
    schedule: Literal["step", "cosine", "constant"] = "cosine",
    sign: bool = True,
    restarts: Count = 1,
    labels: str = "auto",
    mode: Literal["client", "eval"] = "client",
) -> GradientMatching:
    """Cosine matching with total variation and signed Adam.

    Args:
        tv: Weight of the total variation.
        steps: Iterations of each restart; the paper takes 24,000.
        lr: Step size of Adam.
        schedule: Of the step size.
        sign: Whether Adam is fed the sign of the gradient.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.
        mode: ``client`` simulates the client's own mode; the paper forces ``eval``.

    Source: Geiping et al. 2020, "Inverting Gradients", arXiv:2003.14053.
    """
    return GradientMatching(
        tv=tv, steps=steps, lr=lr, schedule=schedule, sign=sign, restarts=restarts, labels=labels, mode=mode
    )
