"""A network with one hidden layer."""

import math

from torch import nn

from leakmap.models import models
from leakmap.problem.task import Task


@models.add("plugin_model")
def build(task: Task) -> nn.Module:
    """One hidden layer."""
    size = math.prod(task.shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, task.classes))
