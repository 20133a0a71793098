"""Pictures painted by a network: an untrained one whose weights are searched, or a user's pretrained one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakmap.attacker.matching.context import SearchContext
from leakmap.attacker.matching.decoders import Free
from leakmap.errors import BadSetting, UsageError
from leakmap.problem.task import Task
from leakmap.registry.user_code import load_user_code
from leakmap.seeds import derive, generator

LATENT_PACE = 50.0
"""Step size of latent inputs over that of weights."""


class _Painter(nn.Module):
    """Noise at an eighth of the resolution -> pictures in [0, 1]: convolutions, upsampling three times."""

    def __init__(self, inputs: int, width: int, size: tuple[int, int, int]):
        super().__init__()
        channels, *self.size = size
        self.steps = nn.ModuleList(nn.Conv2d(inputs if not i else width, width, 3, padding=1) for i in range(4))
        self.norms = nn.ModuleList(nn.GroupNorm(min(8, width), width) for _ in range(4))
        self.last = nn.Conv2d(width, channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        """``(N, inputs, H / 8, W / 8)`` -> ``(N, C, H, W)``."""
        for i, (conv, norm) in enumerate(zip(self.steps, self.norms, strict=True)):
            z = F.leaky_relu(norm(conv(z)), 0.2)
            if i < 3:
                z = F.interpolate(z, size=[-(-side // 2 ** (2 - i)) for side in self.size], mode="bilinear")
        return torch.sigmoid(self.last(z))


@dataclass(frozen=True)
class Untrained:
    """The weights of an untrained convolutional network that paints all pictures from fixed noise.

    Args:
        width: Channels.
        inputs: Channels of the noise.
        jitter: Standard deviation of the noise that is added to its input in each iteration.

    Source: Ulyanov et al. 2018, "Deep Image Prior", arXiv:1711.10925; against gradients: Zhang et al. 2023, "Generative
    Gradient Inversion via Over-Parameterized Networks" (CI-Net).
    """

    width: int = 64
    inputs: int = 32
    jitter: float = 0.03

    def __call__(self, context: SearchContext, start: Tensor, before: Free | None = None) -> Free:
        """The weights; ``start`` gives only the number of pictures."""
        task = context.observation.network.task
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(context.seed, "painter"))
            painter = _Painter(self.inputs, self.width, task.shape).to(start)
        height, width = (-(-side // 8) for side in task.shape[1:])
        source = generator(context.seed, "painter input")
        z = torch.randn(len(start), self.inputs, height, width, generator=source).to(start)

        def decode() -> Tensor:
            moved = z + self.jitter * torch.randn(z.shape, generator=source).to(z) if self.jitter else z
            return task.normalize(painter(moved))

        return Free(list(painter.parameters()), decode)


@dataclass(frozen=True)
class Pretrained:
    """A user's pretrained generator: first its latent input is searched, then its weights.

    Args:
        build: The user's ``file.py:function``. The function takes the task and returns a module with an attribute
            ``latent`` (the shape of one input) that maps ``(N, *latent)`` to pictures ``(N, C, H, W)`` in [0, 1].
            What it was trained on must not overlap with the clients' pictures: overlap fakes leakage.
        free: ``latent`` or ``weights``.

    Source: Jeon et al. 2021, "Gradient Inversion with Generative Image Prior" (GIAS), arXiv:2110.14962.
    """

    build: str
    free: str = "latent"

    def __call__(self, context: SearchContext, start: Tensor, before: Free | None = None) -> Free:
        """The latent inputs, drawn from N(0, 1); or the weights, with the latent inputs of the stage before."""
        task = context.observation.network.task
        painter = load_generator(self.build, task).to(start)
        latent: Any = painter.latent
        if self.free == "latent" or before is None:
            drawn = torch.randn(len(start), *latent, generator=generator(context.seed, "latent"))
            z = drawn.to(start).requires_grad_()
            painter.requires_grad_(False)
            return Free([z], lambda: task.normalize(painter(z)), pace=LATENT_PACE)
        found = before.tensors[0].detach()
        painter.requires_grad_()
        weights = [p for p in painter.parameters() if p.requires_grad]
        return Free(weights, lambda: task.normalize(painter(found)))


def load_generator(reference: str, task: Task) -> nn.Module:
    """Runs the user's function and checks what it paints.

    Raises:
        UsageError: the file or function is absent, or does not return a generator for this task.
    """
    build: Callable[..., Any] = load_user_code(reference)
    painter = build(task)
    if not isinstance(painter, nn.Module) or not isinstance(getattr(painter, "latent", None), tuple):
        raise UsageError(
            f"{reference} returned {type(painter).__name__}; expected a torch.nn.Module with an attribute "
            "'latent', the shape of one input as a tuple."
        )
    painter.eval()
    latent: Any = painter.latent
    with torch.no_grad():
        pictures = painter(torch.zeros(1, *latent))
    if pictures.shape != (1, *task.shape):
        raise BadSetting(
            f"{reference} paints {tuple(pictures.shape)}; expected (1, {', '.join(map(str, task.shape))})."
        )
    return painter
