"""Layers that overwrite their input or have no double backward, replaced by equal ones."""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class Hardsigmoid(nn.Module):
    """``relu6(x + 3) / 6``: the same values as ``nn.Hardsigmoid``, which has no double backward."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, element by element."""
        return F.relu6(x + 3) / 6


def replace_layers(module: nn.Module) -> nn.Module:
    """Makes in-place activations out-of-place and writes hard sigmoids (of torch and of timm) out; returns the module.

    The module is changed, its outputs are not. Other operations without a double backward stay: an attack
    differentiates them by differences.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in ("Hardsigmoid", "HardSigmoid"):
                setattr(parent, name, Hardsigmoid())
        if getattr(parent, "inplace", False) is True:
            parent.__dict__["inplace"] = False
    return module


def freeze_running_statistics(module: nn.Module) -> nn.Module:
    """Stops BatchNorm layers from moving their running statistics, in place; inference mode still uses them."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.track_running_stats = False
    return module
