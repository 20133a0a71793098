"""One run: a client, its update, an attack, a score. The only room where both sides meet.

A :class:`Trial` is all names and numbers. What these point to, the network and the pictures, is a :class:`Stage`,
named in the trial by its digest: so a trial's key depends on contents, not on paths.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from leakmap.attacker.attacks import attack
from leakmap.attacker.reconstruction import Attempt, Reconstruction
from leakmap.client.federation import Batch, Round, simulate
from leakmap.client.groups import Groups
from leakmap.errors import StoreError
from leakmap.local import LocalRule
from leakmap.models.network import Code, Network
from leakmap.observation import Observation, Public
from leakmap.registry import Spec
from leakmap.scoring.lineup import GALLERY, pick_distractors
from leakmap.scoring.metrics import ALWAYS
from leakmap.scoring.regions import crops, cut, fitted, large_objects
from leakmap.scoring.score import Score, score
from leakmap.seeds import derive
from leakmap.task import Task
from leakmap.threat import ThreatModel, observe
from leakmap.version import __version__

SCHEMA = 4
_GROUPS = (
    *("images", "labels", "victims", "swaps", "controls", "public", "training", "rehearsals", "distractors"),
    *("objects", "areas"),
)


@dataclass(frozen=True)
class Stage:
    """What trials are played on: a network and pictures in disjoint groups.

    Args:
        network: The network.
        groups: The pictures.
        name: SHA-256 of the recipe that both were made by; empty where there is none, as for a module in memory.
        captured: What the victims really sent, each with the network that it got; empty where they are simulated.
    """

    network: Network
    groups: Groups
    name: str = ""
    captured: tuple[Observation, ...] = ()

    @cached_property
    def digest(self) -> str:
        """The name, else SHA-256 of the weights, the pictures and the public facts."""
        return self.name or _digest(self._facts(), self._tensors())

    @cached_property
    def network_digest(self) -> str:
        """SHA-256 of the weights and the public facts, whatever the pictures."""
        return _digest(self._facts(), self.network.weights)

    @cached_property
    def spare_objects(self) -> tuple[Tensor, list[Tensor]]:
        """``(K,)`` classes and ``(C, h, w)`` crops of the large objects among the distractors."""
        return crops(self.groups.pictures(self.groups.distractors), self.groups.objects[self.groups.distractors])

    def save(self, path: Path) -> None:
        """Writes network and pictures as safetensors; a user's own code is left out."""
        temporary = path.with_name(f".{path.name}.part")
        tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in self._tensors().items()}
        save_file(
            tensors,
            temporary,
            metadata={"stage": json.dumps(self._facts()), "order": json.dumps(list(tensors)), "name": self.name},
        )
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path, code: Code | None = None) -> "Stage":
        """Reads what :meth:`save` wrote.

        Raises:
            StoreError: the file is not a stage.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                facts, order = json.loads(metadata["stage"]), json.loads(metadata["order"])
                names = dict.fromkeys(order)
                tensors = {name: file.get_tensor(name).clone() for name in names}  # aligned, as rounding depends on it
            t = facts["task"]
            task = Task(**t | {name: tuple(t[name]) for name in ("shape", "mean", "std")} | {"loss": Spec(**t["loss"])})
            groups = Groups(classes=tuple(facts["classes"]), **{name: tensors[f"groups/{name}"] for name in _GROUPS})
            weights = {n.removeprefix("weights/"): tensor for n, tensor in tensors.items() if n.startswith("weights/")}
            network = Network(task, Spec(**facts["model"]), weights, code or Code())
            sent = [tensor for n, tensor in tensors.items() if n.startswith("captured/")]
            captured = tuple(Observation.from_bytes(tensor.numpy().tobytes(), code=code) for tensor in sent)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise StoreError(f"{path} is not a stage of leakmap ({reason}); remove it and run again.") from None
        return cls(network, groups, metadata["name"], captured)

    def to(self, device: torch.device | str) -> "Stage":
        """The same stage with its weights on a device."""
        captured = tuple(observation.to(device) for observation in self.captured)
        return replace(self, network=self.network.to(device), captured=captured)

    def _facts(self) -> dict[str, Any]:
        task = self.network.task
        return {
            "task": asdict(task),
            "model": asdict(self.network.model),
            "code": self.network.code.fingerprint(),
            "classes": list(self.groups.classes),
        }

    def _tensors(self) -> dict[str, Tensor]:
        weights = {f"weights/{name}": tensor for name, tensor in self.network.weights.items()}
        groups = {f"groups/{name}": getattr(self.groups, name) for name in _GROUPS}
        sent = [torch.frombuffer(bytearray(one.to_bytes()), dtype=torch.uint8) for one in self.captured]
        return weights | groups | {f"captured/{i}": tensor for i, tensor in enumerate(sent)}


def _digest(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\x1f{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Trial:
    """One run, as names and numbers.

    Args:
        stage: Digest of the stage.
        rule: The client's local rule.
        threat: What the server is granted.
        attack: The attack.
        group: Whether the client is a victim, one of the planted control, or one that an attacker rehearses on.
        client: Index of the client in its group.
        swap: 0 for the client's own pictures; k for a victim's k-th set of swapped ones, scored against its own.
        seed: Every random stream derives from it.
        gallery: Candidates wanted in a line-up.
        metrics: What to compute.
        code: SHA-256 of the user's files that the attack names.
    """

    stage: str
    rule: LocalRule
    threat: ThreatModel
    attack: Spec
    group: Literal["victims", "controls", "rehearsals"] = "victims"
    client: int = 0
    swap: int = 0
    seed: int = 0
    gallery: int = GALLERY
    metrics: tuple[str, ...] = ALWAYS
    code: str = ""

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that decides the result, with the schema version."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Reached:
    """What one attack of a suite came to on a client.

    Args:
        name: Of the attack.
        term: The suite's yardstick, by which its result is chosen; NaN if it has none.
        seconds: Wall time.
        note: Why it has none.
        failed: Whether it should have had one.
        ranks: In the line-up, of each picture.
        values: Metric -> value of each picture.
    """

    name: str
    term: float
    seconds: float
    note: str = ""
    failed: bool = False
    ranks: tuple[float, ...] = ()
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: a score or a failure, never both.

    Args:
        trial: As it was asked for.
        score: How the reconstruction fared.
        objective: Its matching term; of a suite its yardstick.
        curve: The matching term along the run.
        notes: What the attack recorded.
        failure: ``(kind, message)`` if it failed.
        reached: Of a suite, what each of its attacks came to.
        seconds: Wall time.
        versions: Of leakmap, Python and torch, and the device.
    """

    trial: Trial
    score: Score | None = None
    objective: float = float("nan")
    curve: tuple[float, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    failure: tuple[str, str] | None = None
    reached: tuple[Reached, ...] = ()
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)


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
    captured = stage.captured[trial.client] if stage.captured and trial.group == "victims" else None
    shared = truth
    if trial.swap:
        other = groups.pictures(groups.swaps[trial.swap - 1, trial.client])
        shared = Batch(other.to(truth.pictures), truth.y, truth.areas)
    if captured is not None and not trial.swap:
        round = Round(captured.network, trial.rule, truth, captured.update, captured.buffers or {})
    else:
        network = stage.network if captured is None else captured.network
        round = simulate(network, trial.rule, shared, derive(trial.seed, "client", trial.client))
    public = groups.public
    return observe(
        round,
        trial.threat,
        Public(groups.pictures(public), _targets(stage, public)),
        scored=truth.pictures,
        seed=derive(trial.seed, "observe", trial.client),
    )


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
