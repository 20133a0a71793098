"""Which members of a suite can rehearse, and which of them take too long, told before anything is fitted."""

from collections.abc import Mapping
from dataclasses import dataclass

from leakmap.attacker.learned.rehearsal import Rehearsals
from leakmap.attacker.protocol import Attack, Cost
from leakmap.attacker.setting import Setting
from leakmap.errors import NotApplicable
from leakmap.observation.observation import Observation

LONGEST, LONGEST_FIT = 10**13, 10**14
"""Floating-point operations of a search on one client, minutes of a core, and of simulating the clients that a member
is fitted to, an hour or so, beyond which it is left out if another member rehearsed: of clients with many pictures that
train for several steps, and of large networks."""


@dataclass(frozen=True)
class Chances:
    """Who can rehearse.

    Args:
        unfit: Why members do not apply to what clients send.
        long: Why each of the others takes too long; empty for one that does not.
    """

    unfit: Mapping[str, str]
    long: Mapping[str, str]

    @property
    def left_out(self) -> frozenset[str]:
        """Those that take too long; the first one rehearses in any case."""
        return frozenset(name for name, why in list(self.long.items())[1:] if why)


def chances_of(members: Mapping[str, tuple[Attack, Cost]], rehearsals: Rehearsals, tried: Observation) -> Chances:
    """Who can rehearse, and for how long.

    Args:
        members: In the order in which they run, each with its cost in the suite, whose seconds may bound it.
        rehearsals: The clients.
        tried: What the server sees of one of them.
    """
    unfit = {name: why for name, (member, _) in members.items() if (why := member.why_not(tried))}
    work = rehearsals.work()
    long = {
        name: _too_long(member, cost, rehearsals.setting, work)
        for name, (member, cost) in members.items()
        if name not in unfit
    }
    return Chances(unfit, long)


def _too_long(member: Attack, cost: Cost, setting: Setting, work: int) -> str:
    """Why a member takes too long where another one rehearsed; empty if it does not.

    Args:
        member: Of the suite.
        cost: Of it in the suite, whose seconds may bound it.
        setting: It would be fitted to.
        work: Floating-point operations of simulating one client.
    """
    if cost.seconds is None and cost.total * work > LONGEST:
        return f"a search over {setting.count} pictures takes long; name it with --attack to run it"
    try:
        clients = member.fit_cost(setting).clients
    except NotApplicable as error:
        return str(error)
    if clients * work > LONGEST_FIT:
        return f"simulating {clients:,} clients of such a network takes long; name it with --attack to fit it"
    return ""
