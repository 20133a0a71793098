"""Maps from standardised columns to pictures, fitted by squared error: ridge regression, a perceptron and a
convolutional decoder."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakmap.seeds import derive, generator

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Regularisations that are tried, in units of the mean square of a standardised column."""
HIDDEN, EPOCHS, BATCH, DROPOUT = 1024, 15, 128, 0.2
CHANNELS = (64, 32, 16)
"""Of the convolutional decoder, at an eighth, a quarter and half of the pictures' size."""
DECAY = 1e-2
"""Of AdamW, with a one-cycle schedule."""
WIDEST = 16_384
"""Columns beyond which only ridge regression is fitted: other first layers would take longer than all clients."""
ALIGNED = 1000
"""Simulated clients that suffice to say how much a group of columns counts."""
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
        weight: ``(columns,)``, positive: how much each counts.
    """

    center: Tensor
    scale: Tensor
    weight: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """``(n, columns)``, in weighted deviations; a column that never varied says nothing and becomes 0."""
        return ((rows - self.center) / self.scale).clamp(-FARTHEST, FARTHEST) * self.weight


def scaler_of(rows: Tensor, widths: Sequence[int], targets: Tensor) -> Scaler:
    """From simulated clients.

    Columns that belong together count by how well they alone would predict, the centred alignment of their inner
    products with those of the targets, and however many they are: else the thousands of channels of deep layers drown
    the few of early ones, which say most of the picture.

    Args:
        rows: ``(n, columns)``.
        widths: Columns that belong together, group by group. Those after all groups count as the average one does.
        targets: ``(n, outputs)``.

    Source: Cortes, Mohri and Rostamizadeh 2012, "Algorithms for Learning Kernels Based on Centered Alignment".
    """
    center, scale = rows.mean(0), rows.std(0)
    still = scale <= 1e-6 * center.abs().clamp(min=1e-6)
    plain = Scaler(center, scale.masked_fill(still, torch.inf), torch.ones_like(center))
    some = slice(0, ALIGNED)
    wanted = targets[some] - targets[some].mean(0)
    z = plain(rows[some])
    shares = [_alignment(z[:, part], wanted) for part in _parts(widths)]
    # A group's inner products grow with its columns: the weight of one column makes up for that.
    unit = sum(widths) / max(1e-12, sum(shares))
    weight = torch.ones_like(center)
    for part, share in zip(_parts(widths), shares, strict=True):
        weight[part] = math.sqrt(unit * share / max(1, part.stop - part.start))
    return replace(plain, weight=weight)


def _parts(widths: Sequence[int]) -> list[slice]:
    ends = list(accumulate(widths))
    return [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]


def _alignment(z: Tensor, targets: Tensor) -> float:
    """In [0, 1], of ``(n, columns)`` and centred ``(n, outputs)``."""
    z = z - z.mean(0)
    norm = _gram_norm(z) * _gram_norm(targets)
    return float((z.T @ targets).square().sum() / norm) if norm > 0 else 0.0


def _gram_norm(rows: Tensor) -> float:
    """Frobenius norm of all inner products of rows, by the smaller of the two matrices that have it."""
    return float((rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows).norm())


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


def ridge(z: Tensor, targets: Tensor, held: Tensor, worth: Callable[[Tensor], float]) -> Ridge:
    """Ridge regression, its regularisation chosen on held-out clients.

    Args:
        z: ``(n, columns)`` standardised.
        targets: ``(n, outputs)``.
        held: ``(h, columns)`` of clients that are not among the former.
        worth: Of what is predicted of them, ``(h, outputs)``; more is better.
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
        found = worth(held @ weight + bias)
        if best is None or found > best[0]:
            best = found, weight
    assert best is not None
    return Ridge(best[1], bias)


def perceptron(columns: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""

    def hidden(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.GELU(), nn.Dropout(DROPOUT)]

    return nn.Sequential(*hidden(columns), *hidden(HIDDEN), nn.Linear(HIDDEN, outputs), Unit())


class Convolutional(nn.Module):
    """A decoder that draws pictures from coarse to fine.

    Args:
        columns: Of its inputs.
        count: Pictures.
        size: ``(C, h, w)`` of each.
        components: ``(Q, C h w)`` orthonormal rows, in which it answers like the other maps.
    """

    components: Tensor

    def __init__(self, columns: int, count: int, size: tuple[int, int, int], components: Tensor) -> None:
        super().__init__()
        channels, self.height, self.width = size
        self.coarse = (CHANNELS[0], math.ceil(self.height / 8), math.ceil(self.width / 8))
        self.register_buffer("components", components, persistent=False)
        self.dense = nn.Sequential(
            nn.Linear(columns, HIDDEN // 2),
            nn.BatchNorm1d(HIDDEN // 2),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN // 2, math.prod(self.coarse)),
        )
        before, after = (CHANNELS[0], *CHANNELS), (*CHANNELS, count * channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(i), nn.GELU(), nn.Conv2d(i, o, 3, padding=1))
            for i, o in zip(before, after, strict=True)
        )
        self.count, self.unit = count, Unit()

    def forward(self, z: Tensor) -> Tensor:
        """``(n, columns) -> (n, count x Q)``."""
        drawn = self.dense(z).unflatten(1, self.coarse)
        for place, block in enumerate(self.blocks):
            if place:
                drawn = F.interpolate(drawn, scale_factor=2.0, mode="bilinear", align_corners=False)
            drawn = block(drawn)
        pictures = drawn[:, :, : self.height, : self.width].unflatten(1, (self.count, -1)).flatten(2)
        return self.unit((pictures @ self.components.T).flatten(1))


class Unit(nn.Module):
    """What maps answer in: networks learn targets of about 1, whatever the pictures' contrast is."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x * self.value


def trained(make: Callable[[], nn.Module], rate: float, z: Tensor, targets: Tensor, seed: int, told: Told) -> nn.Module:
    """A map after AdamW with a one-cycle schedule, by squared error.

    Args:
        make: Makes it; it holds one :class:`Unit`, its last step.
        rate: The highest learning rate.
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
        torch.manual_seed(derive(seed, "weights"))
        network = make().to(z.device)
        optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=EPOCHS * rounds)
        for epoch in range(EPOCHS):
            order = torch.randperm(len(z), generator=source).to(z.device)
            for place in range(rounds):
                index = order[place * size : (place + 1) * size]
                optimiser.zero_grad()
                F.mse_loss(network(z[index]), targets[index] / unit).backward()
                optimiser.step()
                schedule.step()
            told((epoch + 1) / EPOCHS)
    for part in network.modules():
        if isinstance(part, Unit):
            part.value.copy_(unit)
    return network.eval().requires_grad_(False)
