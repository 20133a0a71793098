"""Detectors of ultralytics, where that package is installed, as a user's own module with a loss of its own.

The package is under the AGPL: it belongs to neither this project nor its environment. Architectures are built from the
descriptions that it ships; nothing is downloaded. What a detector's loss takes besides its outputs, classes and boxes,
is named by ``y``: each class stands for a layout of boxes.
"""

import importlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from leakmap.problem.task import Loss
from leakmap.seeds import generator

CLASSES, BOXES = 80, 2
GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}
"""Of the parts of the loss: the defaults of ultralytics."""


def build(description: str, seed: int) -> tuple[nn.Module, Loss]:
    """A detector with random weights, and its own detection loss.

    Args:
        description: Such as ``yolov8n.yaml``.
        seed: For the weights and the boxes.
    """
    tasks: Any = importlib.import_module("ultralytics.nn.tasks")
    losses: Any = importlib.import_module("ultralytics.utils.loss")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = tasks.DetectionModel(description, ch=3, nc=CLASSES, verbose=False)
    module.args = SimpleNamespace(**GAINS)
    criterion = losses.v8DetectionLoss(module)
    source = generator(seed, "boxes")
    middles = 0.3 + 0.4 * torch.rand(CLASSES, BOXES, 2, generator=source)
    sides = 0.3 + 0.3 * torch.rand(CLASSES, BOXES, 2, generator=source)
    layouts = torch.cat([middles, sides], dim=-1)

    def loss(outputs: Any, y: Tensor) -> Tensor:
        dtype = torch.get_default_dtype()
        targets = {
            "batch_idx": torch.arange(len(y)).repeat_interleave(BOXES).to(dtype),
            "cls": y.repeat_interleave(BOXES).to(dtype),
            "bboxes": layouts[y].flatten(0, 1).to(dtype, copy=True),
        }
        return criterion(outputs, targets)[0].sum()

    return module, loss
