"""What could be told of a network's leakage before it is attacked: each is one number, measured on public pictures.

Whether a number tells anything is not decided here: ``python -m benchmarks.predictors`` compares all of them with what
attacks reached on the networks of the reference map.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.attacker.learned.decoders import ridge, scaler_of
from leakmap.attacker.learned.features import sketch_of, statistics_of
from leakmap.attacker.learned.inverse import contrast_of
from leakmap.attacker.learned.simulation import Simulation, basis_of
from leakmap.attacker.protocol import nothing_kept
from leakmap.attacker.setting import Setting
from leakmap.client_step import Training, arrange
from leakmap.errors import BadSetting
from leakmap.inspection.traits import Traits
from leakmap.local_rule import LocalRule
from leakmap.models.network import Network
from leakmap.observation.contents import Public
from leakmap.seeds import derive, generator

PICTURES = 3
"""Public pictures that derivatives are taken at; of their values the mean of the logarithms counts."""
PROBES, LANCZOS = 8, 16
"""Random directions of a trace, and steps of the Lanczos iteration."""
CLIENTS, HELD = 800, 400
"""Simulated clients that a ridge is fitted to, and that it is judged by."""
COMPONENTS = 256
FEWEST = 40
"""Public pictures without which nothing is fitted."""
SIDE = 32
"""Pixels at which larger pictures are predicted."""
SMALLEST = 1e-30


@dataclass(frozen=True)
class Known:
    """What a predictor may look at.

    Args:
        network: Architecture and weights.
        traits: Of the architecture.
        rule: Of a client with one picture that shares a gradient.
        public: Pictures that no client holds.
        seed: For what is drawn.
        buffers: Whether clients return them.
    """

    network: Network
    traits: Traits
    rule: LocalRule
    public: Public
    seed: int = 0
    buffers: bool = False

    @cached_property
    def jacobians(self) -> "list[Jacobian]":
        """Of the update of a client that holds one of the first public pictures."""
        return [Jacobian(self, place) for place in range(min(PICTURES, len(self.public.labels)))]

    @cached_property
    def ridge(self) -> dict[str, float]:
        """See :func:`rehearsed`."""
        return rehearsed(self)


class Jacobian:
    """The derivative J of a client's gradient g by its picture, divided by the norm of g.

    With it ``2 J^T J`` is the Hessian of the squared relative distance of gradients at the true picture, exactly: the
    residual is 0 there.

    Args:
        known: The client.
        place: Of its picture.
    """

    def __init__(self, known: Known, place: int):
        network, own = known.network, slice(place, place + 1)
        training = Training(arrange(network.module(), known.rule), network.weights, known.rule, network.loss())
        self.x = network.task.normalize(known.public.pictures[own]).detach().requires_grad_()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(known.seed, "masks", place))
            value = training.objective(training.start, self.x, known.public.labels[own])
        gradients = torch.autograd.grad(value, training.start, create_graph=True, materialize_grads=True)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.g = flat / flat.detach().norm().clamp(min=SMALLEST)
        self._seed = derive(known.seed, "probes", place)

    def down(self, u: Tensor) -> Tensor:
        """``J^T u``, of the shape of the picture."""
        return torch.autograd.grad(self.g, self.x, u, retain_graph=True, materialize_grads=True)[0].detach()

    def up(self, v: Tensor) -> Tensor:
        """``J v``, by the derivative of ``J^T u`` in u."""
        u = torch.zeros_like(self.g, requires_grad=True)
        down = torch.autograd.grad(self.g, self.x, u, create_graph=True, materialize_grads=True)[0]
        if not down.requires_grad:  # the update does not depend on the picture
            return torch.zeros_like(self.g)
        return torch.autograd.grad(down, u, v, materialize_grads=True)[0].detach()

    def normal(self, v: Tensor) -> Tensor:
        """``J^T J v``."""
        return self.down(self.up(v))

    @cached_property
    def traces(self) -> tuple[float, float]:
        """Of A and of A squared, A being ``J^T J``, by random directions.

        Source: Hutchinson 1990.
        """
        first, second = [], []
        source = generator(self._seed, "trace")
        for _ in range(PROBES):
            v = (torch.randint(2, self.x.shape, generator=source) * 2 - 1).to(self.x)
            image = self.normal(v)
            first.append(float((v * image).sum()))
            second.append(float(image.square().sum()))
        return sum(first) / PROBES, sum(second) / PROBES

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The largest and the smallest Ritz value of A, by Lanczos with full orthogonalisation."""
        v = torch.randn(self.x.shape, generator=generator(self._seed, "lanczos")).to(self.x)
        rows = [v / v.norm()]
        diagonal, beside = [], []
        for _ in range(min(LANCZOS, v.numel())):
            image = self.normal(rows[-1])
            diagonal.append(float((image * rows[-1]).sum()))
            for row in (*rows, *rows):  # twice is enough
                image = image - (image * row).sum() * row
            beside.append(float(image.norm()))
            if beside[-1] <= 1e-6 * abs(diagonal[0]):
                break
            rows.append(image / beside[-1])
        size = len(diagonal)
        matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        for place, value in enumerate(beside[: size - 1]):
            matrix[place, place + 1] = matrix[place + 1, place] = value
        values = torch.linalg.eigvalsh(matrix)
        return float(values[-1]), max(0.0, float(values[0]))


def rehearsed(known: Known) -> dict[str, float]:
    """What a ridge reads of held-out public clients: an achievable leak, from simulated clients alone.

    Returns:
        ``explained``: share of the variance of their pictures; ``rank``: mean relative rank of the true picture among
        those of all held-out clients by NCC, 0 for first, .5 by chance.

    Raises:
        BadSetting: there are too few public pictures.
    """
    network, public = known.network, known.public
    if (have := len(public.labels)) < FEWEST:
        raise BadSetting(f"A ridge is fitted to {FEWEST} public pictures or more; got {have}.")
    granted = frozenset({"count", "rule", "public"} | ({"buffers"} if known.buffers else set[str]()))
    setting = Setting(network, known.rule.share, 1, known.rule, granted, public)
    channels, height, width = network.task.shape
    ratio = min(1.0, SIDE / max(height, width))
    order = torch.randperm(have, generator=generator(known.seed, "apart"))
    held, own = order[: have // 4], order[have // 4 :]
    basis = basis_of(public.pictures[own], (channels, round(ratio * height), round(ratio * width)), COMPONENTS, 0)
    statistics = statistics_of(setting, known.rule, 1)
    simulation = Simulation(setting, known.rule, 1, statistics, None if statistics else sketch_of(setting), basis)
    fitted, tried = (
        simulation.run(
            public.pictures[part],
            public.labels[part],
            number,
            derive(known.seed, role),
            nothing_kept,
            lambda done: None,
            whole=role == "held",
        )
        for part, number, role in ((own, CLIENTS, "fitted"), (held, HELD, "held"))
    )
    (view, rows), targets = next(iter(fitted.views.items())), fitted.targets.flatten(1)
    scaler = scaler_of(rows, simulation.widths[view], targets)
    z = scaler(tried.views[view])
    # Half of the held-out clients choose the regularisation, the other half are read.
    half = HELD // 2
    worth = lambda found: contrast_of(basis, found, tried.pictures[:half])  # noqa: E731
    read = ridge(scaler(rows), targets, z[:half], worth)(z[half:])
    truth = tried.pictures[half:].flatten(1)
    found = basis.pictures(read).flatten(1)
    left, whole = (found - truth).square().sum(), (truth - basis.mean).square().sum()
    one, other = (F.normalize(each - each.mean(1, keepdim=True), dim=1) for each in (found, truth))
    scores = one @ other.T
    ahead = (scores > scores.diagonal()[:, None]).float().sum(1) / (len(scores) - 1)
    return {"explained": float(1 - left / whole), "rank": float(ahead.mean())}


def _logs(values: Iterator[float]) -> float:
    """Mean of logarithms to base 10; of 0 that of a number far below what is measured."""
    logs = [math.log10(max(value, SMALLEST)) for value in values]
    return sum(logs) / len(logs)


def by_rules(known: Known) -> float:
    """How many traits are expected to help an attack: rule 6.9, without any measurement."""
    traits = known.traits
    running = any(norm.running for norm in traits.norms)
    width = traits.stages[0].high if traits.stages else 1
    told = (
        traits.placement == "pre",
        bool(traits.skips),
        known.rule.mode == "eval" or not running,
        traits.stem.stride * traits.stem.pool_stride == 1,
        traits.stem.kind == "linear" or bool(traits.closed_forms),
        known.buffers and running,
    )
    return sum(told) + 0.25 * (math.log2(max(1, width)) - math.log2(traits.depth))


@dataclass(frozen=True)
class Predictor:
    """One number of a network and its clients.

    Args:
        words: What it is.
        source: Where it comes from.
        measure: Takes it.
    """

    words: str
    source: str
    measure: Callable[[Known], float]


PREDICTORS: Mapping[str, Predictor] = {
    "learned_rank": Predictor(
        "mean relative rank of held-out public clients by a ridge from their updates",
        "this project, after arXiv:2210.10880",
        lambda known: known.ridge["rank"],
    ),
    "learned_variance": Predictor(
        "share of the variance of their pictures that the ridge explains",
        "this project, after arXiv:2210.10880",
        lambda known: known.ridge["explained"],
    ),
    "sensitivity": Predictor(
        "norm of the update's derivative over the norm of the update, log10",
        "this project",
        lambda known: _logs(math.sqrt(max(0.0, one.traces[0])) for one in known.jacobians),
    ),
    "largest": Predictor(
        "largest eigenvalue of the matching loss's Hessian at the truth, log10",
        "arXiv:2312.12488",
        lambda known: _logs(2 * one.ends[0] for one in known.jacobians),
    ),
    "smallest": Predictor(
        "smallest Ritz value of that Hessian, log10",
        "arXiv:2312.12488",
        lambda known: _logs(2 * one.ends[1] for one in known.jacobians),
    ),
    "stable_rank": Predictor(
        "stable rank of the derivative, log10",
        "Rudelson and Vershynin 2007",
        lambda known: _logs(one.traces[0] / max(one.ends[0], SMALLEST) for one in known.jacobians),
    ),
    "participation": Predictor(
        "participation rank of the derivative, log10",
        "this project",
        lambda known: _logs(one.traces[0] ** 2 / max(one.traces[1], SMALLEST) for one in known.jacobians),
    ),
    "parameters": Predictor(
        "number of trained parameters, log10",
        "the null predictor",
        lambda known: _logs(iter([float(known.traits.parameters - known.traits.frozen)])),
    ),
    "rules": Predictor("traits that are expected to help an attack", "arXiv:2508.19819, as read here", by_rules),
}
NULL = ("parameters", "rules")
"""What every other one must beat: they measure nothing."""
