import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from leakmap import Batch, LocalRule, Task, ThreatModel, build_network, observe, simulate
from leakmap.attacker.matching.context import Guess, SearchContext
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine
from leakmap.errors import WorkerDied
from leakmap.observation.contents import Public
from leakmap.problem.objects import pack
from leakmap.runs.runner import HERE, Local
from leakmap.runs.trial import Trial
from leakmap.seeds import generator

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def shared() -> Path:
    """Real pictures and weights, where they are laid beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared/data with real pictures and weights is absent")
    return SHARED


@pytest.fixture
def task() -> Task:
    return Task((3, 16, 16), 4, (0.5, 0.45, 0.4), (0.25, 0.25, 0.3))


def pictures(count: int, task: Task, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures in [0, 1]."""
    coarse = torch.rand(count, task.shape[0], 4, 4, generator=generator(seed, "pictures"))
    return torch.nn.functional.interpolate(coarse, size=task.shape[1:], mode="bilinear")


def batch_of(count: int, task: Task, seed: int = 0) -> Batch:
    y = (torch.arange(count) + seed) % task.classes
    if task.objects:
        y = pack([torch.tensor([[label, 0.4, 0.5, 0.3, 0.5]]) for label in y.tolist()], task.objects)
    return Batch(pictures(count, task, seed), y)


def matching_term(context: SearchContext, x: torch.Tensor) -> float:
    """Cosine distance between the observed update and the one of normalized pictures ``x`` in the expected network."""
    return float(Engine(context, DISTANCES["cosine"]).value(Guess(x, context.y)))


def observed(model: str, task: Task, *, rule=None, threat=None, count=2, seed=0):
    """A network, its client's round and what the server sees of it."""
    network = build_network(task, model, seed=seed)
    round = simulate(network, rule or LocalRule(), batch_of(count, task, seed), seed)
    public = Public(pictures(8, task, 99), torch.arange(8) % task.classes)
    return round, observe(round, threat or ThreatModel(), public)


@dataclass(frozen=True)
class Deadly(Local):
    """Runs trials in this process, as if one of them ended the process that runs it."""

    workers: int = 0
    dies: Callable[[Trial], bool] = lambda trial: False
    tried: list[int] = field(default_factory=list)

    def __call__(self, jobs, done, report):
        for place, job in enumerate(jobs):
            if self.dies(job.trial):
                self.tried.append(len(jobs))
                raise WorkerDied(frozenset(job.key for job in jobs[place : place + 2]))
            HERE([job], done, report)
