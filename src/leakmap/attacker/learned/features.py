"""What a fitted attack reads of a client's answer, always into the same columns.

There are two views of it. ``statistics`` holds what BatchNorm layers saw, from the returned buffers; ``update`` holds
the shared tensors. Both are read the same way of simulated clients and of real ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from leakmap.attacker.buffers import RUNNING, mixture, unmix
from leakmap.attacker.setting import Setting
from leakmap.local_rule import LocalRule
from leakmap.seeds import generator

WIDTH = 8192
"""Columns of the update in all."""
NARROW, WIDE = 16, 512
"""Fewest and most columns of one tensor, where it has as many elements."""
SMALLEST = 1e-12
"""Variances and norms below this are rounding: their logarithm would be noise."""


@dataclass(frozen=True)
class Layer:
    """A BatchNorm layer whose running statistics travel.

    Args:
        name: In the state dict.
        momentum: Of its running statistics; None for the cumulative average.
        tracked: Passes that it had counted when it was sent.
    """

    name: str
    momentum: float | None
    tracked: float


@dataclass(frozen=True)
class Statistics:
    """Reads the mean and the log variance of every channel that a layer saw, from the buffers before and after.

    Args:
        layers: Which.
        sent: Buffers that the server sent, by name.
        forwards: Passes that the client makes.
    """

    layers: tuple[Layer, ...]
    sent: Mapping[str, Tensor]
    forwards: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of the means and of the variances of every layer."""
        channels = [self.sent[f"{layer.name}.{RUNNING[0]}"].numel() for layer in self.layers]
        return tuple(number for number in channels for _ in RUNNING)

    def __call__(self, returned: Mapping[str, Tensor]) -> Tensor:
        """``(2 x channels of all layers,)`` float32."""
        return self.columns(self.unmixed(returned)).float()

    def unmixed(self, returned: Mapping[str, Tensor]) -> Tensor:
        """``(columns,)`` float64 mean and variance of every channel, the weighted mean over the passes."""
        return torch.cat(
            [
                unmix(
                    self.sent[f"{layer.name}.{which}"],
                    returned[f"{layer.name}.{which}"],
                    layer.momentum,
                    self.forwards,
                    layer.tracked,
                )
                for layer in self.layers
                for which in RUNNING
            ]
        )

    def columns(self, unmixed: Tensor) -> Tensor:
        """``(..., columns)`` of means and variances -> of means and log variances."""
        return torch.where(self._variances, unmixed.clamp(min=SMALLEST).log(), unmixed)

    def mixture(self) -> Tensor:
        """``(forwards, columns)`` float64 weight of every pass in what is unmixed."""
        each = [mixture(layer.momentum, self.forwards) for layer in self.layers for _ in RUNNING]
        rows = [own[:, None].expand(-1, width) for own, width in zip(each, self.widths, strict=True)]
        return torch.cat(rows, 1).to(self._variances.device)

    @cached_property
    def _variances(self) -> Tensor:
        some = next(iter(self.sent.values()))
        every = [torch.full((width,), place % 2 == 1) for place, width in enumerate(self.widths)]
        return torch.cat(every).to(some.device)


@dataclass(frozen=True)
class Sketch:
    """Reads of every shared tensor its direction, as a count sketch, and its log norm.

    A count sketch adds every element, with a random sign, to a random one of its columns: inner products of directions
    survive in expectation, at the price of one pass over the tensor and no matrix.

    Args:
        columns: ``(elements,)`` column of every element of all tensors together.
        signs: ``(elements,)`` of -1 and 1.
        folded: Columns of the sketch of every tensor.

    Source: Charikar, Chen and Farach-Colton 2002, "Finding frequent items in data streams".
    """

    columns: Tensor
    signs: Tensor
    folded: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of every tensor, and of all norms."""
        return (*self.folded, len(self.folded))

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """``(columns of all sketches + tensors,)`` float32."""
        flat = [tensor.detach().flatten().float() for tensor in tensors.values()]
        norms = torch.stack([tensor.norm() for tensor in flat])
        directions = torch.cat([tensor / norm.clamp(min=SMALLEST) for tensor, norm in zip(flat, norms, strict=True)])
        sketch = directions.new_zeros(sum(self.folded)).index_add_(0, self.columns, directions * self.signs)
        return torch.cat([sketch, norms.clamp(min=SMALLEST).log()])


def statistics_of(setting: Setting, rule: LocalRule, count: int) -> Statistics | None:
    """The reader of returned buffers; None where no statistics move, or where they are not granted.

    Args:
        setting: What the server knows.
        rule: The clients' local rule.
        count: Examples of each client.
    """
    if "buffers" not in setting.granted or rule.mode != "train":
        return None
    sent = setting.network.weights
    layers = tuple(
        Layer(name, layer.momentum, float(sent.get(f"{name}.num_batches_tracked", torch.tensor(0))))
        for name, layer in setting.network.module().named_modules()
        # A layer without momentum keeps its statistics: no batch has any weight in them.
        if isinstance(layer, _BatchNorm) and layer.momentum != 0 and f"{name}.{RUNNING[0]}" in sent
    )
    return Statistics(layers, sent, rule.forwards(count)) if layers else None


def sketch_of(setting: Setting) -> Sketch:
    """The reader of updates; columns and signs are the same for all settings with tensors of these sizes."""
    sizes = [setting.network.weights[name].numel() for name in setting.network.trained()]
    each = min(WIDE, max(NARROW, WIDTH // len(sizes)))
    source = generator(0, "sketch")
    columns: list[Tensor] = []
    folded = tuple(min(size, each) for size in sizes)
    first = 0
    for size, width in zip(sizes, folded, strict=True):
        # A tensor that fits keeps its elements apart; only a longer one is folded.
        own = torch.arange(size) if size == width else torch.randint(width, (size,), generator=source)
        columns.append(first + own)
        first += width
    signs = torch.randint(2, (sum(sizes),), generator=source, dtype=torch.int8) * 2 - 1
    device = setting.device
    return Sketch(torch.cat(columns).to(device), signs.to(device), folded)
