"""Maps from standardised columns to pictures, fitted by squared error: ridge regression and a perceptron."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakmap.seeds import derive, generator

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Regularisations that are tried, in units of the mean square of a standardised column."""
HIDDEN, EPOCHS, BATCH, DROPOUT = 1024, 15, 128, 0.2
RATE, DECAY = 1e-3, 1e-2
"""Of AdamW, with a one-cycle schedule."""
WIDEST = 16_384
"""Columns beyond which the perceptron is left out: its first layer would take longer than all simulated clients."""
FARTHEST = 6.0
"""Standardised columns are clipped here: a client far from all simulated ones must not be extrapolated to."""

Told = Callable[[float], None]
Map = Callable[[Tensor], Tensor]
"""``(n, columns) -> (n, outputs)``."""


@dataclass(frozen=True)
class Scaler:
    """Standardises columns by the simulated clients.

    Args:
        center: ``(columns,)``.
        scale: ``(columns,)``, positive.
    """

    center: Tensor
    scale: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """``(n, columns)``, in deviations; a column that never varied says nothing and becomes 0."""
        return ((rows - self.center) / self.scale).clamp(-FARTHEST, FARTHEST)


def scaler_of(rows: Tensor) -> Scaler:
    """From simulated clients, ``(n, columns)``."""
    center, scale = rows.mean(0), rows.std(0)
    still = scale <= 1e-6 * center.abs().clamp(min=1e-6)
    return Scaler(center, scale.masked_fill(still, torch.inf))


@dataclass(frozen=True)
class Ridge:
    """A linear map.

    Args:
        weight: ``(columns, outputs)``.
        bias: ``(outputs,)``.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Predicts."""
        return z @ self.weight + self.bias


def ridge(z: Tensor, targets: Tensor, held: Tensor, held_targets: Tensor) -> Ridge:
    """Ridge regression, its regularisation chosen on held-out clients.

    Args:
        z: ``(n, columns)`` standardised.
        targets: ``(n, outputs)``.
        held: ``(h, columns)`` of clients that are not among the former.
        held_targets: ``(h, outputs)``.
    """
    bias = targets.mean(0)
    left = targets - bias
    count, columns = z.shape
    # Of the two ways to the same solution, the one with the smaller matrix.
    dual = count < columns
    gram = (z @ z.T if dual else z.T @ z).double()
    right = left.double() if dual else (z.T @ left).double()
    unit = columns if dual else count
    best: tuple[float, Tensor] | None = None
    for strength in RIDGES:
        shifted = gram + strength * unit * torch.eye(len(gram)).to(gram)
        solved = torch.cholesky_solve(right, torch.linalg.cholesky(shifted)).float()
        weight = z.T @ solved if dual else solved
        error = float(F.mse_loss(held @ weight + bias, held_targets))
        if best is None or error < best[0]:
            best = error, weight
    assert best is not None
    return Ridge(best[1], bias)


def perceptron(columns: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""

    def hidden(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.GELU(), nn.Dropout(DROPOUT)]

    return nn.Sequential(*hidden(columns), *hidden(HIDDEN), nn.Linear(HIDDEN, outputs))


def trained_perceptron(z: Tensor, targets: Tensor, seed: int, told: Told) -> nn.Sequential:
    """The perceptron after AdamW with a one-cycle schedule, by squared error.

    Args:
        z: ``(n, columns)`` standardised.
        targets: ``(n, outputs)``.
        seed: For weights, order and dropout; the caller's stream is not touched.
        told: Called with the finished fraction.
    """
    # Small settings still need whole batches: BatchNorm takes no single row.
    size = min(BATCH, len(z))
    rounds = len(z) // size
    unit = targets.square().mean().sqrt().clamp(min=1e-12)
    source = generator(seed, "order")
    with torch.random.fork_rng(devices=[z.device] if z.is_cuda else []):
        torch.manual_seed(derive(seed, "perceptron"))
        network = perceptron(z.shape[1], targets.shape[1]).to(z.device)
        optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=EPOCHS * rounds)
        for epoch in range(EPOCHS):
            order = torch.randperm(len(z), generator=source).to(z.device)
            for place in range(rounds):
                index = order[place * size : (place + 1) * size]
                optimiser.zero_grad()
                F.mse_loss(network(z[index]), targets[index] / unit).backward()
                optimiser.step()
                schedule.step()
            told((epoch + 1) / EPOCHS)
    with torch.no_grad():
        last = network[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(unit)
        last.bias.mul_(unit)
    return network.eval().requires_grad_(False)
