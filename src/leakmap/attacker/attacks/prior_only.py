"""The first floor: what an attack paints without looking at the update."""

from dataclasses import replace
from typing import Any

from leakmap.attacker.attacks import attacks
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.reconstruction import Attack
from leakmap.registry import Spec


@attacks.add("prior_only")
def prior_only(*, of: str = "inverting_gradients", **settings: Any) -> Attack:
    """Another attack with its matching weight at 0, everything else equal; a closed form's floor is the default's.

    Args:
        of: Name of the attack whose floor this is.
        settings: Settings of that attack.

    Source: the control required by every score here; compare the relative measure of Hatamizadeh et al. 2022,
    arXiv:2202.06924.
    """
    attack = attacks.build(Spec(of, settings))
    return replace(attack if isinstance(attack, GradientMatching) else GradientMatching(), match=0.0)
