"""What engines are measured on: networks, and a client of each."""

import argparse
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.apart import SEED, studied
from benchmarks.calibration import CALIBRATION, calibrated
from benchmarks.descent_runs import POST, PRE
from benchmarks.engines import detection
from leakmap import LocalRule, Task, build_network
from leakmap.auditing.prepare import NORMALIZATIONS
from leakmap.client.simulate import Batch
from leakmap.local_rule import Mode
from leakmap.models.network import Network
from leakmap.seeds import generator

MOVED = 0.1
"""How far perturbed weights are from random ones, in standard deviations of each tensor."""
RESNET20, RESNET56 = "ResNet-20", "ResNet-56"
Cases = tuple[tuple[Mode, int], ...]
EVAL: Cases = (("eval", 1), ("eval", 8))
BOTH: Cases = (*EVAL, ("train", 8))


@dataclass(frozen=True)
class Subject:
    """A network.

    Args:
        title: In tables.
        model: Its specification; ``yolo:FILE.yaml`` is a detector of ultralytics; of trained weights an option says it.
        cases: Mode and number of pictures of its clients.
        size: Height and width of the pictures.
        weights: ``random`` as drawn, ``perturbed`` with the statistics of pictures in its BatchNorm layers, ``trained``
            from a file.
    """

    title: str
    model: str
    cases: Cases = EVAL
    size: int = 32
    weights: Literal["random", "perturbed", "trained"] = "random"


SUBJECTS = (
    Subject("ConvNet", "convnet"),
    Subject("pre-act 1-1-1", PRE, BOTH),
    Subject("pre-act 1-1-1", PRE, BOTH, weights="perturbed"),
    Subject("post-act 1-1-1", POST, BOTH),
    Subject("post-act 1-1-1", POST, BOTH, weights="perturbed"),
    Subject("CIFAR ResNet-18", "resnet", BOTH),
    Subject("CIFAR ResNet-18", "resnet", BOTH, weights="perturbed"),
    Subject(RESNET20, "", BOTH, weights="trained"),
    Subject(RESNET56, "", BOTH, weights="trained"),
    Subject("ViT of leakmap", "vit,patch=4,depth=4"),
    Subject("torchvision resnet18", "torchvision/resnet18", BOTH, 64),
    Subject("torchvision resnet18", "torchvision/resnet18", BOTH, 64, "perturbed"),
    Subject("mobilenet_v3_small", "torchvision/mobilenet_v3_small", BOTH, 64),
    Subject("mobilenet_v3_small", "torchvision/mobilenet_v3_small", BOTH, 64, "perturbed"),
    Subject("efficientnet_b0", "torchvision/efficientnet_b0", BOTH, 64),
    Subject("efficientnet_b0", "torchvision/efficientnet_b0", BOTH, 64, "perturbed"),
    Subject("densenet121", "torchvision/densenet121", BOTH, 64),
    Subject("densenet121", "torchvision/densenet121", BOTH, 64, "perturbed"),
    Subject("convnext_tiny", "torchvision/convnext_tiny", EVAL, 64),
    Subject("convnext_tiny", "torchvision/convnext_tiny", EVAL, 64, "perturbed"),
    Subject("swin_t", "torchvision/swin_t", EVAL, 64),
    Subject("timm ViT-tiny", "timm/vit_tiny_patch16_224", (("eval", 1),), 224),
    Subject("YOLOv5n", "yolo:yolov5n.yaml", (("eval", 1), ("train", 4)), 128),
    Subject("YOLOv8n", "yolo:yolov8n.yaml", (("eval", 1), ("train", 4)), 128),
    Subject("YOLOv8n", "yolo:yolov8n.yaml", (("eval", 1), ("train", 4)), 128, "perturbed"),
)


@dataclass(frozen=True)
class Case:
    """A network and a kind of client."""

    subject: Subject
    mode: Mode
    batch: int

    def __str__(self) -> str:
        return f"{self.subject.title} {self.subject.weights} {self.mode} {self.batch}"

    @property
    def slug(self) -> str:
        """For file names."""
        return re.sub(r"[^a-z0-9]+", "-", str(self).lower())

    @property
    def rule(self) -> LocalRule:
        """Of the client, without dropout: its masks are no matter of engines."""
        return LocalRule(mode=self.mode, dropout=0.0)


def cases() -> Iterator[Case]:
    """All of them."""
    for subject in SUBJECTS:
        for mode, batch in subject.cases:
            yield Case(subject, mode, batch)


def lacking(subject: Subject, options: argparse.Namespace) -> str:
    """What is not here of what a network needs; empty: nothing."""
    if options.data is None:
        return "needs --data"
    if subject.title == RESNET20 and options.weights is None:
        return "needs --weights"
    if subject.title == RESNET56 and options.weights56 is None:
        return "needs --weights56"
    package = subject.model.partition("/")[0] if "/" in subject.model else "torchvision"
    package = "ultralytics" if subject.model.startswith("yolo:") else package
    if importlib.util.find_spec(package) is None:
        return f"needs the package {package}"
    return ""


def client(case: Case, draw: int, options: argparse.Namespace) -> Batch:
    """A client of a network; draws hold different pictures."""
    pictures, _ = studied(options.data)
    first = CALIBRATION + draw * case.batch
    chosen = slice(first, first + case.batch)
    return Batch(_sized(pictures.images[chosen], case.subject.size), pictures.labels[chosen])


def _sized(images: Tensor, size: int) -> Tensor:
    pictures = images / 255
    if pictures.shape[-1] == size:
        return pictures
    return F.interpolate(pictures, size=(size, size), mode="bilinear", align_corners=False).clamp(0, 1)


def build(subject: Subject, options: argparse.Namespace) -> Network:
    """A network with its weights."""
    shape = (3, subject.size, subject.size)
    if subject.model.startswith("yolo:"):
        task = Task(shape, detection.CLASSES, (0.0,) * 3, (1.0,) * 3)
        module, loss = detection.build(subject.model.removeprefix("yolo:"), SEED)
        network = build_network(task, module, loss=loss)
    else:
        task = Task(shape, 10, *NORMALIZATIONS["imagenet"])
        model, weights = subject.model, None
        if subject.weights == "trained":
            of = {RESNET20: (options.resnet20, options.weights), RESNET56: (options.resnet56, options.weights56)}
            model, weights = of[subject.title]
        network = build_network(task, model, seed=SEED, weights=weights)
    if subject.weights == "perturbed":
        pictures, _ = studied(options.data)
        x = task.normalize(_sized(pictures.images[:CALIBRATION], subject.size))
        network = calibrated(_moved(network), x)
    return network


def _moved(network: Network) -> Network:
    """With noise on every parameter."""
    trained = {name for name, p in network.module().named_parameters() if p.requires_grad}
    weights = dict(network.weights)
    for name in trained:
        tensor = weights[name]
        scale = tensor.std().nan_to_num() if tensor.numel() > 1 else torch.zeros(())
        noise = torch.randn(tensor.shape, generator=generator(SEED, "moved", name))
        weights[name] = tensor + MOVED * torch.where(scale > 0, scale, 1.0) * noise
    return replace(network, weights=weights)
