"""Detectors of torchvision, as modules that give their training loss."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakmap.errors import ModelError
from leakmap.problem.objects import corners, unpack
from leakmap.problem.task import Task

SAMPLING_SEED = 0
"""Seeds the anchors and proposals that Faster R-CNN draws: the same for every pass."""
_FAMILIES = ("fasterrcnn", "fcos", "retinanet", "ssd")
"""What learns from boxes alone; Mask and Keypoint R-CNN need masks and points."""


def library() -> Any:
    """The module ``torchvision.models``.

    Raises:
        ModelError: torchvision was built for another torch, as when one of them came from an index of its own.
    """
    try:
        return importlib.import_module("torchvision.models")
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"torchvision {version('torchvision')} does not work with torch {torch.__version__} ({error}). Install "
            "both anew from one index: pip install --force-reinstall torch torchvision, on a machine without a GPU "
            "with --index-url https://download.pytorch.org/whl/cpu."
        ) from error


def detectors() -> list[str]:
    """The names that :func:`detector` knows."""
    module = library()
    return [name for name in module.list_models(module=module.detection) if name.startswith(_FAMILIES)]


class _AsGiven(nn.Module):
    """Stands where the library scales and resizes pictures: these are normalized and of one size already."""

    def __init__(self, image_list: Any):
        super().__init__()
        self._image_list = image_list

    def forward(self, x: Tensor, targets: list[dict[str, Tensor]]) -> tuple[Any, list[dict[str, Tensor]]]:
        """``(N, C, H, W)`` -> the library's list of N pictures of ``(H, W)``; the targets as they are."""
        return self._image_list(x, [(x.shape[-2], x.shape[-1])] * len(x)), targets

    def postprocess(self, detections: list[Any], *_: Any) -> list[Any]:
        """Detections as they are: none, in training."""
        return detections


class TorchvisionDetector(nn.Module):
    """The sum of a torchvision detector's training losses, in either mode.

    Weights have the library's own names, without a prefix. The mode is that of the layers: it decides what BatchNorm
    normalizes with. What Faster R-CNN samples is drawn with the same seed in every pass.

    Args:
        library: An ``nn.Module`` of ``torchvision.models.detection``; it is taken over.
    """

    def __init__(self, library: nn.Module):
        super().__init__()
        library.transform = _AsGiven(importlib.import_module("torchvision.models.detection.image_list").ImageList)
        for name, child in library.named_children():
            self.add_module(name, child)
        self._library = (library.train(),)  # not a child: it stays in training, where losses are what it returns

    def train(self, mode: bool = True) -> "TorchvisionDetector":
        """Sets the mode of all layers; the two heads of Faster R-CNN themselves return losses in training only."""
        super().train(mode)
        for name, child in self.named_children():
            child.training = mode or name in ("rpn", "roi_heads")
        return self

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``(N, C, H, W)``, normalized, and ``(N, M, 5)``, see :mod:`leakmap.problem.objects` -> scalar.

        Objects without an area, which no anchor can match, do not count.
        """
        picture, classes, boxes = unpack(y)
        seen = (boxes[:, 2:] > 0).all(1)
        pixels = corners(boxes).to(x.dtype) * x.new_tensor([x.shape[3], x.shape[2]] * 2)
        targets = [
            {"boxes": pixels[own], "labels": classes[own] + 1} for own in (seen & (picture == i) for i in range(len(x)))
        ]
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(SAMPLING_SEED)
            with _plain_roi_align():
                losses = self._library[0](x, targets)
        return torch.stack([*losses.values()]).sum()


@contextmanager
def _plain_roi_align() -> Iterator[None]:
    """Regions are pooled by :func:`roi_align`: the library's fused operation has no double backward."""
    poolers: Any = importlib.import_module("torchvision.ops.poolers")
    fused, poolers.roi_align = poolers.roi_align, roi_align
    try:
        yield
    finally:
        poolers.roi_align = fused


def roi_align(
    features: Tensor,
    regions: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> Tensor:
    """Mean of bilinear samples in every cell of a grid over each box, as two products with matrices of hat functions.

    Args:
        features: ``(N, C, H, W)``.
        regions: ``(K, 5)``: number of the picture, left, top, right, bottom.
        output_size: Rows and columns of the grid.
        spatial_scale: Of boxes to features.
        sampling_ratio: Samples of a cell in each direction.
        aligned: Whether features stand at the centres of their pixels; otherwise boxes have at least one pixel a side.

    Returns:
        ``(K, C, *output_size)``; samples more than a pixel outside the features are 0.

    Source: He et al. 2017, "Mask R-CNN", arXiv:1703.06870.
    """

    def hats(low: Tensor, high: Tensor, cells: int, length: int) -> Tensor:
        extent = high - low if aligned else (high - low).clamp(min=1)
        count = cells * sampling_ratio
        at = low[:, None] + (torch.arange(count).to(low) + 0.5) * (extent / count)[:, None]
        known = (at >= -1) & (at <= length)
        distance = (at.clamp(0, length - 1)[..., None] - torch.arange(length).to(low)).abs()
        return (1 - distance).clamp(min=0) * known[..., None]

    found, places = [], []
    for number, own in enumerate(features):
        places.append((regions[:, 0] == number).nonzero()[:, 0])
        corners_of = regions[places[-1], 1:] * spatial_scale - (0.5 if aligned else 0)
        left, top, right, bottom = corners_of.unbind(1)
        rows = hats(top, bottom, output_size[0], own.shape[1])
        columns = hats(left, right, output_size[1], own.shape[2])
        samples = torch.einsum("kry,cyx,ksx->kcrs", rows, own, columns)
        found.append(F.avg_pool2d(samples, sampling_ratio))
    return torch.cat(found)[torch.cat(places).argsort()]


def detector(task: Task, name: str) -> TorchvisionDetector:
    """A torchvision detector, untrained, every layer trainable, with BatchNorm where the library has it.

    As the library counts, class 0 is the background, also where nothing is ever labelled so (RetinaNet, FCOS).
    ``ssd300_vgg16`` needs sides of at least 268 pixels.

    Args:
        task: Gives the classes.
        name: One of :func:`detectors`.
    """
    return TorchvisionDetector(
        library().get_model(name, weights=None, weights_backbone=None, num_classes=task.classes + 1)
    )
