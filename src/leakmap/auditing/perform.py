"""An audit: several clients, each beside its floors and controls, and the verdict over all of them."""

import time
from dataclasses import asdict, replace

from leakmap.attacker.attacks import attacks
from leakmap.attacker.unlabelled import unlabelled
from leakmap.auditing.conclude import Audit, conclude
from leakmap.auditing.estimate import Foretold, expected
from leakmap.auditing.prepare import Prepared, granting
from leakmap.auditing.provenance import begun, ended
from leakmap.auditing.recipe import ROLES, in_order, trials
from leakmap.auditing.update_check import check_update, degenerate
from leakmap.client.simulate import Batch
from leakmap.errors import BadSetting, ModelError
from leakmap.plan.plan import Plan, Progress
from leakmap.result.method import UpdateCheck
from leakmap.runs.fitting import FOLDER
from leakmap.runs.run import held_by, network_of, seen_by_server
from leakmap.runs.runner import FITTING, HERE, Runner, jobs_of, run_trials
from leakmap.runs.store import Store
from leakmap.runs.trial import Outcome, Trial

COST = {"attack": 1.0, "swapped": 1.0, "prior_only": 0.03, "informed": 0.1, "control": 0.5}
"""Rough relative cost of a run of each role, for the remaining time only."""


def perform(
    plan: Plan,
    prepared: Prepared,
    store: Store | None = None,
    runner: Runner = HERE,
    progress: Progress = lambda what, fraction: None,
    foretold: Foretold | None = None,
) -> Audit:
    """Runs what is missing and concludes. Failed runs of an earlier call are tried again.

    Args:
        plan: The audit.
        prepared: Its setups.
        store: Where finished runs are kept; None keeps nothing.
        runner: Where to run; what only lives in this process runs here.
        progress: Called with what is being done and the finished fraction.
        foretold: Called with what is about to be run, where something is; None estimates nothing.

    Raises:
        StoreError: the folder holds another audit, or results of another schema.
        KeyboardInterrupt: after storing what is finished and, given a store, writing the partial result.
    """
    started = time.time()
    plan = granting(plan, prepared.main.groups)
    progress("probing the update", 0.0)
    check = probe(plan, prepared, runner.here.device)
    # An update that shows nothing is a result, with a flag that says why.
    without = "" if degenerate(check) else refuse_unlabelled(plan, prepared)
    if store is not None:
        store.claim({**asdict(plan), "contents": prepared.main.digest}, "audit")
    planned = trials(plan, *prepared.digests)
    everything = in_order(planned)
    cost = {trial.key: COST[role] for role in ROLES for trial in planned[role]}
    stored = [] if store is None else [store.get(trial) for trial in everything]
    outcomes = {found.trial.key: found for found in stored if found is not None and not found.failure}
    resumed = len(outcomes)
    missing = [trial for trial in everything if trial.key not in outcomes]
    origin = store and begun(plan, prepared.main, store, runner.here.device, anything=bool(missing))
    fractions = dict.fromkeys(cost, 0.0) | dict.fromkeys(outcomes, 1.0)

    def told(key: str, fraction: float) -> None:
        fractions[key] = max(fractions[key], fraction)
        share = sum(cost[k] * f for k, f in fractions.items()) / sum(cost.values())
        progress(f"run {len(outcomes)} of {len(everything)}", share)

    def done(outcome: Outcome) -> None:
        outcomes[outcome.trial.key] = outcome
        if store is not None:
            store.put(outcome)
        told(outcome.trial.key, 1.0)

    def conclusion() -> Audit:
        return conclude(plan, prepared, check, planned, outcomes, time.time() - started, resumed)

    try:
        chosen, jobs = jobs_of(missing, {"victims": prepared.main, "control": prepared.control}, store, runner)
        if missing and foretold is not None:
            setups = {one.digest: one for one in (prepared.main, prepared.control)}
            coming = expected(missing, setups, chosen, None if store is None else store.folder / FOLDER)
            foretold(replace(coming, without=without))
        run_trials(chosen, jobs, done, told, lambda fraction: progress(FITTING, fraction))
    except KeyboardInterrupt:
        if store is not None:
            conclusion().save(store.folder)
        raise
    found = conclusion()
    if store is not None and origin is not None:
        found.save(store.folder)
        ended(origin, store)
    return found


def refuse_unlabelled(plan: Plan, prepared: Prepared) -> str:
    """Refuses, before any run, an attack that would fail on every client for lack of labels.

    Returns:
        Why the searches of a suite will fail where its other members may answer; empty where nothing lacks.

    Raises:
        BadSetting: no rule reads the labels of such clients, they are not granted, and the attack needs them.
    """
    setup = prepared.main
    first = Trial(setup.digest, plan.rule, plan.threat, plan.attack)
    try:
        observation = seen_by_server(first, setup)
    except ModelError:
        return ""  # a client that cannot take its step is a failure on record, which its runs leave
    why, all_of_it = unlabelled(attacks.build(plan.attack), observation)
    if why and all_of_it:
        raise BadSetting(f"{plan.attack} cannot attack such clients: {why}")
    return why


PROBED = 3
"""Clients that the check looks at."""


def probe(plan: Plan, prepared: Prepared, device: str = "cpu") -> UpdateCheck:
    """What the updates of the first clients depend on."""
    setup = prepared.main.to(device)
    probed = range(min(PROBED, plan.victims))
    trials = [Trial(setup.digest, plan.rule, plan.threat, plan.attack, client=v) for v in probed]
    batches = [held_by(trial, setup) for trial in trials]
    others = [
        Batch(setup.groups.pictures(setup.groups.swaps[0, v]).to(device), batch.y)
        for v, batch in zip(probed, batches, strict=True)
    ]
    return check_update([network_of(trial, setup) for trial in trials], plan.rule, batches, others, plan.seed)
