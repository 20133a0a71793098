"""The first floor: what an attack paints without looking at the update."""

from typing import Any, Protocol, runtime_checkable

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import inverting_gradients
from leakmap.attacker.reconstruction import Attack
from leakmap.registry.spec import Spec


@runtime_checkable
class Blindable(Protocol):
    """An attack with a floor of its own."""

    def blind(self) -> Attack:
        """The same attack without all that came from the client."""
        ...


@attacks.add("prior_only")
def prior_only(*, of: str = "inverting_gradients", **settings: Any) -> Attack:
    """Another attack without all that came from the client: its update, its buffers.

    A closed form's floor is the default's.

    Args:
        of: Name of the attack whose floor this is.
        settings: Settings of that attack.

    Applies: always; it is a floor and not an attack.

    Source: the control required by every score here; compare the relative measure of Hatamizadeh et al. 2022,
    arXiv:2202.06924.
    """
    attack = attacks.build(Spec(of, settings))
    return attack.blind() if isinstance(attack, Blindable) else inverting_gradients().blind()
