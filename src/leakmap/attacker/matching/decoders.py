"""What a search moves, and how that becomes pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from leakmap.attacker.matching.context import SearchContext
from leakmap.seeds import generator


@dataclass(frozen=True)
class Free:
    """The free variables of a stage of a search.

    Args:
        tensors: Leaves that require a gradient; an optimiser changes them in place.
        decode: The pictures that they stand for now, ``(N, C, H, W)`` or ``(epochs, N, C, H, W)``, normalized.
        project: Called after each iteration: puts the variables back where they belong.
        pace: Factor of the step size in this stage.
    """

    tensors: Sequence[Tensor]
    decode: Callable[[], Tensor]
    project: Callable[[], None] = lambda: None
    pace: float = 1.0


class Decoder(Protocol):
    """Sets up one stage of a search. One that needs facts of the Observation names them in an attribute ``needs``."""

    def __call__(self, context: SearchContext, start: Tensor, before: Free | None = None) -> Free:
        """The free variables of the stage.

        Args:
            context: What stays the same.
            start: ``(N, C, H, W)`` normalized: noise in the first stage, then the best pictures so far.
            before: The stage before, as it ended.
        """
        ...


@dataclass(frozen=True)
class Pixels:
    """The pixels themselves.

    Args:
        scale: Fraction of the resolution that is free; below 1 a coarse picture is scaled up bilinearly.
        box: Whether pixels are clamped to the task's range.
    """

    scale: float = 1.0
    box: bool = True

    def __call__(self, context: SearchContext, start: Tensor, before: Free | None = None) -> Free:
        """One free value for each pixel of the coarse picture."""
        task = context.observation.network.task
        size = [max(1, round(side * self.scale)) for side in task.shape[1:]]
        full = size == list(task.shape[1:])
        x = start if full else F.interpolate(start, size=size, mode="bilinear", align_corners=False)
        low, high = task.bounds(x)
        # Clamped before the leaf is made: the clamp must not be part of what is differentiated.
        x = (x.clamp(low, high) if self.box else x).detach().clone().requires_grad_()

        def decode() -> Tensor:
            return x if full else F.interpolate(x, size=task.shape[1:], mode="bilinear", align_corners=False)

        def project() -> None:
            if self.box:
                with torch.no_grad():
                    x.clamp_(low, high)

        return Free([x], decode, project)


@dataclass(frozen=True, eq=False)
class Still:
    """Pictures that stay as they are, while masks are searched.

    Args:
        x: ``(N, C, H, W)``, normalized.
    """

    x: Tensor

    def __call__(self, context: SearchContext, start: Tensor, before: Free | None = None) -> Free:
        """No free variable."""
        return Free([], lambda: self.x)


@dataclass(frozen=True)
class PixelsOfEpochs:
    """Other pixels for each local epoch, as the order of the examples changes from epoch to epoch.

    Source: Dimitrov et al. 2022, "Data Leakage in Federated Averaging", arXiv:2206.12395.
    """

    def __call__(self, context: SearchContext, start: Tensor, before: Free | None = None) -> Free:
        """``(epochs, N, C, H, W)`` free values, the first epoch beginning at ``start``; one epoch is plain pixels."""
        epochs = context.rule.epochs
        if epochs == 1:
            return Pixels()(context, start)
        noise = torch.randn(epochs - 1, *start.shape, generator=generator(context.seed, "epochs")).to(start)
        low, high = context.observation.network.task.bounds(start)
        x = torch.cat([start[None], noise]).clamp(low, high).requires_grad_()

        def project() -> None:
            with torch.no_grad():
                x.clamp_(low, high)

        return Free([x], lambda: x, project)


def merge_epochs(x: Tensor, y: Tensor) -> Tensor:
    """One picture of each example: every epoch's pictures are matched to the first epoch's, and averaged.

    Args:
        x: ``(epochs, N, C, H, W)``.
        y: ``(N, ...)`` labels: only pictures that are labelled alike are matched.

    Source: Dimitrov et al. 2022, arXiv:2206.12395; the assignment minimises the squared distance.
    """
    first, rows = x[0].flatten(1), y.reshape(len(y), -1)
    merged = [x[0]]
    for epoch in x[1:]:
        cost = torch.cdist(first, epoch.flatten(1)).square()
        # More than any squared distance in the box, so a picture is never matched to one of another class.
        cost = cost + 1e9 * (rows[:, None] != rows[None]).any(-1).to(cost)
        _, columns = linear_sum_assignment(cost.cpu().numpy())
        merged.append(epoch[torch.as_tensor(columns, device=x.device)])
    return torch.stack(merged).mean(0)


def median_filter(x: Tensor) -> Tensor:
    """3x3 median with reflected borders, ``(..., C, H, W)``."""
    flat = x.flatten(0, -3)[:, None]
    padded = F.pad(flat, (1, 1, 1, 1), mode="reflect")
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2)
    return windows.median(-1).values.view(x.shape)
