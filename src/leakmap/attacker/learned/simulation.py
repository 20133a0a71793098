"""Clients that the server simulates with public pictures, before any real one answers.

They take the client step itself, defence included, so whatever the rule says is simulated and nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from leakmap.attacker.learned.features import Sketch, Statistics
from leakmap.attacker.protocol import Kept
from leakmap.attacker.setting import Setting
from leakmap.client_step import arrange, local_signal
from leakmap.errors import NotGranted
from leakmap.local_rule import LocalRule
from leakmap.seeds import derive, generator

CHUNK = 500
"""Simulated clients that are kept together: what an interruption can cost."""
SHIFT = 1 / 16
"""Farthest shift of a simulated picture, of its side: other crops of a picture are as good as other pictures."""
CLOSEST = 0.7
"""Side of the closest crop of a picture that is larger than what is predicted of it."""
SPREAD = 3000
"""Varied pictures that principal components are taken of."""

Told = Callable[[int], None]
"""Called with the number of clients simulated so far."""


@dataclass(frozen=True)
class Basis:
    """Principal components of public pictures, at the size that a decoder predicts.

    Squared errors in components are those of pixels, but for what lies outside all of them.

    Args:
        mean: ``(P,)`` mean picture, ``P = C h w``, in [0, 1].
        components: ``(Q, P)`` orthonormal rows.
        size: ``(C, h, w)``.
    """

    mean: Tensor
    components: Tensor
    size: tuple[int, int, int]

    def coefficients(self, pictures: Tensor) -> Tensor:
        """``(N, C, H, W)`` in [0, 1] -> ``(N, Q)``."""
        return (resized(pictures, self.size).flatten(1) - self.mean) @ self.components.T

    def pictures(self, coefficients: Tensor) -> Tensor:
        """``(N, Q)`` -> ``(N, C, h, w)``, not clamped."""
        return (coefficients @ self.components + self.mean).unflatten(1, self.size)


@dataclass(frozen=True)
class Clients:
    """What is read of simulated clients, and what they held.

    Args:
        views: ``(M, columns)`` float32 of each view, by name.
        y: ``(M, B)`` classes in ascending order.
        targets: ``(M, B, Q)`` coefficients of their pictures, in that order.
        pictures: ``(M, B, C, h, w)`` in [0, 1], whole, of clients on whom maps are measured; else empty.
    """

    views: Mapping[str, Tensor]
    y: Tensor
    targets: Tensor
    pictures: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Simulation:
    """How clients are simulated.

    Args:
        setting: What the server knows; the rule and the count are granted.
        rule: The clients' local rule.
        count: Examples of each.
        statistics: Reads their buffers; None reads none.
        sketch: Reads their updates; None reads none.
        basis: Of their pictures.
        last: Reads a client of whom the last step alone is simulated, of its pictures ``(B, C, H, W)`` in [0, 1] and a
            seed, into the columns of the statistics; None: clients take the whole rule.
        classes: Whether pictures are named in the order of their classes; else in that of brightness alone.
    """

    setting: Setting
    rule: LocalRule
    count: int
    statistics: Statistics | None
    sketch: Sketch | None
    basis: Basis
    last: Callable[[Tensor, int], Tensor] | None = None
    classes: bool = True

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Columns of each view, by what they are read of: a statistic of a layer, or a tensor."""
        readers = {"statistics": self.statistics, "update": self.sketch}
        return {view: reader.widths for view, reader in readers.items() if reader}

    def read(self, update: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """``(columns,)`` of each view of a client's answer.

        Raises:
            NotGranted: the buffers are read, and are not granted.
        """
        views: dict[str, Tensor] = {}
        if self.statistics is not None:
            if buffers is None:
                raise NotGranted("This inverse was fitted to returned buffers, which this client's answer lacks.")
            views["statistics"] = self.statistics(buffers)
        if self.sketch is not None:
            views["update"] = self.sketch(update)
        return views

    def run(
        self, pictures: Tensor, labels: Tensor, clients: int, seed: int, kept: Kept, told: Told, *, whole: bool = False
    ) -> Clients:
        """Simulates clients, which draw their pictures with replacement, mirrored and shifted at random.

        Args:
            pictures: ``(P, C, H, W)`` in [0, 1].
            labels: ``(P,)``.
            clients: How many.
            seed: For what they hold, their masks, orders and noise.
            kept: Keeps every :data:`CHUNK` of them.
            told: Called with the number that is finished.
            whole: Whether their pictures are kept besides the coefficients.
        """
        parts: list[dict[str, Tensor]] = []
        for first in range(0, clients, CHUNK):
            own = range(first, min(first + CHUNK, clients))
            parts.append(
                kept(f"clients-{seed}-{first}", partial(self._chunk, pictures, labels, own, seed, told, whole))
            )
            told(own.stop)
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        y, targets, shown = joined.pop("y"), joined.pop("targets"), joined.pop("pictures", torch.zeros(0))
        return Clients(joined, y, targets, shown)

    def _chunk(
        self, pictures: Tensor, labels: Tensor, own: range, seed: int, told: Told, whole: bool
    ) -> dict[str, Tensor]:
        module = arrange(self.setting.network.module(), self.rule)
        rows: dict[str, list[Tensor]] = {"y": [], "targets": []}
        for client in own:
            source = generator(seed, "client", client)
            drawn = torch.randint(len(labels), (self.count,), generator=source)
            held = torch.stack([varied(pictures[i], self.basis.size, source) for i in drawn.tolist()])
            order = in_order(labels[drawn] * self.classes, held)
            held, y = held[order], labels[drawn][order]
            # A real loader takes the pictures in any order, not by class.
            mixed = torch.randperm(self.count, generator=source)
            for view, columns in self._views(module, held[mixed], y[mixed], derive(seed, "step", client)).items():
                rows.setdefault(view, []).append(columns)
            rows["y"].append(y)
            rows["targets"].append(self.basis.coefficients(held))
            if whole:
                rows.setdefault("pictures", []).append(resized(held, self.basis.size))
            told(client)
        return {name: torch.stack(row) for name, row in rows.items()}

    def _views(self, module: nn.Module, pictures: Tensor, y: Tensor, seed: int) -> dict[str, Tensor]:
        if self.last is not None:
            return {"statistics": self.last(pictures, seed)}
        network = self.setting.network
        signal = local_signal(
            module,
            network.weights,
            network.task.normalize(pictures),
            y,
            self.rule,
            network.loss(),
            dropout_seed=derive(seed, "dropout"),
            order_seed=derive(seed, "order"),
            noise_seed=derive(seed, "noise"),
            tensors=self.sketch is not None,
        )
        return self.read(signal.tensors, signal.buffers)

    def work(self) -> int:
        """Floating-point operations of simulating one client, counted in one: convolutions and matrix products."""
        network = self.setting.network
        module = arrange(network.module(), self.rule)
        # Noise, as constant pictures leave BatchNorm nothing to normalize by.
        shape = (self.count, *network.task.shape)
        pictures = torch.rand(shape, generator=generator(0, "work")).to(network.device)
        with FlopCounterMode(display=False) as counter:
            self._views(module, pictures, torch.zeros(self.count, dtype=torch.int64, device=network.device), 0)
        return counter.get_total_flops()


def in_order(y: Tensor, pictures: Tensor) -> Tensor:
    """The order in which a decoder names the pictures of a batch: by class, and among equals by brightness.

    The order inside a batch cannot be seen. Among equal classes a canonical one is as good as the best permutation, and
    makes the squared error invariant to permutations.
    """
    brightness = pictures.flatten(1).mean(1)
    return torch.argsort(y.double() + brightness.double() / 2)


def resized(pictures: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Pictures ``(N, C, H, W)`` at another size; smaller ones are averages, larger ones smooth."""
    if pictures.shape[1:] == size:
        return pictures
    return F.interpolate(pictures, size[1:], mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def basis_of(pictures: Tensor, size: tuple[int, int, int], components: int, seed: int) -> Basis:
    """Principal components of pictures, varied as those of simulated clients are, by a randomised decomposition.

    Args:
        pictures: ``(P, C, H, W)`` in [0, 1].
        size: That of the components.
        components: The most that are kept.
        seed: For the variation.

    Source: Halko, Martinsson and Tropp 2011, "Finding structure with randomness", arXiv:0909.4061.
    """
    source = generator(seed, "basis")
    # A map answers within this basis: few pictures without their variations would span too little of others.
    drawn = torch.arange(SPREAD) % len(pictures)
    rows = torch.cat([resized(varied(pictures[i], size, source)[None], size).flatten(1) for i in drawn.tolist()])
    mean = rows.mean(0)
    _, strength, directions = torch.svd_lowrank(rows - mean, min(components, *rows.shape), niter=2)
    # What is left of the last ones is rounding: centred pictures have one direction less than there are of them.
    real = strength > 1e-4 * strength.max()
    return Basis(mean, directions[:, real].T.contiguous(), size)


def varied(picture: Tensor, size: tuple[int, int, int], source: torch.Generator) -> Tensor:
    """A picture ``(C, H, W)``, mirrored or not, and cropped at random if it is larger than ``size``, else shifted."""
    height, width = picture.shape[1:]
    if torch.rand(1, generator=source) < 0.5:
        picture = picture.flip(-1)
    if (height, width) != size[1:]:
        share = float(CLOSEST + (1 - CLOSEST) * torch.rand(1, generator=source))
        tall, wide = round(share * height), round(share * width)
        top, left = (int(torch.randint(room + 1, (1,), generator=source)) for room in (height - tall, width - wide))
        return resized(picture[None, :, top : top + tall, left : left + wide], (len(picture), height, width))[0]
    far = max(1, round(SHIFT * width))
    down, right = torch.randint(2 * far + 1, (2,), generator=source).tolist()
    # The border repeats.
    padded = F.pad(picture[None], (far, far, far, far), mode="replicate")[0]
    return padded[:, down : down + height, right : right + width]
