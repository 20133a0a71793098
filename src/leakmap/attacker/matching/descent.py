"""How a search moves: optimiser, schedule, sign, noise."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["step", "cosine", "constant"]
Sign = Literal["hard", "soft", "unit", "none"]


@dataclass(frozen=True)
class Descent:
    """An optimiser with its schedule.

    Args:
        lr: Step size, in normalized space.
        optimizer: ``adam``, or ``lbfgs`` (history 100, 20 inner iterations, strong Wolfe line search).
        schedule: ``step`` multiplies by 0.1 at 3/8, 5/8 and 7/8; ``cosine`` decays to 0; ``constant``.
        warmup: Iterations of linear warm-up.
        sign: What Adam is fed: ``hard`` the sign of the gradient; ``soft`` ``tanh(a g) / a`` with ``a`` falling from 1
            to 0; ``unit`` the gradient of each picture at a root mean square of 1; ``none`` the gradient itself. On a
            trained deep network single gradients are a hundred times the median: Adam's second moment remembers one
            for a thousand iterations and stands still meanwhile. Of equal size, none of them can stop it.
        noise: Langevin noise: its standard deviation in steps of the current size.
    """

    lr: float = 0.3
    optimizer: Literal["adam", "lbfgs"] = "adam"
    schedule: Schedule = "cosine"
    warmup: int = 0
    sign: Sign = "hard"
    noise: float = 0.0

    def start(self, tensors: Iterable[Tensor]) -> torch.optim.Optimizer:
        """A fresh optimiser of these tensors."""
        if self.optimizer == "lbfgs":
            return torch.optim.LBFGS(list(tensors), lr=self.lr, history_size=100, line_search_fn="strong_wolfe")
        return torch.optim.Adam(tensors, lr=self.lr)

    def size(self, step: int, steps: int) -> float:
        """Step size of an iteration."""
        factor = 1.0
        if self.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * step / steps))
        elif self.schedule == "step":
            factor = 0.1 ** sum(step >= steps * eighth / 8 for eighth in (3, 5, 7))
        if step < self.warmup:
            factor *= (step + 1) / self.warmup
        return self.lr * factor

    def shape(self, gradient: Tensor, step: int, steps: int, source: torch.Generator) -> Tensor:
        """What the optimiser is fed in place of the gradient."""
        if self.noise:
            drawn = torch.randn(gradient.shape, generator=source).to(gradient)
            gradient = gradient + self.noise * self.size(step, steps) * drawn
        if self.sign == "hard":
            return gradient.sign()
        if self.sign == "unit":
            sizes = gradient.flatten(1).square().mean(1).sqrt() if gradient.ndim > 1 else gradient.abs()
            return gradient / sizes.clamp(min=1e-30).view(-1, *[1] * (gradient.ndim - 1))
        if self.sign == "soft":
            slope = max(1 - step / steps, 1e-6)
            return torch.tanh(slope * gradient) / slope
        return gradient
