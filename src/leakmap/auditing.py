"""An audit: several clients, each beside its floors and controls, and the verdict over all of them."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from leakmap.attacker.attacks import DEFAULT
from leakmap.client.data import Pictures, usable
from leakmap.client.federation import Batch
from leakmap.conclusion import Audit, conclude
from leakmap.errors import DataError
from leakmap.gate import Gate, inspect_update
from leakmap.local import LocalRule
from leakmap.models.network import IN_MEMORY
from leakmap.plan import ROLES, Plan, Progress, trials
from leakmap.pool import Held, Play, Report, StageFile, run_here, run_in_pool
from leakmap.preparation import Prepared, prepare
from leakmap.registry import Spec
from leakmap.store import Store
from leakmap.task import Loss
from leakmap.threat import ThreatModel
from leakmap.trial import Outcome, Stage, Trial, held_by
from leakmap.tuned import Tuned

PROBED = 3
"""Clients that the gate looks at."""


def audit(
    model: nn.Module | Spec | str,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | Sequence[int],
    *,
    client: LocalRule | None = None,
    threat: ThreatModel | None = None,
    attack: Spec | str = DEFAULT,
    tuned: Tuned | None = None,
    loss: Loss | None = None,
    victims: int = 12,
    batch_size: int = 1,
    classes: int | None = None,
    normalise: str = "data",
    control: Literal["none", "swapped"] = "none",
    metrics: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Audits a model in memory on pictures in memory, in this process.

    Args:
        model: A module, with the weights that the server sends, or a specification. It is copied, not changed.
        images: ``(N, C, H, W)``, uint8 or floats in [0, 1] (brought to 8 bits, as pictures are).
        labels: ``(N,)`` classes.
        client: What the clients do; by default they share one gradient in training mode.
        threat: What the server is granted.
        attack: Its specification, so that the audit can be repeated.
        tuned: Settings for it from :func:`leakmap.tune`.
        loss: ``loss(outputs, y) -> scalar``; cross entropy by default.
        victims: Number of clients.
        batch_size: Pictures of each client.
        classes: Outputs of the model; by default the highest label plus one.
        normalise: See :class:`Plan`.
        control: ``swapped`` for a null audit.
        metrics: Besides PSNR and SSIM.
        seed: Everything random derives from it.
        device: Where to compute.
        out: Folder for results; given one, finished runs are kept and an interrupted audit continues.
        progress: Called with what is being done and the finished fraction.

    Raises:
        UsageError: the pictures, the model or a setting do not fit.
    """
    plan = Plan(
        model=IN_MEMORY if isinstance(model, nn.Module) else str(model),
        data=IN_MEMORY,
        rule=client or LocalRule(),
        threat=threat or ThreatModel(),
        attack=Spec.parse(attack),
        victims=victims,
        batch_size=batch_size,
        normalise=normalise,
        control=control,
        classes=classes,
        metrics=tuple(metrics),
        seed=seed,
    )
    if tuned is not None:
        plan = tuned.applied_to(plan)
    pictures = _from_memory(images, labels)
    prepared = prepare(plan, pictures, model if isinstance(model, nn.Module) else None, loss, device)
    store = Store(Path(out)) if out is not None else None
    return perform(plan, prepared, store, device=device, progress=progress)


def _from_memory(images: Any, labels: Any) -> Pictures:
    images = torch.as_tensor(images).detach().cpu()
    labels = torch.as_tensor(labels).detach().cpu().long().reshape(-1)
    if not images.numel() or images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) != len(labels):
        raise DataError(
            f"images have shape {tuple(images.shape)} and labels {tuple(labels.shape)}; "
            "expected (N, C, H, W) with 1 or 3 channels, and (N,)."
        )
    if images.dtype != torch.uint8:
        if not images.is_floating_point() or not 0 <= float(images.min()) <= float(images.max()) <= 1:
            raise DataError("images must be uint8, or floats in [0, 1]; give them before normalisation.")
        images = (images * 255).round().to(torch.uint8)
    if int(labels.min()) < 0:
        raise DataError(f"labels must be classes from 0 on; got {int(labels.min())}.")
    return usable(Pictures(images, labels, tuple(str(c) for c in range(int(labels.max()) + 1))), "images")


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


def probe(plan: Plan, prepared: Prepared, device: str = "cpu") -> Gate:
    """What the updates of the first clients depend on."""
    stage = prepared.main.to(device)
    probed = range(min(PROBED, plan.victims))
    batches = [held_by(Trial(stage.digest, plan.rule, plan.threat, plan.attack, client=v), stage) for v in probed]
    others = [
        Batch(stage.groups.pictures(stage.groups.swaps[0, v]).to(device), batch.y)
        for v, batch in zip(probed, batches, strict=True)
    ]
    return inspect_update(stage.network, plan.rule, batches, others, plan.seed)


def default_workers(device: str = "cpu") -> int:
    """One process for each core that this process may use, at most 16; one where they would share an accelerator."""
    if device != "cpu":
        return 1
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
