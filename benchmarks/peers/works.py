"""What is attacked: models with one client each, and their form on disk."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.calibration import CALIBRATION, calibrated
from leakmap import LocalRule, Task, ThreatModel, build_network, observe, simulate
from leakmap.auditing.prepare import NORMALIZATIONS
from leakmap.client.data import Pictures, load_pictures
from leakmap.client.simulate import Batch
from leakmap.errors import DataError
from leakmap.local_rule import Mode
from leakmap.models.network import Code
from leakmap.observation.observation import Observation
from leakmap.registry.user_code import load_user_code
from leakmap.seeds import generator

SIGMA = 0.5
OWN_MODEL = "model.txt"
"""In the folder of a case: the ``file.py:function`` of a model that is no registered one."""
LOOKED_AT = "astronaut"
"""The photograph of ``samples`` on which step sizes were first explored: no tile of it is attacked."""


@dataclass(frozen=True)
class Work:
    """A model and how many pictures its client holds.

    Args:
        name: In files.
        title: In tables.
        model: Its specification, with random initial weights.
        size: Height and width of the pictures.
        batch: Pictures of the client.
        iterations: Evaluations of each contestant in a round.
        frozen: At most so much of the hand-written loop should the frozen engine take.
        exact: Likewise the exact engine.
        mode: Of the client.
        classes: Of the model.
    """

    name: str
    title: str
    model: str
    size: int
    batch: int
    iterations: int
    frozen: float
    exact: float
    mode: Mode = "eval"
    classes: int = 10


WORKS = (
    Work("convnet", "ConvNet(64), 32 px, batch 1", "convnet,width=64,depth=5", 32, 1, 200, 0.78, 1.0),
    Work("resnet18", "CIFAR ResNet-18, batch 1", "resnet", 32, 1, 8, 0.65, 0.95),
    Work("resnet18-8", "CIFAR ResNet-18, batch 8", "resnet", 32, 8, 3, 0.65, 0.95),
    Work("resnet18-224", "ResNet-18, 224 px, batch 1", "torchvision/resnet18", 224, 1, 4, 0.65, 0.95, classes=1000),
    Work(
        "preact-8",
        "pre-activation ResNet-18, training mode, batch 8",
        "resnet,preact=true",
        *(32, 8, 3, 0.65, 0.95),
        mode="train",
    ),
    Work(
        "vit-tiny",
        "timm ViT-tiny, 224 px, batch 1",
        "timm/vit_tiny_patch16_224",
        *(224, 1, 4, 0.72, 1.0),
        classes=1000,
    ),
)
SMALL = Work("small", "a small network", "resnet,blocks=1,width=8", 32, 2, 1, math.inf, math.inf)
"""Attacked beforehand where memory is measured."""


@dataclass(frozen=True)
class Case:
    """A client at hand.

    Args:
        observation: All that its attackers hold: labels and rule are granted.
        guess: ``(N, C, H, W)`` normalized: the truth and noise, where evaluations are timed.
        pictures: ``(N, C, H, W)`` in [0, 1]: the truth, for scores alone.
    """

    observation: Observation
    guess: Tensor
    pictures: Tensor

    @property
    def y(self) -> Tensor:
        """The granted labels."""
        labels = self.observation.labels
        if labels is None:
            raise ValueError("The labels of a case are granted.")
        return labels

    @property
    def mode(self) -> Mode:
        """Of the client."""
        rule = self.observation.rule
        return "eval" if rule is None else rule.mode

    def save(self, folder: Path) -> None:
        """Writes it; the Observation as its file form."""
        folder.mkdir(parents=True, exist_ok=True)
        self.observation.to_file(folder / "observation.safetensors")
        save_file({"guess": self.guess, "pictures": self.pictures}, folder / "truth.safetensors")
        own = folder / OWN_MODEL
        own.unlink(missing_ok=True)  # that of an earlier case
        if ".py:" in (model := str(self.observation.network.model)):
            own.write_text(model, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "Case":
        """Reads what :meth:`save` wrote."""
        truth = load_file(folder / "truth.safetensors", device=str(device))
        # Code that this benchmark itself named: an Observation file alone never has any run.
        own = folder / OWN_MODEL
        code = Code(model=load_user_code(own.read_text(encoding="utf-8"))()) if own.is_file() else None
        observation = Observation.from_file(folder / "observation.safetensors", code=code).to(device)
        return cls(observation, truth["guess"], truth["pictures"])


def prepare(work: Work, data: str, client: int = 0) -> Case:
    """A client of a work.

    Args:
        work: What it trains.
        data: Where its pictures come from.
        client: Its number; clients of one work have the same model and different pictures.

    Raises:
        DataError: there are too few pictures.
    """
    height = width = work.size
    task = Task((3, height, width), work.classes, *NORMALIZATIONS["cifar10" if work.size == 32 else "imagenet"])
    loaded = load_pictures(data, work.size)
    order = torch.randperm(len(loaded), generator=generator(0, "speed", work.size))
    order = order[_allowed(loaded)[order]]
    first = CALIBRATION + client * work.batch
    chosen = order[first : first + work.batch]
    if len(chosen) < work.batch:
        raise DataError(f"{data} has {len(order)} pictures; client {client} of {work.name} needs more.")
    network = build_network(task, work.model)
    if work.mode == "eval":
        network = calibrated(network, task.normalize(loaded.images[order[:CALIBRATION]] / 255))
    pictures = loaded.images[chosen] / 255
    labels = (torch.arange(work.batch) + client) % work.classes
    round = simulate(network, LocalRule(mode=work.mode), Batch(pictures, labels))
    x = task.normalize(pictures)
    noise = torch.randn(x.shape, generator=generator(0, "guess", client))
    return Case(observe(round, ThreatModel("known", buffers=False)), x + SIGMA * noise, pictures)


def _allowed(loaded: Pictures) -> Tensor:
    if LOOKED_AT not in loaded.classes:
        return torch.ones(len(loaded), dtype=torch.bool)
    return loaded.labels != loaded.classes.index(LOOKED_AT)
