"""How an audit was made: settings of the attack, defence of the clients, suite, closed forms."""

import statistics
from collections.abc import Sequence

from leakmap.attacker.closed_form import diagnose, summary
from leakmap.defences import NONE, defence_of
from leakmap.defences.accounting import epsilon
from leakmap.plan.plan import Plan
from leakmap.result.method import ClosedForms, DefenceResult, Settings, SuiteMember, SuiteResult
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Outcome

DELTA = 1e-5
"""Of differential privacy, unless a client has so many pictures that one over their number is less."""


def settings_of(plan: Plan) -> Settings:
    """Where the attack's settings come from, for people and for machines."""
    typed = f"given, {str(plan.attack).partition(',')[2]}" if plan.attack.params else "default"
    tuned = plan.tuned
    if tuned is None:
        return Settings(column=plan.column, statement=typed)
    return Settings(
        column=plan.column,
        statement=str(tuned),
        budget=tuned.budget,
        clients=tuned.clients,
        objective=tuned.objective,
        score=tuned.score,
        default=tuned.default,
    )


def promised(plan: Plan) -> DefenceResult | None:
    """What the clients do to their updates and what it promises for one round; None where they do nothing."""
    rule, gaussian = plan.rule, defence_of(plan.rule.defence).gaussian
    if rule.defence == NONE:
        return None
    if gaussian is None or not gaussian.noise:
        return DefenceResult(specification=rule.defence, statement=f"{rule.defence}: no guarantee")
    delta = min(DELTA, 1 / plan.batch_size)
    value = epsilon(
        rule.defence,
        batch_size=1,
        dataset_size=1,
        rounds=rule.epochs if defence_of(rule.defence).examples else 1,
        delta=delta,
    )
    told = f"epsilon {value:.3g} at delta {delta:g} for {gaussian.unit}, in this one round"
    return DefenceResult(specification=rule.defence, statement=f"{rule.defence}: {told}", epsilon=value, delta=delta)


def suite_of(attacked: Sequence[Outcome]) -> SuiteResult | None:
    """What each attack of a suite reached over all clients; None where a single attack ran."""
    names = dict.fromkeys(r.name for o in attacked for r in o.reached)
    if not names:
        return None
    return SuiteResult(version=attacked[0].notes["suite"], members=tuple(_member_of(name, attacked) for name in names))


def _member_of(name: str, attacked: Sequence[Outcome]) -> SuiteMember:
    of_name = [r for o in attacked for r in o.reached if r.name == name]
    ran = [r for r in of_name if r.ranks]
    ranks = [rank for r in ran for rank in r.ranks]
    metrics = ran[0].values if ran else {}
    return SuiteMember(
        name=name,
        ran=len(ran),
        failed=sum(r.failed for r in of_name),
        won=sum(o.notes.get("won") == name for o in attacked),
        rehearsed=attacked[0].notes.get(f"rehearsed NCC of {name}"),
        why=next((r.note for r in of_name if r.note), ""),
        term=statistics.median(r.term for r in ran) if ran else None,
        first=sum(rank == 1 for rank in ranks),
        pictures=len(ranks),
        values={metric: statistics.fmean(v for r in ran for v in r.values[metric]) for metric in metrics},
        seconds=statistics.fmean(r.seconds for r in ran) if ran else None,
    )


def closed_forms(plan: Plan, setup: Setup) -> ClosedForms:
    """Which closed forms can read a layer, and one sentence for each with the reason."""
    findings = diagnose(setup.network, plan.batch_size, plan.rule)
    able = dict.fromkeys(f.attack for f in findings if f.qualifies)
    return ClosedForms(qualify=tuple(able), reasons=tuple(summary(findings)))
