"""An audit: several clients, each beside its floors and controls, and the verdict over all of them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from leakmap.auditing.conclude import Audit, conclude
from leakmap.auditing.prepare import Prepared
from leakmap.auditing.recipe import ROLES, trials
from leakmap.auditing.update_check import UpdateCheck, check_update
from leakmap.client.simulate import Batch
from leakmap.models.network import IN_MEMORY
from leakmap.plan.plan import Plan, Progress
from leakmap.runs.fitting import FOLDER
from leakmap.runs.jobs import InMemory, Report, SetupFile, TrialJob, fit_jobs
from leakmap.runs.pool import run_here, run_in_pool
from leakmap.runs.run import held_by, network_of
from leakmap.runs.setup import Setup
from leakmap.runs.store import Store
from leakmap.runs.trial import Outcome, Trial

COST = {"attack": 1.0, "swapped": 1.0, "prior_only": 0.03, "control": 0.5}
"""Rough relative cost of a run of each role, for the remaining time only."""


def perform(
    plan: Plan,
    prepared: Prepared,
    store: Store | None = None,
    *,
    workers: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Audit:
    """Runs what is missing and concludes.

    Args:
        plan: The audit.
        prepared: Its setups.
        store: Where finished runs are kept; None keeps nothing.
        workers: Processes; 0 computes in this one. Failed runs of an earlier call are tried again.
        device: Where to compute.
        progress: Called with what is being done and the finished fraction.

    Raises:
        StoreError: the folder holds another audit.
        KeyboardInterrupt: after storing what is finished and, given a store, writing the partial result.
    """
    progress = progress or (lambda what, fraction: None)
    started = time.time()
    progress("probing the update", 0.0)
    check = probe(plan, prepared, device)
    if store is not None:
        store.claim({**asdict(plan), "contents": prepared.main.digest}, "audit")
    planned = trials(plan, *prepared.digests)
    outcomes: dict[str, Outcome] = {}
    everything = [trial for v in range(plan.victims) for role in ROLES[:3] for trial in planned[role][v : v + 1]]
    everything += planned["control"]
    cost = {trial.key: COST[role] for role in ROLES for trial in planned[role]}
    for trial in everything:
        if store is not None and (stored := store.get(trial)) is not None and not stored.failure:
            outcomes[trial.key] = stored
    resumed = len(outcomes)
    missing = [trial for trial in everything if trial.key not in outcomes]
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
        setups = {"victims": prepared.main, "control": prepared.control}
        run_all(missing, setups, store, done, told, workers, device)
    except KeyboardInterrupt:
        if store is not None:
            conclusion().save(store.folder)
        raise
    found = conclusion()
    if store is not None:
        found.save(store.folder)
    return found


def run_all(
    missing: list[Trial],
    setups: Mapping[str, Setup],
    store: Store | None,
    done: Callable[[Outcome], None],
    told: Report,
    workers: int,
    device: str,
) -> None:
    """Runs trials in processes, or in this one where there are none, no folder, or a module that only lives here.

    Args:
        missing: What to run.
        setups: By the name that their files get in the folder.
        store: Whose folder holds the files.
        done: Called with each outcome, as it comes.
        told: Called with the progress of running trials.
        workers: Processes.
        device: Where to compute.
    """
    if not missing:
        return
    in_memory = any(setup.network.model.name == IN_MEMORY for setup in setups.values())
    if not workers or store is None or in_memory:
        held = {setup.digest: InMemory(setup) for setup in setups.values()}
        folder = None if store is None else store.folder / FOLDER
        run_here([TrialJob(trial, held[trial.setup], folder) for trial in missing], done, told, device=device)
        return
    files = {}
    for name, setup in setups.items():
        path = store.folder / f"{name}.safetensors"
        setup.save(path)
        files[setup.digest] = SetupFile(path, setup.network.model, setup.network.task.loss)
    jobs = [TrialJob(trial, files[trial.setup], store.folder / FOLDER) for trial in missing]
    if fits := fit_jobs(jobs):
        first = {job.key: job.trials[0].key for job in fits}

        def fitting(key: str, fraction: float) -> None:
            """A fit is told as the first half of the first trial that waits for it."""
            told(first[key], fraction / 2)

        run_in_pool(fits, lambda why: None, fitting, workers=workers, device=device)
    run_in_pool(jobs, done, told, workers=workers, device=device)


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
