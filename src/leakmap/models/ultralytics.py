"""Detectors of ultralytics, an optional extra under a licence of its own, AGPL-3.0: ``pip install leakmap[yolo]``.

Nothing of it is part of leakmap: this module imports it when such a model is built, and calls it.
"""

import importlib
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._tensor_str import printoptions

from leakmap.errors import ModelError, UnknownName
from leakmap.models import models
from leakmap.models.detection_loss import grid, read_objects, static
from leakmap.problem.objects import unpack
from leakmap.problem.task import Task
from leakmap.registry.spec import near_misses

Assigner = Literal["task_aligned", "static"]

_QUIET = {"YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false", "YOLO_AUTOINSTALL": "false"}


@contextmanager
def _contained() -> Iterator[None]:
    """Undoes what importing ultralytics does: to the environment, the home folder, printing, warnings, torch.save.

    Tensors of its classes are made on the CPU, also where it is first imported to build an outline without memory.
    """
    environment, save, threads = dict(os.environ), torch.save, torch.get_num_threads()
    folder = tempfile.TemporaryDirectory()
    with folder, warnings.catch_warnings(), np.printoptions(), printoptions(), torch.device("cpu"):
        os.environ.update(_QUIET, YOLO_CONFIG_DIR=folder.name)
        try:
            yield
        finally:
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)
            torch.save = save
            torch.set_num_threads(threads)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class UltralyticsDetector(nn.Module):
    """The training loss of an ultralytics detector, in either mode.

    It is the library's: its box, class and distribution losses, each divided by the sum of the batch's target scores
    and times its gain, are added up and multiplied by the number of pictures. Weights have the library's own names
    (``model.0.conv.weight``); its frozen ones stay frozen. The mode is that of the layers: it decides what BatchNorm
    normalizes with.

    Args:
        library: An ``ultralytics.nn.tasks.DetectionModel`` with its ``args``; it is taken over.
        assigner: Which points answer for which object: as the library decides, or :func:`.detection_loss.static`.
    """

    def __init__(self, library: Any, assigner: Assigner):
        super().__init__()
        self.model: nn.Sequential = library.model
        self.assigner: Assigner = assigner
        self._library = (library,)  # not a child, which would prefix every name

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "UltralyticsDetector":
        self._library[0]._apply(fn)  # its head keeps tensors beside its weights
        return self

    def train(self, mode: bool = True) -> "UltralyticsDetector":
        """Sets the mode of all layers; the head itself returns what the loss takes in training only."""
        super().train(mode)
        self.model[-1].training = True
        return self

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``(N, C, H, W)``, normalized, and ``(N, M, 5)``, see :mod:`leakmap.problem.objects` -> scalar."""
        library = self._library[0]
        with _default_dtype(x.dtype):  # that of the tensors which the loss makes
            picture, classes, boxes = unpack(y)
            batch = {"batch_idx": picture.to(x.dtype), "cls": classes.to(x.dtype)[:, None], "bboxes": boxes}
            criterion = library.init_criterion()
            if self.assigner == "static":
                assigned = self._static(x, y)
                for part in [getattr(criterion, name, criterion) for name in ("one2many", "one2one")]:
                    part.assigner = lambda *_: assigned
            losses, _ = criterion(library(x), batch)
        return losses.sum()

    def _static(self, x: Tensor, y: Tensor) -> tuple[None, Tensor, Tensor, Tensor, None]:
        """What an assigner returns, without the labels and the numbers of the objects, which the loss does not read."""
        size, head = x.shape[2:], self._library[0].model[-1]
        points = grid(size, [int(stride) for stride in head.stride], x)
        target = static(x, x, points, read_objects(y, head.nc, size, x))
        return None, target.boxes, target.scores, target.scores.any(-1), None


@models.add("ultralytics/", examples=("ultralytics/yolov8n",), objects=True)
def ultralytics_model(task: Task, name: str, *, assigner: Assigner = "task_aligned") -> nn.Module:
    """A detector by its name in ultralytics (``yolov8n``, ``yolo11n``), untrained; ``--weights FILE`` loads weights.

    Takes pictures with objects, of any number of channels, whose sides are multiples of the largest stride.

    Args:
        task: Gives channels and classes.
        name: Its name in ultralytics; where it comes in several scales, with the letter of one.
        assigner: Which points answer for which object. ``task_aligned`` (the library's) follows the predictions and
            flips while an attack searches; ``static`` looks at the boxes only, a diagnosis.
    """
    try:
        with _contained():
            library: Any = importlib.import_module("ultralytics.nn.tasks")
            settings: Any = importlib.import_module("ultralytics.cfg")
            utils: Any = importlib.import_module("ultralytics.utils")
    except ImportError as error:
        raise ModelError(
            f"ultralytics/{name} needs ultralytics ({error}); install it with: pip install 'leakmap[yolo]'."
        ) from None
    known = _configurations(utils.ROOT / "cfg" / "models", utils.YAML.load)
    if name not in known:
        raise UnknownName(f"ultralytics has no detector {name!r}; {near_misses(name, known)}")
    if not task.objects:
        raise ModelError(f"ultralytics/{name} is a detector, but the pictures have no objects: choose a classifier.")
    channels, height, width = task.shape
    module = library.DetectionModel(known[name] | {"nc": task.classes}, ch=channels, nc=task.classes, verbose=False)
    module.args = settings.get_cfg()
    stride = int(module.stride.max())
    if height % stride or width % stride:
        raise ModelError(
            f"ultralytics/{name} takes pictures whose height and width are multiples of {stride}; "
            f"got {height} x {width}: choose another size."
        )
    return UltralyticsDetector(module, assigner)


def _configurations(folder: Path, load: Callable[[Path], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The architecture of every detector by its name: ``yolov8`` in its scale ``n`` is ``yolov8n``."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("yolo*.yaml")):
        architecture = load(path)
        if architecture["head"][-1][2] not in ("Detect", "v10Detect"):
            continue
        scales = [*(architecture.get("scales") or {})]
        parts = re.fullmatch(r"(yolov?\d+)(-.*)?", path.stem)
        if parts and scales:
            found |= {f"{parts[1]}{scale}{parts[2] or ''}": architecture | {"scale": scale} for scale in scales}
        else:
            found[path.stem] = architecture | {"scale": scales[0] if scales else ""}
    return found
