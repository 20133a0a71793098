"""Models of timm (optional: ``pip install leakmap[models]``)."""

import importlib
from typing import Any

from torch import nn

from leakmap.errors import ModelError, UnknownName
from leakmap.models import models
from leakmap.models.initialisation import Deviation, Factor, initialise, output_layers
from leakmap.models.torchvision_detection import library
from leakmap.problem.task import Task
from leakmap.registry.spec import near_misses


@models.add("timm/", examples=("timm/vit_tiny_patch16_224",))
def timm_model(
    task: Task,
    name: str,
    *,
    drop_path_rate: float = 0.0,
    head_std: Deviation | None = None,
    layer_scale: Factor | None = None,
) -> nn.Module:
    """A timm classifier by its name there, untrained; ``--weights FILE`` loads weights.

    Args:
        task: Gives channels, classes and, where the model takes it, the image size.
        name: Its name in timm.
        drop_path_rate: Rate of stochastic depth.
        head_std: Deviation of the last layer's fresh weights, with a bias of 0; None: as timm draws them.
        layer_scale: Fresh value of every layer scale; None: timm's.
    """
    library()  # timm imports torchvision, too
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError:
        raise ModelError(f"timm/{name} needs timm; install it with: pip install 'leakmap[models]'.") from None
    if name not in (known := timm.list_models()):
        raise UnknownName(f"timm has no model {name!r}; {near_misses(name, known)}")
    channels, height, width = task.shape
    settings: dict[str, Any] = {"in_chans": channels, "num_classes": task.classes}
    if drop_path_rate:
        settings["drop_path_rate"] = drop_path_rate
    try:
        module = timm.create_model(name, img_size=(height, width), **settings)
    except TypeError:
        module = timm.create_model(name, **settings)
    except AssertionError as error:
        raise ModelError(f"timm/{name} cannot be built for inputs of shape {task.shape}: {error}.") from error
    last = module.get_classifier()
    heads = [
        layer for part in (last if isinstance(last, tuple) else (last,)) for layer in output_layers(part, task.classes)
    ]
    return initialise(module, f"timm/{name}", heads, head_std, layer_scale)
