"""Clients whose cost is measured, and who evaluates the matching term and its gradient at a guess."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from leakmap import LocalRule, Task, ThreatModel, build_network, observe, simulate
from leakmap.attacker.matching.context import Guess, SearchContext
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine, Kind
from leakmap.auditing.prepare import NORMALIZATIONS
from leakmap.client.simulate import Batch
from leakmap.client_step import arrange
from leakmap.local_rule import Mode
from leakmap.models.adapt import freeze_running_statistics
from leakmap.models.network import Network
from leakmap.observation.observation import Observation
from leakmap.seeds import generator

SIGMA = 0.5


@dataclass(frozen=True)
class Work:
    """A client.

    Args:
        title: In tables.
        model: Its specification, with random initial weights.
        batch: Pictures of the client.
        mode: Of the client.
        steps: Local steps, each with all pictures; 0: it shares a gradient.
    """

    title: str
    model: str
    batch: int = 1
    mode: Mode = "eval"
    steps: int = 0

    def facts(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @property
    def rule(self) -> LocalRule:
        """Of the client."""
        return LocalRule("delta", self.mode, epochs=self.steps, lr=0.05) if self.steps else LocalRule(mode=self.mode)


SMALL = Work("small", "resnet,blocks=1,width=8", 2, steps=2)


@dataclass(frozen=True)
class Client:
    """A client at hand.

    Args:
        work: What it is.
        observation: All that its attackers hold.
        y: Its labels.
        guesses: Normalized pictures at which the matching term is evaluated.
    """

    work: Work
    observation: Observation
    y: Tensor
    guesses: tuple[Tensor, ...]

    @property
    def network(self) -> Network:
        """What the server sent."""
        return self.observation.network

    @property
    def target(self) -> list[Tensor]:
        """What it shared."""
        return list(self.observation.update.tensors.values())


def client(work: Work, guesses: int = 1) -> Client:
    """A client with pictures of noise; the first guess is the truth and half a standard deviation of noise."""
    task = Task((3, 32, 32), 10, *NORMALIZATIONS["cifar10"])
    pictures = torch.rand(work.batch, *task.shape, generator=generator(0, "pictures"))
    y = torch.arange(work.batch) % task.classes
    round = simulate(build_network(task, work.model), work.rule, Batch(pictures, y))
    x = task.normalize(pictures)
    noises = [torch.randn(x.shape, generator=generator(0, "guess", number)) for number in range(guesses)]
    observation = observe(round, ThreatModel("known", buffers=False))
    return Client(work, observation, y, (x + SIGMA * noises[0], *noises[1:]))


Evaluate = Callable[[], list[Tensor]]
"""The gradient of the matching term at every guess."""


def engine(client: Client, kind: Kind) -> Evaluate:
    """An engine of leakmap, guess after guess."""
    chosen = Engine(SearchContext(client.observation, client.work.rule, client.y, 0), DISTANCES["cosine"], kind=kind)
    return lambda: [chosen.value_and_grad(Guess(x, client.y)).gradient[0] for x in client.guesses]


def unrolled(client: Client, dtype: torch.dtype = torch.float32) -> Evaluate:
    """By hand: one graph through all local steps, then one double backward."""
    network, rule = client.network, client.work.rule
    module = freeze_running_statistics(arrange(network.module(), rule)).to(dtype)
    loss, target = network.loss(), [tensor.to(dtype) for tensor in client.target]
    start = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}

    def gradient(guess: Tensor) -> Tensor:
        x = guess.to(dtype).requires_grad_()
        parameters = list(start.values())
        shared = parameters
        for _ in range(max(1, client.work.steps)):
            value = loss(functional_call(module, dict(zip(start, parameters, strict=True)), (x,)), client.y)
            shared = list(torch.autograd.grad(value, parameters, create_graph=True))
            parameters = [p - rule.lr * g for p, g in zip(parameters, shared, strict=True)]
        if client.work.steps:
            shared = [end - begin for end, begin in zip(parameters, start.values(), strict=True)]
        return torch.autograd.grad(distance(shared, target), x)[0]

    return lambda: [gradient(x) for x in client.guesses]


def distance(shared: list[Tensor], target: list[Tensor]) -> Tensor:
    """Cosine distance, by hand."""
    dot = torch.stack([(g * t).sum() for g, t in zip(shared, target, strict=True)]).sum()
    square = torch.stack([g.square().sum() for g in shared]).sum()
    target_square = torch.stack([t.square().sum() for t in target]).sum()
    return 1 - dot / (square * target_square).sqrt()


EXACT, FROZEN, UNROLLED = "exact", "frozen", "unrolled"
ARMS: dict[str, Callable[[Client], Evaluate]] = {
    EXACT: partial(engine, kind="exact"),
    FROZEN: partial(engine, kind="frozen"),
    UNROLLED: unrolled,
}
