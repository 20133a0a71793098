"""Architectures by name, and the network that every participant knows.

Parametric families (``resnet``, ``convnet``, ``mlp``, ``vit``) take the paper's knobs; ``torchvision/NAME`` and
``timm/NAME`` adapt the libraries; ``path/to/file.py:function`` is a user's own. A constructor receives the
:class:`leakmap.problem.task.Task` and returns an ``nn.Module`` that maps ``(N, C, H, W)`` to class scores
``(N, classes)``.
"""

from typing import TYPE_CHECKING

from leakmap.registry.registry import Registry

if TYPE_CHECKING:
    from torch import nn

models: "Registry[nn.Module]" = Registry("model", __name__)
