"""Classification models of torchvision."""

import importlib
from typing import Any

from torch import nn

from leakmap.errors import ModelError, UnknownName
from leakmap.models import models
from leakmap.registry import near_misses
from leakmap.task import Task


@models.add("torchvision/")
def torchvision_model(task: Task, name: str) -> nn.Module:
    """A torchvision classifier by its name there, untrained; ``--weights FILE`` loads weights. Takes RGB pictures."""
    library: Any = importlib.import_module("torchvision.models")
    known = library.list_models(module=library)
    if name not in known:
        raise UnknownName(f"torchvision has no classification model {name!r}; {near_misses(name, known)}")
    if task.shape[0] != 3:
        raise ModelError(
            f"torchvision/{name} takes 3 channels, the pictures have {task.shape[0]}: add channels=3 to --data."
        )
    extra = {"image_size": task.shape[1]} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        extra |= {"aux_logits": False, "init_weights": True}
    try:
        return library.get_model(name, weights=None, num_classes=task.classes, **extra)
    except (ValueError, AssertionError) as error:
        reason = str(error) or "the size does not fit"
        raise ModelError(f"torchvision/{name} cannot be built for inputs of shape {task.shape}: {reason}.") from error
