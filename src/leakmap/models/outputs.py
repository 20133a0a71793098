"""What a model returns: whether it fits the task, and which part of it the loss takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from leakmap.errors import ModelError
from leakmap.problem.task import Task


@dataclass(frozen=True)
class Picking:
    """A forward hook that leaves one part of what a module returns; a tensor is left as it is.

    Models return a bare tensor in one mode and several parts in the other, so both are taken.

    Args:
        output: Its name, or its position in a tuple or list.
    """

    output: str

    def __call__(self, module: nn.Module, inputs: Any, outputs: Any) -> Tensor:
        """The part.

        Raises:
            ModelError: there is no such part, or it is no tensor.
        """
        if isinstance(outputs, Tensor):
            return outputs
        found, parts = _part(outputs, self.output), parts_of(outputs)
        if not isinstance(found, Tensor):
            held = f"it holds {', '.join(parts[:8])}" if parts else "it has no parts; wrap the model in a module"
            what = "has no" if found is None else f"is a {type(found).__name__} at"
            raise ModelError(f"The model returns a {type(outputs).__name__}, which {what} {self.output!r}: {held}.")
        return found


def _part(outputs: Any, output: str) -> Any:
    if isinstance(outputs, Mapping) and output in outputs:
        return outputs[output]
    if output.isdigit() and isinstance(outputs, tuple | list):
        return outputs[int(output)] if int(output) < len(outputs) else None
    return getattr(outputs, output, None)


def parts_of(outputs: Any) -> list[str]:
    """The names, or else positions, of the tensors that a model returns."""
    if isinstance(outputs, Mapping):
        named = dict(outputs)
    elif isinstance(outputs, tuple | list):
        named = dict(zip(getattr(outputs, "_fields", map(str, range(len(outputs)))), outputs, strict=True))
    else:
        named = dict(getattr(outputs, "__dict__", {}))
    return [str(name) for name, value in named.items() if isinstance(value, Tensor)]


def _shapes(task: Task) -> tuple[tuple[int, ...], ...]:
    """What a model may give for 2 inputs."""
    if task.objects:
        return ((),)
    if task.target == "pixels":
        return ((2, task.classes, *task.shape[1:]),)
    alone = task.classes == 1 and task.target in ("binary", "regression")
    return ((2, task.classes), (2,)) if alone else ((2, task.classes),)


def fits(task: Task, outputs: Any) -> bool:
    """Whether a model gives for 2 inputs what leakmap's own loss for the task takes."""
    return isinstance(outputs, Tensor) and tuple(outputs.shape) in _shapes(task)


def told(outputs: Any) -> str:
    """The shape of a model's outputs, or what they are."""
    return str(tuple(outputs.shape)) if isinstance(outputs, Tensor) else type(outputs).__name__


def expected(task: Task, outputs: Any) -> str:
    """What a model should give, and what to do where it gives something else."""
    named = {"class": "class scores", "binary": "logits", "multilabel": "logits", "regression": "values"}
    what = "its loss, a scalar" if task.objects else f"{named.get(task.target, 'scores')} of shape {_shapes(task)[0]}"
    if not isinstance(outputs, Tensor):
        parts = parts_of(outputs)
        which = f" It holds {', '.join(parts[:8])}: say which the loss takes with --output {parts[0]}" if parts else ""
        wrap = "a loss of your own takes all of it; or wrap the model in a module that returns a tensor"
        return f"{what}.{which}, or {wrap}" if which else f"{what}. Wrap the model in a module that returns a tensor"
    if not task.objects and outputs.ndim in (1, 2) and outputs.numel() == 2 and task.target == "class":
        return f"{what}. One output for each picture is --target binary or --target regression"
    if not task.objects and outputs.ndim == 4 and task.target == "class":
        return f"{what}. Scores of each pixel are --target pixels"
    if outputs.ndim == 2 and len(outputs) == 2 and not task.objects:
        return f"{what}. A model with {outputs.shape[1]} outputs has --classes {outputs.shape[1]}"
    return what
