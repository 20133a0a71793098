"""What a captured update says about the facts that were written beside it, without any picture."""

from leakmap.doctor.checks.buffers import buffers
from leakmap.doctor.checks.head import head
from leakmap.doctor.checks.payload import architecture, defence, kind, missing, precision, zeros
from leakmap.doctor.finding import Check, Finding
from leakmap.errors import ModelError
from leakmap.observation.observation import Observation


def check(observation: Observation) -> list[Finding]:
    """Looks at an Observation without any picture; nothing is attacked and nothing raised.

    An Observation that could be read has fitting names and finite values already; what is left is whether its facts
    agree with each other.
    """
    try:
        observation.network.module()
    except ModelError as error:
        return [
            Finding(
                "architecture",
                "wrong",
                f"{str(error).rstrip('.')}. Nothing else can be checked; name the architecture that the client ran.",
            )
        ]
    return [finding for one in _CHECKS for finding in one(observation)]


_CHECKS: tuple[Check, ...] = (architecture, missing, zeros, kind, precision, defence, buffers, head)
