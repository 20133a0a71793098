"""An audit: several clients, each beside its floors and controls, and the verdict over all of them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from leakmap.auditing.conclude import Audit, conclude
from leakmap.auditing.prepare import Prepared
from leakmap.auditing.recipe import ROLES, trials
from leakmap.auditing.update_check import Gate, inspect_update
from leakmap.client.simulate import Batch
from leakmap.models.network import IN_MEMORY
from leakmap.plan.plan import Plan, Progress
from leakmap.runs.jobs import Held, Play, Report, StageFile
from leakmap.runs.pool import run_here, run_in_pool
from leakmap.runs.run import held_by, network_of
from leakmap.runs.store import Store
from leakmap.runs.testbed import Stage
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
        prepared: Its stages.
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
    gate = probe(plan, prepared, device)
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
        return conclude(plan, prepared, gate, planned, outcomes, time.time() - started, resumed)

    try:
        stages = {"victims": prepared.main, "control": prepared.control}
        run_all(missing, stages, store, done, told, workers, device)
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
    stages: Mapping[str, Stage],
    store: Store | None,
    done: Callable[[Outcome], None],
    told: Report,
    workers: int,
    device: str,
) -> None:
    """Runs trials in processes, or in this one where there are none, no folder, or a module that only lives here.

    Args:
        missing: What to run.
        stages: By the name that their files get in the folder.
        store: Whose folder holds the files.
        done: Called with each outcome, as it comes.
        told: Called with the progress of running trials.
        workers: Processes.
        device: Where to compute.
    """
    if not missing:
        return
    in_memory = any(stage.network.model.name == IN_MEMORY for stage in stages.values())
    if not workers or store is None or in_memory:
        held = {stage.digest: Held(stage) for stage in stages.values()}
        run_here([Play(trial, held[trial.stage]) for trial in missing], done, told, device=device)
        return
    files = {}
    for name, stage in stages.items():
        path = store.folder / f"{name}.safetensors"
        stage.save(path)
        files[stage.digest] = StageFile(path, stage.network.model, stage.network.task.loss)
    run_in_pool([Play(trial, files[trial.stage]) for trial in missing], done, told, workers=workers, device=device)


PROBED = 3
"""Clients that the gate looks at."""


def probe(plan: Plan, prepared: Prepared, device: str = "cpu") -> Gate:
    """What the updates of the first clients depend on."""
    stage = prepared.main.to(device)
    probed = range(min(PROBED, plan.victims))
    plays = [Trial(stage.digest, plan.rule, plan.threat, plan.attack, client=v) for v in probed]
    batches = [held_by(trial, stage) for trial in plays]
    others = [
        Batch(stage.groups.pictures(stage.groups.swaps[0, v]).to(device), batch.y)
        for v, batch in zip(probed, batches, strict=True)
    ]
    return inspect_update([network_of(trial, stage) for trial in plays], plan.rule, batches, others, plan.seed)
