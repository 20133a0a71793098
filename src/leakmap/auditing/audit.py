"""Audits in one call: of a plan, of real updates, and of a model in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from leakmap.attacker.attacks import DEFAULT
from leakmap.auditing.captured import prepare_captured
from leakmap.auditing.estimate import Foretold
from leakmap.auditing.found import Audit
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.client.data import MOST_CLASSES, Pictures, usable
from leakmap.errors import BadSetting, DataError, check_type, in_words
from leakmap.local_rule import LocalRule
from leakmap.models.network import IN_MEMORY
from leakmap.plan.plan import Plan, Progress, usual_victims
from leakmap.plan.tuned import Tuned
from leakmap.problem import Target
from leakmap.problem.targets import Loss
from leakmap.registry.spec import Spec
from leakmap.runs.runner import HERE, Local, Runner
from leakmap.runs.store import Store
from leakmap.threat import ThreatModel


def run_plan(
    plan: Plan,
    out: Path | str | None = None,
    *,
    runner: Runner = HERE,
    progress: Progress = lambda what, fraction: None,
    foretold: Foretold | None = None,
) -> Audit:
    """Audits simulated clients: all that ``leakmap audit`` does with its options as a plan.

    Args:
        plan: The audit.
        out: Folder for results; given one, finished runs are kept and an interrupted audit continues.
        runner: Where to run; without a folder, this process.
        progress: Called with what is being done and the finished fraction.
        foretold: Called with what is about to be run and how long that may take, where something is missing.

    Raises:
        UsageError: something of the plan does not fit.
        StoreError: the folder holds another audit, or results of another schema.
        KeyboardInterrupt: after storing what is finished and, given a folder, writing the partial result.
    """
    if plan.captured is not None:
        raise BadSetting("This plan is of captured updates; give them to audit_captured.")
    prepared = prepare(plan, device=runner.here.device, progress=progress)
    return perform(plan, prepared, _store(out), runner, progress, foretold)


def audit_captured(
    plan: Plan,
    observations: Sequence[Path | str],
    truths: Sequence[str],
    others: str,
    out: Path | str | None = None,
    *,
    runner: Runner = HERE,
    progress: Progress = lambda what, fraction: None,
    foretold: Foretold | None = None,
) -> Audit:
    """Audits real clients, whose updates were captured, beside the pictures that they held.

    Args:
        plan: Attack, granted labels, buffers and public pictures, metrics, null and seed; of the client only the
            user's own model and loss, where the Observations name such, else the model ``""``.
        observations: Files with what each client sent.
        truths: Specification of the pictures that each client held, such as ``npz:FILE``, in the order of its steps.
        others: Specification of pictures of the same kind that no client held.
        out: Folder for results; given one, finished runs are kept and an interrupted audit continues.
        runner: Where to run; without a folder, this process.
        progress: Called with what is being done and the finished fraction.
        foretold: Called with what is about to be run and how long that may take, where something is missing.

    Raises:
        UsageError: files, pictures and plan do not fit each other.
        ObservationError: a file is not a sound Observation.
        StoreError: the folder holds another audit, or results of another schema.
        KeyboardInterrupt: after storing what is finished and, given a folder, writing the partial result.
    """
    full, prepared = prepare_captured(plan, observations, truths, others)
    return perform(full, prepared, _store(out), runner, progress, foretold)


def audit(
    model: nn.Module | Spec | str,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | Sequence[Any],
    *,
    client: LocalRule | None = None,
    threat: ThreatModel | None = None,
    attack: Spec | str = DEFAULT,
    tuned: Tuned | None = None,
    loss: Loss | None = None,
    target: Literal["auto", Target] = "auto",
    output: str = "",
    victims: int | None = None,
    batch_size: int = 1,
    classes: int | None = None,
    normalization: str = "data",
    null: bool = False,
    metrics: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    out: Path | str | None = None,
    progress: Progress = lambda what, fraction: None,
) -> Audit:
    """Audits a model in memory on pictures in memory, in this process.

    Args:
        model: A module, with the weights that the server sends, or a specification. It is copied, not
            changed, without the hooks of the user's own: what changes outputs belongs into ``forward``.
        images: ``(N, C, H, W)``, uint8 or floats in [0, 1] (brought to 8 bits, as pictures are).
        labels: ``(N,)`` classes; for other tasks numbers ``(N,)`` or ``(N, K)``, or ``(N, H, W)`` classes of pixels.
        client: What the clients do; by default they share one gradient in training mode.
        threat: What the server is granted.
        attack: Its specification, so that the audit can be repeated.
        tuned: Settings for it from :func:`leakmap.tune`.
        loss: ``loss(outputs, y) -> scalar``; by default the usual one of the target.
        target: What a picture is labelled with, see :mod:`leakmap.problem.targets`; ``auto``: as labels, model and loss
            tell together.
        output: Which part of what the model returns the loss takes, a name or a position; empty: all of it.
        victims: Number of clients; by default 36, or 200 where the attack is fitted first.
        batch_size: Pictures of each client.
        classes: Outputs of the model; by default the highest label plus one.
        normalization: See :class:`Plan`.
        null: Whether to make a null audit, see :class:`Plan`.
        metrics: Besides PSNR and SSIM.
        seed: Everything random derives from it.
        device: Where to compute.
        out: Folder for results; given one, finished runs are kept and an interrupted audit continues.
        progress: Called with what is being done and the finished fraction.

    Raises:
        UsageError: the pictures, the model or a setting do not fit.
    """
    check_type(model, (nn.Module, str, Spec), "The model", "a torch.nn.Module, or a specification such as 'mlp'")
    check_type(loss, (Callable, NoneType), "The loss", "a function loss(outputs, y), or None for cross entropy")
    check_type(tuned, (Tuned, NoneType), "tuned", "what leakmap.tune returns")
    check_type(progress, Callable, "progress", "a function of what is being done and the finished fraction")
    check_type(metrics, Sequence, "metrics", "a list of names")
    chosen, device = Spec.parse(attack), str(device)
    plan = Plan(
        model=IN_MEMORY if isinstance(model, nn.Module) else str(model),
        data=IN_MEMORY,
        rule=LocalRule() if client is None else client,
        threat=ThreatModel() if threat is None else threat,
        attack=chosen,
        victims=usual_victims(chosen) if victims is None else victims,
        batch_size=batch_size,
        normalization=normalization,
        null=null,
        classes=classes,
        metrics=(metrics,) if isinstance(metrics, str) else tuple(metrics),
        seed=seed,
        target=target,
        output=output,
    )
    if tuned is not None:
        plan = tuned.applied_to(plan)
    pictures = _from_memory(images, labels)
    prepared = prepare(plan, pictures, model if isinstance(model, nn.Module) else None, loss, device)
    return perform(plan, prepared, _store(out), Local(0, device, threads=None), progress)


def _store(out: Path | str | None) -> Store | None:
    check_type(out, (str, Path, NoneType), "out", "the path of a folder, or None")
    return None if out is None else Store(Path(out))


def _from_memory(images: Any, labels: Any) -> Pictures:
    images, labels = _tensor("images", images), _tensor("labels", labels)
    if not images.numel() or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(f"images have shape {tuple(images.shape)}; expected (N, C, H, W) with 1 or 3 channels.")
    if labels.ndim == 4 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if not 1 <= labels.ndim <= 3 or len(labels) != len(images):
        raise DataError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype} for {len(images)} images; expected "
            "classes (N,), numbers (N,) or (N, K), or classes of pixels (N, H, W)."
        )
    if images.dtype != torch.uint8:
        if not images.is_floating_point() or not 0 <= float(images.min()) <= float(images.max()) <= 1:
            raise DataError("images must be uint8, or floats in [0, 1]; give them before normalization.")
        images = (images * 255).round().to(torch.uint8)
    column = labels.shape in ((len(images),), (len(images), 1)) and not labels.is_floating_point()
    if column and int(labels.min()) >= 0:
        if int(labels.max()) >= MOST_CLASSES:
            raise DataError(f"labels are classes from 0 to at most {MOST_CLASSES - 1}; got {int(labels.max())}.")
        classes = labels.long().reshape(-1)
        return usable(Pictures(images, classes, tuple(map(str, range(int(classes.max()) + 1)))), "images")
    none = torch.zeros(len(images), dtype=torch.int64)
    return usable(Pictures(images, none, ("0",), values=labels), "images")


def _tensor(name: str, value: Any) -> Tensor:
    try:
        found = torch.as_tensor(value).detach().cpu()
        if found.is_sparse or found.is_complex():
            raise TypeError("it is sparse or complex")
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"{name} cannot be read as a tensor ({in_words(error)}); give a tensor or an array.") from None
    return found
