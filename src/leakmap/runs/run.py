"""Running one trial: the only room where both sides meet."""

import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import Tensor

from leakmap.attacker.attacks import attack
from leakmap.attacker.reconstruction import Attempt, Reconstruction
from leakmap.client.simulate import Batch, Round, simulate
from leakmap.models.network import Network
from leakmap.observation.observation import Observation, Public
from leakmap.runs.testbed import Stage
from leakmap.runs.trial import Outcome, Reached, Trial
from leakmap.scoring.lineup import pick_distractors
from leakmap.scoring.regions import cut, fitted, large_objects
from leakmap.scoring.score import score
from leakmap.seeds import derive
from leakmap.threat import observe
from leakmap.version import __version__


def run(trial: Trial, stage: Stage, progress: Callable[[float], None] = lambda fraction: None) -> Outcome:
    """Plays one trial. An error becomes a recorded failure; only an interruption gets through.

    Args:
        trial: What to run.
        stage: What it points to, on the device to use.
        progress: Called with the finished fraction; may raise KeyboardInterrupt to stop.

    Raises:
        ValueError: the stage is not the trial's.
    """
    if trial.stage != stage.digest:
        raise ValueError("the trial belongs to another stage")
    started = time.perf_counter()
    versions = versions_of(stage.network.device)
    try:
        truth, others = held_by(trial, stage), distractors_for(trial, stage)
        found = attack(seen_by_server(trial, stage), trial.attack, derive(trial.seed, "attack", trial.client), progress)
        scored = score(found, truth, others, trial.metrics, object_distractors_for(trial, stage))
        reached = tuple(_reached(attempt, truth, others, trial.metrics) for attempt in found.attempts)
    except Exception as error:
        return failed(trial, error, time.perf_counter() - started, versions)
    seconds = time.perf_counter() - started
    return Outcome(trial, scored, found.objective, found.curve, found.notes or {}, None, reached, seconds, versions)


def failed(trial: Trial, error: Exception, seconds: float = 0.0, versions: Mapping[str, str] | None = None) -> Outcome:
    """The outcome of a trial that ended in an error."""
    failure = (type(error).__name__, " ".join(str(error).split()) or "no message")
    return Outcome(trial, failure=failure, seconds=seconds, versions=dict(versions or {}))


def _reached(attempt: Attempt, truth: Batch, others: list[Tensor], metrics: tuple[str, ...]) -> Reached:
    told = (attempt.name, attempt.term, attempt.seconds, attempt.note, attempt.failed)
    if attempt.pictures is None or attempt.y is None:
        return Reached(*told)
    scored = score(Reconstruction(attempt.pictures, attempt.y, attempt.term), truth, others, metrics)
    return Reached(*told, scored.ranks, scored.values)


def seen_by_server(trial: Trial, stage: Stage) -> Observation:
    """The Observation of a trial: its client's update, or that of swapped pictures, and what is granted besides."""
    truth, groups = held_by(trial, stage), stage.groups
    captured, network = _captured(trial, stage), network_of(trial, stage)
    shared = truth
    if trial.swap:
        other = groups.pictures(groups.swaps[trial.swap - 1, trial.client])
        shared = Batch(other.to(truth.pictures), truth.y, truth.areas)
    if captured is not None and not trial.swap:
        round = Round(network, trial.rule, truth, captured.update, captured.buffers or {})
    else:
        round = simulate(network, trial.rule, shared, derive(trial.seed, "client", trial.client))
    public = groups.public
    return observe(
        round,
        trial.threat,
        Public(groups.pictures(public), _targets(stage, public)),
        scored=truth.pictures,
        seed=derive(trial.seed, "observe", trial.client),
    )


def network_of(trial: Trial, stage: Stage) -> Network:
    """The network that a trial's client got."""
    captured = _captured(trial, stage)
    return stage.network if captured is None else captured.network


def _captured(trial: Trial, stage: Stage) -> Observation | None:
    return stage.captured[trial.client] if stage.captured and trial.group == "victims" else None


def held_by(trial: Trial, stage: Stage) -> Batch:
    """The true batch of a trial's client."""
    index = getattr(stage.groups, trial.group)[trial.client]
    device = stage.network.device
    areas = stage.groups.areas[index] if stage.groups.areas.numel() else None
    return Batch(stage.groups.pictures(index).to(device), _targets(stage, index).to(device), areas)


def _targets(stage: Stage, index: Tensor) -> Tensor:
    """What the stage's loss takes: the planted control classifies pictures with objects too."""
    return stage.groups.targets(index) if stage.network.task.objects else stage.groups.labels[index]


def distractors_for(trial: Trial, stage: Stage) -> list[Tensor]:
    """For each true picture, the other candidates of its line-up, ``(G - 1, C, h, w)`` in [0, 1].

    Of letterboxed pictures ``h`` and ``w`` are what lies between the bars of the true one, which the others are brought
    to: the shape of the bars identifies nobody.

    Pictures of one class take turns through the distractors of that class, so that line-ups share none while there are
    enough: shared ones would make ranks depend on each other.
    """
    groups = stage.groups
    members = getattr(groups, trial.group)
    before = groups.labels[members[: trial.client].flatten()].tolist()
    found = []
    for index in members[trial.client].tolist():
        label = int(groups.labels[index])
        chosen = pick_distractors(
            groups.labels, label, groups.distractors, trial.gallery - 1, trial.seed, turn=before.count(label)
        )
        before.append(label)
        candidates = groups.pictures(chosen)
        if groups.areas.numel():
            truth = cut(groups.pictures(torch.tensor(index)), groups.areas[index])
            pairs = zip(candidates, groups.areas[chosen], strict=True)
            candidates = torch.stack([fitted(picture, area, truth) for picture, area in pairs])
        found.append(candidates)
    return found


def object_distractors_for(trial: Trial, stage: Stage) -> list[list[Tensor]]:
    """For each true picture and each large object in it, the other candidates of its line-up, ``(G - 1, C, h, w)``."""
    groups = stage.groups
    kinds, candidates = stage.spare_objects if stage.network.task.objects else (torch.tensor([]), [])
    if not candidates:
        return []
    pool, seed = torch.arange(len(kinds)), derive(trial.seed, "object line-up", trial.client)
    before: list[int] = []
    found: list[list[Tensor]] = []
    for index in getattr(groups, trial.group)[trial.client]:
        picture = groups.pictures(index)
        classes, boxes = large_objects(groups.objects[index], *picture.shape[-2:])
        line_ups = []
        for label, (top, left, bottom, right) in zip(classes.tolist(), boxes.tolist(), strict=True):
            truth = picture[:, top:bottom, left:right]
            chosen = pick_distractors(kinds, label, pool, trial.gallery - 1, seed, turn=before.count(label))
            before.append(label)
            line_ups.append(torch.stack([fitted(candidates[i], None, truth) for i in chosen.tolist()]))
        found.append(line_ups)
    return found


def versions_of(device: torch.device) -> dict[str, str]:
    """What a result depends on besides its trial."""
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
    return {
        "leakmap": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("torchvision", "timm") if find_spec(name)},
        "device": device_name,
    }
