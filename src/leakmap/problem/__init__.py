"""What a network is asked: the task, and the objects of pictures."""

from typing import Literal

Target = Literal["class", "binary", "multilabel", "regression", "pixels"]
"""What a picture is labelled with, see :mod:`leakmap.problem.targets`."""
