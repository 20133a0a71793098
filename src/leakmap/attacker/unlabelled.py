"""Whether an attack can run where classes are neither granted nor can be read."""

from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.protocol import Attack
from leakmap.attacker.suite import Strongest
from leakmap.errors import NotApplicable, NotGranted
from leakmap.observation.observation import Observation


def unlabelled(attack: Attack, observation: Observation) -> tuple[str, bool]:
    """Why searches cannot run for lack of labels, which are neither granted nor can be read; empty if they can.

    A search needs labels, or searches them too; a closed form or a fitted member reads pictures without.

    Returns:
        The sentence, and whether it is true of the whole attack: of a suite a member that needs none may answer.
    """
    members = [attack]
    if isinstance(attack, Strongest):
        members = [member for _, member in attack.members if not member.why_not(observation)]
    searches, why = [one for one in members if isinstance(one, GradientMatching)], ""
    for one in searches:
        try:
            one.labels_of(observation, 0)
        except (NotApplicable, NotGranted) as error:
            why = why or str(error)
        else:
            return "", False
    return why, len(searches) == len(members)
