"""The first floor: what an attack paints without looking at the update."""

from typing import Any

from leakmap.attacker.attacks import attacks
from leakmap.attacker.protocol import Attack, checked
from leakmap.registry.spec import Spec


@attacks.add("prior_only")
def prior_only(*, of: str = "inverting_gradients", **settings: Any) -> Attack:
    """Another attack without all that came from the client: its update, its buffers.

    Args:
        of: Name of the attack whose floor this is.
        settings: Settings of that attack.

    Applies: always; it is a floor and not an attack.

    Source: the control required by every score here; compare the relative measure of Hatamizadeh et al. 2022,
    arXiv:2202.06924.
    """
    return checked(attacks.build(Spec(of, settings))).blind()
