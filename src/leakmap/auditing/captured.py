"""The audit of real updates: captured Observations in place of simulated clients, the auditor's pictures as truth."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.auditing.case import SPREAD, Case, Runs
from leakmap.auditing.prepare import Prepared, granting, planted
from leakmap.auditing.recipe import names_of
from leakmap.auditing.rounded import cause
from leakmap.capturing.typed import read_observation
from leakmap.client.data import Pictures, load_pictures
from leakmap.client.groups import divide
from leakmap.client.simulate import Batch
from leakmap.client.targets import labelled
from leakmap.errors import BadSetting, DataError
from leakmap.local_rule import LocalRule
from leakmap.observation.observation import Observation
from leakmap.plan.plan import Captured, Plan, check
from leakmap.plan.written import CAPTURED, settings, usual, values_of
from leakmap.problem.objects import EMPTY
from leakmap.problem.task import Task
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code
from leakmap.runs.setup import Setup

WRONG = (
    ": a fact is wrong, or they add something random that the facts do not tell. leakmap doctor FILE --replay DATA "
    "says which."
)
REPLAYS = 1e-3
"""Relative distance up to which a client that is simulated at its own pictures is the client that sent the update."""


def typed_in(plan: Plan) -> tuple[str | None, str | None]:
    """The user's own model and loss that stand in the plan of an audit of real updates; None where none do."""
    return plan.model or None, plan.loss if is_user_code(Spec.parse(plan.loss).name) else None


def prepare_captured(
    plan: Plan,
    files: Sequence[Path | str],
    truths: Sequence[str],
    others: str,
) -> tuple[Plan, Prepared]:
    """The plan and the setups of an audit of real updates.

    Args:
        plan: Attack, granted labels, buffers and public pictures, metrics, null and seed; of the client only the
            user's own model and loss, where the Observations name such.
        files: What each client sent.
        truths: Specification of the pictures that each client held, in the order of its local steps.
        others: Specification of pictures of the same kind that no client held: for line-ups, swapped updates and
            public knowledge.

    Raises:
        UsageError: files and pictures do not fit each other.
        ObservationError: a file is not a sound Observation.
    """
    if not files or len(files) != len(truths):
        raise BadSetting(
            f"{len(files)} Observations and {len(truths)} sets of pictures were given; every --observation needs its "
            "--truth, in the same order."
        )
    if not others:
        raise BadSetting("Give --others with pictures of the same kind that no client held: line-ups are made of them.")
    values = values_of(plan)
    told = [
        one.flag
        for one in settings()
        if (one.declared.table in CAPTURED or one.path in ("target", "output"))
        and values[one.path] != usual(one, plan.attack)
    ]
    told += ["--tuned"] if plan.tuned is not None else []
    if told:
        raise BadSetting(f"With --observation the client is what its file says; leave out {', '.join(told)}.")
    observations = [read_observation(file, *typed_in(plan)) for file in files]
    first = observations[0]
    rule, task, count = _same(observations, files)
    held = [_pictures(truth, task) for truth in truths]
    for file, truth, own in zip(files, truths, held, strict=True):
        if len(own) != count:
            raise DataError(f"{truth} has {len(own)} different pictures, {file} says that the client had {count}.")
    pool = _joined(held, _pictures(others, task), task)
    threat = replace(plan.threat, count=True, rule=True, buffers=plan.threat.buffers and first.buffers is not None)
    plan = replace(
        plan,
        model=str(first.network.model),
        data=others,
        rule=rule,
        threat=threat,
        image_size=None,
        victims=len(files),
        batch_size=count,
        classes=task.classes,
        normalization=":".join("/".join(f"{value:g}" for value in values) for values in (task.mean, task.std)),
        loss=str(task.loss),
        target=task.target,
        output=task.output,
        captured=Captured(tuple(map(str, files)), tuple(truths), others),
    )
    check(plan)
    groups = divide(
        pool,
        victims=plan.victims,
        batch_size=plan.batch_size,
        public=threat.public,
        given=True,
        seed=plan.seed,
    )
    plan = granting(plan, groups)
    names = names_of(plan, task, groups, observations)
    main = Setup(first.network, groups, names.main, tuple(observations))
    return plan, Prepared(
        main, planted(plan, groups, task, names), math.nan, _flags(observations, [_batch(one, task) for one in held])
    )


def held_pictures(spec: str, task: Task) -> Batch:
    """The pictures that a client held, as a batch.

    Args:
        spec: Their source.
        task: Of the client.

    Raises:
        DataError: they cannot be read, or do not fit the task.
    """
    return _batch(_pictures(spec, task), task)


def _batch(found: Pictures, task: Task) -> Batch:
    y = found.labels if found.values is None else found.values
    y = y if found.objects is None else _padded(found.objects, task.objects)
    return Batch(found.floats, y, found.areas)


def _same(observations: Sequence[Observation], files: Sequence[Path | str]) -> tuple[LocalRule, Task, int]:
    """What all clients of an audit have in common."""
    first = observations[0]
    for observation, file in zip(observations, files, strict=True):
        for fact, value in (("rule", observation.rule), ("count", observation.count)):
            if value is None:
                raise BadSetting(f"{file} does not say the client's {fact}; complete its facts and capture it again.")
        pairs = {
            "architecture": (observation.network.model, first.network.model),
            "task": (observation.network.task, first.network.task),
            "local rule": (observation.rule, first.rule),
            "number of pictures": (observation.count, first.count),
            "returned buffers": (observation.buffers is None, first.buffers is None),
        }
        if differing := [name for name, (own, other) in pairs.items() if own != other]:
            raise BadSetting(
                f"{file} differs from {files[0]} in its {differing[0]}; audit clients that differ one by one."
            )
    assert first.rule is not None
    assert first.count is not None
    return first.rule, first.network.task, first.count


def _pictures(spec: str, task: Task) -> Pictures:
    """A source in the size of the task."""
    found = load_pictures(spec, task.shape[1] if task.shape[1] == task.shape[2] else None)
    if tuple(found.images.shape[1:]) != task.shape:
        raise DataError(f"{spec} has pictures of shape {tuple(found.images.shape[1:])}, the clients' are {task.shape}.")
    found = labelled(found, task.target, spec)
    y = found.labels if found.values is None else found.values
    if not task.objects and (wrong := task.wrong(y, len(found))):
        most = f"; its highest is {int(y.max())}, the clients' model has {task.classes} outputs" if task.labels else ""
        raise DataError(f"{spec}: what its pictures are labelled with {wrong}{most}.")
    if bool(task.objects) != (found.objects is not None):
        raise DataError(f"{spec} has {'no ' if task.objects else ''}objects, the clients' model does not expect that.")
    return found


def _joined(held: Sequence[Pictures], others: Pictures, task: Task) -> Pictures:
    """All pictures as one source, those of the clients first; others that a client holds are left out."""
    longest = max((one.classes for one in (*held, others)), key=len)
    parts = [*held, _without(others, held)]
    for one in parts:
        if one.classes != longest[: len(one.classes)]:
            raise DataError(
                f"The clients' pictures and the others differ in their classes ({', '.join(one.classes[:3])}, … and "
                f"{', '.join(longest[:3])}, …); give them the same names in the same order."
            )
    return Pictures(
        torch.cat([one.images for one in parts]),
        torch.cat([one.labels for one in parts]),
        longest,
        objects=torch.cat([_padded(one.objects, task.objects) for one in parts if one.objects is not None])
        if task.objects
        else None,
        areas=_areas(parts),
        values=None if task.counted else torch.cat([one.values for one in parts if one.values is not None]),
        elsewhere=others.elsewhere,
    )


def _without(others: Pictures, held: Sequence[Pictures]) -> Pictures:
    merged = [others, *([others.spare] if others.spare else [])]
    known = {_digest(image) for one in held for image in one.images}
    parts = [(one, [i for i, image in enumerate(one.images) if _digest(image) not in known]) for one in merged]

    def rows(name: str) -> Tensor | None:
        found = [tensor[kept] for one, kept in parts if (tensor := getattr(one, name)) is not None]
        return torch.cat(found) if found else None

    images, labels = (torch.cat([getattr(one, name)[kept] for one, kept in parts]) for name in ("images", "labels"))
    return Pictures(images, labels, others.classes, objects=rows("objects"), areas=rows("areas"), values=rows("values"))


def _digest(image: Tensor) -> bytes:
    return hashlib.sha256(image.numpy().tobytes()).digest()


def _padded(objects: Tensor, most: int) -> Tensor:
    if objects.shape[1] > most:
        raise DataError(f"A picture has {objects.shape[1]} objects, the clients' facts say at most {most}.")
    return F.pad(objects, (0, 0, 0, most - objects.shape[1]), value=EMPTY)


def _areas(parts: Sequence[Pictures]) -> Tensor | None:
    """Of every picture, if any has letterbox bars."""
    if all(one.areas is None for one in parts):
        return None
    height, width = parts[0].images.shape[-2:]
    whole = torch.tensor([0, 0, height, width])
    return torch.cat([whole.expand(len(one), 4) if one.areas is None else one.areas for one in parts])


def _flags(observations: Sequence[Observation], held: Sequence[Batch]) -> dict[str, str]:
    """Why finding nothing would be no evidence: the captured facts do not give the captured update."""
    cases = [Case(one, batch, Runs()) for one, batch in zip(observations, held, strict=True)]
    far = {i: one.distance for i, one in enumerate(cases) if REPLAYS < one.distance > SPREAD * one.spread}
    if not far:
        return {}
    client = max(far, key=far.__getitem__)
    why = cause(cases[client])
    return {
        "does_not_replay": (
            "Simulated on its own pictures, a client does not send what it sent (relative distance "
            f"{far[client]:.2g} for client {client}, {len(far)} of {len(cases)} clients affected)"
            + (f". {why}" if why else WRONG)
        )
    }
