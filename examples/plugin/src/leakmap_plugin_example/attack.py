"""The attack of Doe et al."""

from leakmap.attacker.attacks import attacks
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.priors import TotalVariation
from leakmap.attacker.matching.settings import TV, Count


@attacks.add("plugin_attack")
def build(*, tv: TV = 0.05, steps: Count = 1000) -> GradientMatching:
    """Squared distance with a stronger prior.

    Args:
        tv: Weight of the total variation.
        steps: Iterations.

    Applies: to every differentiable model.

    Source: Doe et al. 2026, arXiv:0000.00000.
    """
    return GradientMatching(
        distance="squared", priors=(TotalVariation(tv),), descent=Descent(0.1, sign="none"), steps=steps
    )
