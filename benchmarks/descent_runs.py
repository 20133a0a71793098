"""The runs of benchmarks.descent: networks, settings, clients, and one record for each run."""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.apart import SEED
from benchmarks.calibration import calibrated
from leakmap.attacker.attack import attack
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.engine import Kind
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.priors import TotalVariation
from leakmap.attacker.matching.starts import Start
from leakmap.auditing.prepare import prepare
from leakmap.client.data import Pictures
from leakmap.client.simulate import Batch, simulate
from leakmap.client_step import arrange
from leakmap.errors import NonFinite
from leakmap.files import read_json, write_json
from leakmap.local_rule import LocalRule, Mode
from leakmap.models.network import user_code
from leakmap.plan.plan import Plan
from leakmap.registry.spec import Spec
from leakmap.runs.run import versions_of
from leakmap.runs.setup import Setup
from leakmap.scoring.lineup import ncc
from leakmap.scoring.match import matched
from leakmap.scoring.score import metric_values
from leakmap.seeds import derive
from leakmap.threat import ThreatModel, observe

CANDIDATES, SATURATED = 64, 1e-4
FIRST, CLIENTS = 2, 8
THREAT = ThreatModel("known", public=0)
WARMUP = 0.1
DESCENTS = {
    "published: signed Adam 0.1, steps": Descent(0.1, schedule="step"),
    "signed 0.1": Descent(0.1),
    "signed 0.3": Descent(0.3),
    "signed 1.0": Descent(1.0),
    "unsigned 0.3": Descent(0.3, sign="none"),
    "unsigned 1.0": Descent(1.0, sign="none"),
    "unsigned 3.0": Descent(3.0, sign="none"),
    "unsigned 10": Descent(10.0, sign="none"),
    "soft sign 0.3": Descent(0.3, sign="soft"),
    "signed 0.3, warm-up": Descent(0.3),
}


@dataclass(frozen=True)
class Net:
    """A network with its clients.

    Args:
        title: In tables.
        model: Its specification.
        cost: Milliseconds of an iteration, roughly: for the progress bar alone.
        mode: Of the clients.
        batch: Pictures of each client.
        steps: Iterations of each run.
        epochs: Of brief training.
        calibrated: Whether BatchNorm has the statistics of other pictures instead of those of a fresh network.
        weights: Whether they come from a file.
    """

    title: str
    model: str
    cost: int
    mode: Mode = "eval"
    batch: int = 1
    steps: int = 100
    epochs: int = 0
    weights: bool = False
    calibrated: bool = False

    def iterations(self, effort: float) -> int:
        """Of each run, at some effort."""
        return max(1, round(self.steps * effort))


PRE, POST = "resnet,blocks=1-1-1,width=24,preact=true", "resnet,blocks=1-1-1,width=24"
NETS = (
    Net("ConvNet", "convnet", 13),
    Net("pre-act, train, B=4", PRE, 62, "train", 4),
    Net("pre-act", PRE, 27),
    Net("post-act", POST, 28),
    Net("ResNet-18", "resnet", 260, steps=50, calibrated=True),
    Net("ViT", "vit,patch=4,depth=4", 52),
    Net("pre-act, briefly trained, train, B=4", PRE, 62, "train", 4, epochs=3),
    Net("ResNet-20, trained", "", 36, weights=True),
)


@dataclass(frozen=True)
class Setting:
    """A point of the grid.

    Args:
        descent: Key of :data:`DESCENTS`.
        tv: Weight of the total variation.
        fade: Share of it that is left at the end.
        start: Where the search begins.
    """

    descent: str
    tv: float
    fade: float = 1.0
    start: Start = "normal"

    def __str__(self) -> str:
        faded = "" if self.fade == 1 else f" fading to {self.fade * self.tv:g}"
        return f"{self.descent}, TV {self.tv:g}{faded}" + ("" if self.start == "normal" else f", from {self.start}")

    def attack(self, steps: int, engine: Kind | None) -> GradientMatching:
        """The search that it stands for."""
        descent = DESCENTS[self.descent]
        if "warm-up" in self.descent:
            descent = replace(descent, warmup=round(steps * WARMUP))
        how = GradientMatching(
            priors=(TotalVariation(self.tv),), fade=self.fade, start=self.start, descent=descent, steps=steps
        )
        return how if engine is None else replace(how, engine=engine)


PLAIN = {
    "published: signed Adam 0.1, steps": (1e-3,),
    "signed 0.1": (1e-2,),
    "signed 0.3": (1e-2, 1e-1),
    "signed 0.3, warm-up": (1e-2,),
    "soft sign 0.3": (1e-2,),
    "signed 1.0": (3e-2,),
    "unsigned 0.3": (1e-2, 1e-1),
    "unsigned 1.0": (1e-2, 1e-1, 3e-1),
    "unsigned 3.0": (1e-2, 1e-1, 3e-1, 1.0),
    "unsigned 10": (3e-1,),
}
FADING = {"signed 0.3": (1e-1, 3e-1), "unsigned 1.0": (1e-1, 3e-1, 1.0), "unsigned 3.0": (3e-1, 1.0, 3.0)}
GRID = [
    *(Setting(descent, tv) for descent, weights in PLAIN.items() for tv in weights),
    *(Setting(descent, tv, 0.03) for descent, weights in FADING.items() for tv in weights),
    Setting("unsigned 3.0", 1.0, 0.003),
    Setting("unsigned 3.0", 3.0, 0.003),
    Setting("unsigned 0.3", 1e-1, start="truncated"),
    Setting("unsigned 1.0", 3e-1, 0.03, "truncated"),
    Setting("unsigned 3.0", 1.0, 0.03, "truncated"),
    Setting("unsigned 3.0", 1.0, 0.03, "zeros"),
]
FORMER, PUBLISHED = Setting("signed 0.3", 1e-2), Setting("published: signed Adam 0.1, steps", 1e-3)


@dataclass(frozen=True)
class Target:
    """A network at hand.

    Args:
        net: What it is.
        path: File of its setup.
        model: Of its architecture, which a worker builds if it is a user's own.
        digest: Of weights and public facts.
        clients: Of each client, its pictures in the groups of the setup.
        digests: Likewise, the SHA-256 of the pictures.
        saturated: Clients that were passed over.
    """

    net: Net
    path: Path
    model: Spec
    digest: str
    clients: tuple[tuple[int, ...], ...]
    digests: tuple[tuple[str, ...], ...]
    saturated: int

    def setup(self) -> Setup:
        """Read from its file."""
        return _loaded(self.path, self.model)


def _loaded(path: Path, model: Spec) -> Setup:
    return Setup.load(path, user_code(model, Spec("cross_entropy")))


@dataclass(frozen=True)
class Run:
    """One attack on one client."""

    target: Target
    setting: Setting
    client: int
    how: GradientMatching
    path: Path = field(default=Path())

    def facts(self) -> dict[str, Any]:
        """All that decides the result."""
        net, pictures = self.target.net, self.target.digests[self.client]
        client = {"mode": net.mode, "client": self.client, "pictures": pictures, "seed": SEED}
        return {"network": self.target.digest, **client, "attack": asdict(self.how)}


def target_of(net: Net, pictures: Pictures, used: set[str], options: argparse.Namespace) -> Target:
    """Builds, trains or loads a network, and chooses its clients."""
    plan = Plan(
        options.resnet20 if net.weights else net.model,
        "untouched",
        rule=LocalRule(mode=net.mode),
        threat=THREAT,
        weights=options.weights if net.weights else None,
        normalization="imagenet" if net.weights else "data",
        train_epochs=net.epochs,
        victims=CANDIDATES // net.batch,
        batch_size=net.batch,
        seed=SEED,
    )
    digest = hashlib.sha256(json.dumps([asdict(replace(plan, weights=None)), net.calibrated], sort_keys=True).encode())
    for part in (pictures, pictures.spare):
        digest.update(b"" if part is None else part.images.numpy().tobytes())
    digest.update(Path(plan.weights).read_bytes() if plan.weights else b"")
    path = options.out / "setups" / f"{digest.hexdigest()}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        setup = prepare(plan, pictures).main
        if net.calibrated and pictures.spare is not None:
            others = setup.network.task.normalize(pictures.spare.images[:CANDIDATES] / 255)
            setup = replace(setup, network=calibrated(setup.network, others))
        setup.save(path)
    model = Spec.parse(plan.model)
    setup = _loaded(path, model)
    rows = _unsaturated(setup, plan.rule)
    if len(rows) < CLIENTS:
        raise SystemExit(f"{net.title}: only {len(rows)} of {plan.victims} clients have a loss above {SATURATED:g}.")
    rows, saturated = rows[:CLIENTS], rows[CLIENTS - 1] + 1 - CLIENTS
    members = setup.groups.victims[rows]
    digests = tuple(tuple(setup.groups.digests(row)) for row in members)
    if any(not used.isdisjoint(row) for row in digests):
        raise SystemExit(f"{net.title}: a picture of another table is among those studied.")
    return Target(net, path, model, setup.network_digest, tuple(map(tuple, members.tolist())), digests, saturated)


@torch.no_grad()
def _unsaturated(setup: Setup, rule: LocalRule) -> list[int]:
    module, groups = arrange(setup.network.module(), rule), setup.groups
    found = []
    for i, row in enumerate(groups.victims):
        outputs = module(setup.network.task.normalize(groups.pictures(row)))
        if F.cross_entropy(outputs, groups.labels[row]) >= SATURATED:
            found.append(i)
    return found


_worker: dict[str, Any] = {}
_setups: dict[Path, Setup] = {}


def start(stop: Any) -> None:
    """Sets up a worker, which stops at its next sign of life once ``stop`` is set, and with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker["stop"] = stop


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _alive(fraction: float) -> None:
    if _worker["stop"].is_set():
        raise KeyboardInterrupt


def compute(run: Run) -> None:
    """Computes a run in a worker, and writes its record."""
    target = run.target
    if target.path not in _setups:
        _setups[target.path] = target.setup()
    setup = _setups[target.path]
    index = torch.tensor(target.clients[run.client])
    truth = Batch(setup.groups.pictures(index), setup.groups.labels[index])
    round = simulate(setup.network, LocalRule(mode=target.net.mode), truth, derive(SEED, "client", run.client))
    observation = observe(round, THREAT)
    record: dict[str, Any] = {"facts": run.facts(), "net": target.net.title, "setting": str(run.setting)}
    record["versions"] = versions_of(torch.device("cpu"))
    started = time.process_time()
    try:
        found = attack(observation, run.how, derive(SEED, "attack", run.client), _alive)
    except NonFinite as error:
        record |= {"failure": str(error), "ncc": None, "psnr": None, "term": None, "curve": []}
    else:
        pictures = matched(found.pictures, truth.pictures)
        psnr = statistics.fmean(metric_values(pictures, truth.pictures, ("psnr",))["psnr"])
        alike = ncc(pictures, truth.pictures)
        record |= {"failure": None, "ncc": alike, "psnr": psnr, "term": found.objective}
        record |= {"curve": found.curve, "notes": found.notes}
    write_json(run.path, record | {"seconds": time.process_time() - started})


Records = dict[tuple[str, Setting, int], dict[str, Any]]
"""Network, setting, client -> record."""


def runs_of(targets: Iterable[Target], settings: list[Setting], clients: int, options: argparse.Namespace) -> list[Run]:
    """Every run, client by client, so that a stop at any time leaves all networks and settings equally far."""
    runs = []
    for client, setting, target in itertools.product(range(clients), settings, targets):
        how = setting.attack(target.net.iterations(options.effort), options.engine)
        run = Run(target, setting, client, how)
        key = hashlib.sha256(json.dumps(run.facts(), sort_keys=True).encode()).hexdigest()
        runs.append(replace(run, path=options.out / "runs" / f"{key}.json"))
    return runs


def read(runs: list[Run]) -> Records:
    """The records that are there."""
    found = {(run.target.net.title, run.setting, run.client): read_json(run.path) for run in runs}
    return {key: record for key, record in found.items() if record is not None}
