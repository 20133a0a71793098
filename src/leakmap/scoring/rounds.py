"""Evidence over rounds: a test that may be looked at after every capture and still keeps its error rate.

A verdict speaks of one set of clients. Who asks it anew after every round alarms sooner or later by chance. Here bets
are placed in place of tests: on each capture, that the attack ranks the true pictures better from the client's own
update than from one of other pictures. Where updates say nothing of pictures, both ranks are exchangeable, so no bet
wins on average, and the wealth that bets have made exceeds 1 / error at any time with at most that probability.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from leakmap.errors import BadSetting

BETS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
"""Shares of the wealth that are staked on each capture; the wealth is split evenly among them beforehand. Small stakes
win on leaks that few captures show, large ones on plain leaks; none can be lost whole."""
ERROR = 0.05
"""Probability of an alarm, ever, where nothing leaks."""


@dataclass(frozen=True)
class Pooled:
    """What captures say together.

    Args:
        captures: That were scored.
        evidence: The highest wealth so far, from 1; an e-value, valid at any time. Infinite only by overflow.
        p: Its inverse, at most 1: an anytime-valid p-value.
        alarm: The place of the capture at which evidence reached 1 / :data:`ERROR`, from 0; None before.
    """

    captures: int
    evidence: float
    p: float
    alarm: int | None


def pooled(advantages: Sequence[float]) -> Pooled:
    """Pools captures in their order; what was said of the first ones stays, whatever comes later.

    Args:
        advantages: Of each capture, in [-1, 1]: by how much of a line-up its true pictures rank better from its own
            update than from one of other pictures, see :func:`leakmap.result.values.advantage`.

    Raises:
        BadSetting: a value lies outside of [-1, 1].

    Source: Shafer 2021, "Testing by betting", doi:10.1111/rssa.12647; Waudby-Smith and Ramdas 2024, "Estimating means
    of bounded random variables by betting", arXiv:2010.09686; Ville's inequality for all times together.
    """
    if not all(-1 <= value <= 1 for value in advantages):
        raise BadSetting(f"Advantages lie in [-1, 1]; got {list(advantages)}.")
    logs = [0.0] * len(BETS)
    highest, alarm = 0.0, None
    for place, value in enumerate(advantages):
        logs = [log + math.log1p(bet * value) for log, bet in zip(logs, BETS, strict=True)]
        top = max(logs)
        highest = max(highest, top + math.log(sum(math.exp(log - top) for log in logs) / len(BETS)))
        if alarm is None and highest >= -math.log(ERROR):
            alarm = place
    return Pooled(len(advantages), math.exp(min(700.0, highest)), math.exp(-highest), alarm)
