"""Models of torchvision: classifiers, and detectors for pictures with objects."""

from typing import Any

from torch import nn

from leakmap.errors import ModelError, UnknownName
from leakmap.models import models
from leakmap.models.initialisation import Deviation, Factor, initialise, output_layers
from leakmap.models.torchvision_detection import detector, detectors, library
from leakmap.problem.task import Task
from leakmap.registry.spec import near_misses


@models.add("torchvision/", examples=("torchvision/resnet18",))
def torchvision_model(
    task: Task, name: str, *, head_std: Deviation | None = None, layer_scale: Factor | None = None
) -> nn.Module:
    """A torchvision model by its name there, untrained; ``--weights FILE`` loads weights. Takes RGB pictures.

    Pictures with objects take a detector (Faster R-CNN, FCOS, RetinaNet, SSD), others a classifier.

    Args:
        task: Gives classes, whether pictures have objects and, where the model takes it (ViT, MaxViT), the image size.
        name: Its name in torchvision.
        head_std: Deviation of the last layer's fresh weights, with a bias of 0; None: as torchvision draws them, which
            for ViT is 0.
        layer_scale: Fresh value of every layer scale; None: torchvision's, 1e-6.
    """
    offered = library()
    known = detectors() if task.objects else offered.list_models(module=offered)
    if name not in known:
        kind = "detector (the pictures have objects)" if task.objects else "classifier (the pictures have no objects)"
        raise UnknownName(f"torchvision has no {kind} {name!r}; {near_misses(name, known)}")
    if task.shape[0] != 3:
        raise ModelError(
            f"torchvision/{name} takes 3 channels, the pictures have {task.shape[0]}: add channels=3 to --data."
        )
    if task.objects:
        return initialise(detector(task, name), f"torchvision/{name}", [], head_std, layer_scale)
    extra: dict[str, Any] = {"image_size": task.shape[1]} if name.startswith("vit_") else {}
    if name.startswith("maxvit"):
        extra = {"input_size": task.shape[1:]}
    if name in ("googlenet", "inception_v3"):
        extra |= {"aux_logits": False, "init_weights": True}
    try:
        module = offered.get_model(name, weights=None, num_classes=task.classes, **extra)
    except (ValueError, AssertionError) as error:
        reason = str(error) or "the size does not fit"
        raise ModelError(f"torchvision/{name} cannot be built for inputs of shape {task.shape}: {reason}.") from error
    heads = output_layers(module, task.classes)[-1:]
    return initialise(module, f"torchvision/{name}", heads, head_std, layer_scale)
