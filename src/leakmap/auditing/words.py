"""The verdict in plain words."""

from collections.abc import Sequence

from leakmap.attacker.attacks import attacks
from leakmap.auditing.ledger import used_by
from leakmap.plan.plan import Plan
from leakmap.runs.trial import Outcome
from leakmap.scoring.verdict import Client, Verdict, line_up
from leakmap.threat import letter_of


def statement(plan: Plan, verdict: Verdict, clients: Sequence[Client], attacked: Sequence[Outcome]) -> str:
    """The verdict in plain words; "safe", "anonymous" and "private" are never among them."""
    what = {
        "inconclusive": "This audit does not show whether the update leaks",
        "none_found": "No reconstruction above the floors was found",
        "statistical": "The update tells pictures apart better than chance",
        "partial": "Pictures can be picked out of a line-up from the update alone",
        "visual": "Pictures can be recognised in what is recovered from the update",
        "exact": "Pictures are recovered almost pixel by pixel from the update",
    }[verdict.level]
    null = "Null audit: every update came from other pictures. " if plan.null else ""
    if plan.threat.known_pixels:
        null = f"{null}The server was given {plan.threat.known_pixels:.3g} of the true pixels. "
    if not clients:
        return f"{null}{what}."
    rate = line_up(clients).rank_one
    cost = attacks.build(plan.attack).cost
    starts = f"{cost.restarts} start{'s' if cost.restarts > 1 else ''}"
    told = [f"{cost.iterations} iterations", starts] if cost.iterations else []
    told += [f"suite {o.notes['suite']}" for o in attacked[:1] if "suite" in o.notes]
    told += [plan.column] if plan.tuned else []
    budget = f" ({', '.join(told)})" if told else ""
    return (
        f"{null}{what}: {plan.attack.name}{budget}, an attacker of kind {letter_of(used_by(attacked))}, "
        f"n = {sum(len(client.ranks) for client in clients)}, first rank {rate.value:.0%} "
        f"(95 % interval {rate.low:.0%} to {rate.high:.0%})."
    )
