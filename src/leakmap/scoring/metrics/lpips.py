"""Learned perceptual distance (optional: ``pip install leakmap[lpips]``, and a weights file of your own)."""

import importlib
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.errors import BadSetting
from leakmap.models.weights import read_weights
from leakmap.scoring.metrics import Metric, metrics

SMALLEST = 64


def _example(folder: Path) -> str:
    """A trunk of random weights: it tells pictures apart, and no value of it means anything."""
    library: Any = importlib.import_module("torchvision.models")
    torch.save(library.squeezenet1_1().state_dict(), folder / "trunk.pth")
    return f"lpips,net=squeeze,weights={folder / 'trunk.pth'}"


@metrics.add("lpips", examples=(_example,))
def lpips(*, weights: str, net: Literal["alex", "vgg", "squeeze"] = "alex") -> Metric:
    """Minus the LPIPS distance (so that higher is better), with the trunk read from a file; nothing is downloaded.

    Pictures below 64 pixels are enlarged to 64. Values of different nets cannot be compared.

    Args:
        weights: torchvision's state dict of the trunk (``alexnet``, ``vgg16`` or ``squeezenet1_1``).
        net: The trunk.

    Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
    arXiv:1801.03924, version 0.1.
    """
    try:
        package: Any = importlib.import_module("lpips")
    except ImportError:
        raise BadSetting("lpips needs the package lpips; install it with: pip install 'leakmap[lpips]'.") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the package builds its trunk by torchvision's old arguments
        model = package.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    trunk = model.net.state_dict()
    state = {name: tensor.float() for name, tensor in read_weights(Path(weights)).items()}
    for name in trunk:
        source = "features." + name.split(".", 1)[1]
        if source not in state or state[source].shape != trunk[name].shape:
            raise BadSetting(f"{weights} has no fitting {source!r}; expected torchvision's state dict of {net}.")
        trunk[name] = state[source]
    model.net.load_state_dict(trunk)

    @torch.no_grad()
    def metric(pictures: Tensor, originals: Tensor) -> Tensor:
        def prepared(x: Tensor) -> Tensor:
            x = x.cpu().expand(-1, 3, -1, -1)
            if min(x.shape[-2:]) < SMALLEST:
                x = F.interpolate(x, size=(SMALLEST, SMALLEST), mode="bilinear", antialias=True)
            return x * 2 - 1

        return -model(prepared(pictures), prepared(originals)).flatten()

    return metric
