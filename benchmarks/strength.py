"""Is the search the strongest? The suite and its searches beside breaching and LeakPro on the same update.

    python -m benchmarks.strength --data DIR [--leakpro DIR] [--only CASE ...] [--out FOLDER] [--page]

DIR holds ``cifar10/cifar10_subset.npz`` and ``weights``. Every contestant gets the same network, update, granted labels
and local rule, and the same seconds of one core for each client; the iterations that fit are timed first, and every
schedule runs over these. Contestants take turns, client by client. The suite is fitted and rehearses on public pictures
before; what that takes is told and serves every client. Peers keep their published settings: breaching 0.1.2 in an
environment of its own, LeakPro where ``--leakpro`` names a checkout. Of a peer the pictures of the last iteration
count, as LeakPro's own choice looks at the truth. Of a client with several local steps, breaching's prior on features
and LeakPro's shuffling are left out, as their own simulations of these steps know neither. Cases that begin with
``tried`` measure settings on pictures that no table holds.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.atlas_cells import FILES
from benchmarks.calibration import CALIBRATION, calibrated
from benchmarks.cases import run_cases
from benchmarks.clients import RESNETS
from benchmarks.markdown import versions
from benchmarks.peers.contestants import BREACHING_IG, BREACHING_MODERN, LEAKPRO_IG, LEAKPRO_RUNNING
from benchmarks.peers.environments import Place, Unavailable, Worker, for_breaching, for_leakpro
from benchmarks.peers.works import Case
from benchmarks.strength_page import CHOICES, COPY, PUBLIC, SUITE, TRIED, page
from leakmap import LocalRule, Task, ThreatModel, attack, build_network, observe, simulate
from leakmap.attacker.attack import fit
from leakmap.attacker.attacks.strongest import strongest
from leakmap.attacker.matching.context import SearchContext
from leakmap.attacker.matching.residual import update_residual
from leakmap.attacker.reconstruction import Reconstruction
from leakmap.attacker.suite import PLAIN, PORTFOLIO
from leakmap.auditing.prepare import NORMALIZATIONS
from leakmap.client.data import load_pictures
from leakmap.client.simulate import Batch
from leakmap.client.training import train as train_network
from leakmap.errors import LeakmapError
from leakmap.models.network import Network
from leakmap.observation.contents import Public
from leakmap.plan.plan import Progress
from leakmap.scoring.lineup import cross_correlation, rank
from leakmap.scoring.match import matched
from leakmap.scoring.metrics import metrics
from leakmap.seeds import generator
from leakmap.threat import known_before

PAGE = Path("docs/results/strength.md")
MEMBERS = (PLAIN, *PORTFOLIO, "learned_inverse")
SEED = 0
OTHERS = 99
"""Pictures of a line-up besides the true one, all of its class."""
WARM, TIMED = 3, 20
ENTRY = dict[str, Any]


@dataclass(frozen=True)
class Bout:
    """What is attacked.

    Args:
        title: In tables.
        model: Its specification.
        rule: Of the client.
        batch: Pictures of a client.
        seconds: Of a core, for each client.
        clients: How many.
        weights: File under ``weights``; empty: random ones, in inference mode with measured statistics.
        epochs: For which the network is trained on the training pictures that are public elsewhere.
        simulated: Clients that the suite's inverse is fitted to.
        tried: Settings that were tried in this case, of as many iterations as they say.
    """

    title: str
    model: str
    rule: LocalRule
    batch: int
    seconds: float
    clients: int = 8
    weights: str = ""
    epochs: int = 0
    simulated: int = 2000
    tried: tuple[str, ...] = ()


STILL, TRAINING = LocalRule(mode="eval"), LocalRule()
CONSTANT = "inverting_gradients,tv=0.2,fade=1,steps=300"
TRIED_ON_RESNET20 = (
    "inverting_gradients,steps=300",
    f"{CONSTANT},lr=0.1",
    f"{CONSTANT},lr=0.1,sign=hard",
    f"{CONSTANT},lr=0.1,sign=unit",
    f"{CONSTANT},lr=0.2,sign=hard,basis=whitened",
    f"{CONSTANT},lr=0.2,sign=unit,basis=whitened",
    f"{CONSTANT},lr=0.4,sign=unit,basis=whitened",
)
PREACT = "resnet,blocks=1-1-1,width=24,preact=true"
BOUTS = {
    "convnet": Bout("ConvNet(64), inference mode, B=1", "convnet,width=64", STILL, 1, 8),
    "resnet20": Bout(
        "trained ResNet-20, inference mode, B=1",
        f"{RESNETS}:resnet20",
        STILL,
        1,
        10,
        weights=FILES[f"{RESNETS}:resnet20"],
        tried=TRIED_ON_RESNET20,
    ),
    "resnet20-4": Bout(
        "trained ResNet-20, inference mode, B=4",
        f"{RESNETS}:resnet20",
        STILL,
        4,
        20,
        weights=FILES[f"{RESNETS}:resnet20"],
    ),
    "pre-4": Bout("pre-activation ResNet 1-1-1, training mode, B=4", PREACT, TRAINING, 4, 10),
    "vit": Bout("ViT, patch 4, inference mode, B=1", "vit,patch=4", STILL, 1, 8),
    "resnet18": Bout("ResNet-18, random weights, inference mode, B=1", "resnet", STILL, 1, 15, simulated=1000),
    "resnet56": Bout(
        "trained ResNet-56, inference mode, B=1",
        f"{RESNETS}:resnet56",
        STILL,
        1,
        15,
        weights=FILES[f"{RESNETS}:resnet56"],
        simulated=1000,
    ),
    "pre-brief": Bout(
        "pre-activation ResNet 1-1-1 trained for five epochs, training mode, B=1", PREACT, TRAINING, 1, 10, epochs=5
    ),
    "convnet-8": Bout("ConvNet(64), inference mode, B=8", "convnet,width=64", STILL, 8, 20, simulated=1000),
    "convnext": Bout(
        "ConvNeXt-like: patches, LayerNorm, GELU, inference mode, B=1",
        "resnet,blocks=1-1-1,width=24,stem=patch,norm=layer,activation=gelu",
        STILL,
        1,
        8,
    ),
    "fedavg": Bout(
        "ConvNet(64), inference mode, 4 local steps of 1 picture",
        "convnet,width=64",
        LocalRule("delta", mode="eval", batch_size=1),
        4,
        20,
        simulated=1000,
    ),
}
CASES = (*BOUTS, *(f"{TRIED}{name}" for name, bout in BOUTS.items() if bout.tried))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--leakpro", type=Path, metavar="DIR", help="A checkout of LeakPro.")
    parser.add_argument("--members", nargs="*", default=MEMBERS, metavar="MEMBER", help="That run alone too.")
    parser.add_argument("--clients", type=int, help="In place of each case's own number.")
    parser.add_argument("--times", type=float, default=1.0, help="Factor of the seconds of each case.")
    parser.add_argument("--environments", type=Path, default=Path("runs/bench/environments"))
    run_cases(parser, CASES, PAGE, measured, partial(page, (__doc__ or "").split("\n\n", 2)[2]))


@dataclass(frozen=True)
class Field:
    """Pictures by role.

    Args:
        network: That clients train.
        rule: Of the clients.
        clients: ``(V, B)`` indices into the test pictures.
        pictures: ``(V, B, C, H, W)`` in [0, 1].
        y: ``(V, B)``.
        public: The attacker's.
        others: Candidates of line-ups.
    """

    network: Network
    rule: LocalRule
    clients: Tensor
    pictures: Tensor
    y: Tensor
    public: Public
    others: Public

    def case(self, client: int) -> Case:
        """A client that has answered."""
        round = simulate(self.network, self.rule, Batch(self.pictures[client], self.y[client]))
        seen = observe(round, ThreatModel("known", public=len(self.public.pictures)), self.public)
        return Case(seen, self.network.task.normalize(self.pictures[client]), self.pictures[client])


def field_of(bout: Bout, data: Path, *, choosing: bool) -> Field:
    """The pictures of a case: those of its table, or others on which settings are chosen."""
    test = load_pictures(f"npz:{data / 'cifar10/cifar10_subset.npz'}", 32)
    train = test.spare
    if train is None:
        raise SystemExit("The pack lacks its training pictures, which are the public ones.")
    task = Task((3, 32, 32), 10, *NORMALIZATIONS["imagenet" if bout.weights else "cifar10"])
    network = build_network(task, bout.model, weights=data / "weights" / bout.weights if bout.weights else None)
    if bout.epochs:
        network = train_network(network, train.images[:PUBLIC], train.labels[:PUBLIC], bout.epochs, SEED)
    elif bout.rule.mode == "eval" and not bout.weights:
        network = calibrated(network, task.normalize(train.images[-CALIBRATION:] / 255))
    pool = torch.arange(CHOICES) if choosing else torch.arange(CHOICES, len(test))
    order = pool[torch.randperm(len(pool), generator=generator(SEED, "clients", bout.batch))]
    clients = order[: bout.clients * bout.batch].view(bout.clients, bout.batch)
    pictures = test.images[clients] / 255
    known = train.images[: len(train) - CALIBRATION] / 255
    # A network answers to what it was trained on as to nothing else: rehearsed there, other searches win.
    trained = bout.weights or bout.epochs
    source, most = (test, CHOICES) if trained and not choosing else (train, PUBLIC)
    public = _apart(source.images[:most] / 255, source.labels[:most], pictures)
    others = _apart(known[PUBLIC:], train.labels[PUBLIC : len(known)], pictures)
    return Field(network, bout.rule, clients, pictures, test.labels[clients], public, others)


def _apart(pictures: Tensor, labels: Tensor, victims: Tensor) -> Public:
    """Those that are no copy of a victim."""
    apart = cross_correlation(pictures, victims.flatten(0, 1)).max(1).values < COPY
    return Public(pictures[apart], labels[apart])


def measured(name: str, options: argparse.Namespace, told: Progress) -> ENTRY:
    """What every contestant reached on every client."""
    choosing = name.startswith(TRIED)
    bout = BOUTS[name.removeprefix(TRIED)]
    bout = replace(bout, seconds=options.times * bout.seconds, clients=options.clients or bout.clients)
    field = field_of(bout, options.data, choosing=choosing)
    with ExitStack() as stack:
        if choosing:
            runs, said = tried(bout, field), {}
        else:
            runs, said = ours(bout, field, options.members, lambda fraction: told(f"{name}: rehearsing", fraction / 2))
            found, missing = peers(bout, field, options, stack)
            runs, said = runs | found, {**said, "missing": missing}
        reached, answered = {who: [] for who in runs}, list[str]()
        for client in range(bout.clients):
            case = field.case(client)
            turns = list(runs)
            for place, who in enumerate(turns[client % len(turns) :] + turns[: client % len(turns)]):
                told(f"{name}: {who}", 0.5 + (client + place / len(turns)) / bout.clients / 2)
                try:
                    pictures, seconds, won = runs[who](case, client)
                except (LeakmapError, Unavailable) as error:
                    said.setdefault("failures", {})[f"{who}, client {client}"] = str(error)
                    pictures, seconds, won = torch.full_like(case.pictures, 0.5), math.nan, ""
                if who == SUITE:
                    answered.append(won)
                reached[who].append(scored(field, case, client, pictures, seconds))
    return {
        "title": bout.title,
        "seconds": bout.seconds,
        "options": _options(name, options),
        "batch": bout.batch,
        "test pictures": field.clients.tolist(),
        "public": len(field.public.pictures),
        "reached": reached,
        "won": answered,
        "versions": versions(),
        **said,
    }


def _options(name: str, options: argparse.Namespace) -> str:
    """What was typed for a case beside the defaults."""
    words = [f"--only {name}"]
    words += [f"--clients {options.clients}"] if options.clients else []
    words += [f"--times {options.times:g}"] if options.times != 1 else []
    if list(options.members) != list(MEMBERS):
        words.append(" ".join(["--members", *options.members]))
    return " ".join(words)


Run = Callable[[Case, int], tuple[Tensor, float, str]]
"""Of a case and its client's number: pictures in [0, 1], seconds of a core, and the member that answered."""


def scored(field: Field, case: Case, client: int, pictures: Tensor, seconds: float) -> ENTRY:
    """What is told of a result: NCC and PSNR to the truth, ranks among candidates of the class, and the term."""
    own = matched(pictures, case.pictures)
    ranks = []
    for picture, label in zip(case.pictures, field.y[client], strict=True):
        others = field.others.pictures[field.others.labels == label][:OTHERS]
        ranks.append(rank(pictures, picture, others))
    observation = case.observation
    context = SearchContext(observation, field.rule, case.y, SEED)
    # In training mode, and of several steps, an update depends on the order of the pictures.
    order = own if field.rule.mode == "eval" and field.rule.steps(len(own)) == 1 else pictures
    return {
        "ncc": float(cross_correlation(own, case.pictures).diagonal().mean()),
        "psnr": float(metrics.build("psnr")(own, case.pictures).mean()),
        "ranks": ranks,
        "term": update_residual(context, observation.network.task.normalize(order)),
        "seconds": seconds,
    }


def ours(bout: Bout, field: Field, alone: Sequence[str], told: Callable[[float], None]) -> tuple[dict[str, Run], ENTRY]:
    """The suite, fitted, and its searches in the iterations that it found to fit; what rehearsing took and gave."""
    suite = strongest(budget=bout.seconds, **{"learned_inverse.clients": bout.simulated})
    threat = ThreatModel("known", public=len(field.public.pictures))
    setting = known_before(field.network, field.rule, bout.batch, threat, field.public)
    began = time.process_time()
    fitted = fit(suite, setting, SEED, told)
    took = time.process_time() - began
    members = suite.ready(setting, fitted.state)
    runs = {
        SUITE: fitted,
        **{name: members[name] for name in alone if name in members},
    }
    rehearsed = {key.removeprefix("rehearsed/"): t.tolist() for key, t in fitted.state.items() if "rehearsed/" in key}
    paces = {key.removeprefix("pace/"): t.tolist() for key, t in fitted.state.items() if "pace/" in key}
    return {name: partial(_own, how) for name, how in runs.items()}, {
        "rehearsed": rehearsed,
        "paces": paces,
        "fitting": took,
    }


def tried(bout: Bout, field: Field) -> dict[str, Run]:
    """Settings by their specification, of as many iterations as they say."""
    return {spec: partial(_own, spec) for spec in bout.tried}


def _own(how: Any, case: Case, client: int) -> tuple[Tensor, float, str]:
    began = time.process_time()
    found: Reconstruction = attack(case.observation, how, seed=SEED)
    return found.pictures, time.process_time() - began, str((found.notes or {}).get("won", ""))


def peers(
    bout: Bout, field: Field, options: argparse.Namespace, stack: ExitStack
) -> tuple[dict[str, Run], dict[str, str]]:
    """The peers, timed, and why others take no part."""
    folder = options.out / "cases"
    first = folder / "first"
    field.case(0).save(first)
    places: dict[str, tuple[Callable[[], Place], tuple[str, ...]]] = {
        "breaching": (lambda: for_breaching(options.environments.resolve()), (BREACHING_IG, BREACHING_MODERN))
    }
    if options.leakpro:
        names = (LEAKPRO_IG,) if bout.rule.mode == "eval" else (LEAKPRO_RUNNING,)
        places["LeakPro"] = (lambda: for_leakpro(options.environments.resolve(), options.leakpro), names)
    runs: dict[str, Run] = {}
    missing: dict[str, str] = {}
    for kind, (make, names) in places.items():
        try:
            worker = stack.enter_context(Worker(make(), first, "cpu", options.out / "workers.log"))
        except Unavailable as error:
            missing[kind] = str(error)
            continue
        for name in names:
            try:
                before, after = (
                    worker.ask("reconstruct", name=name, steps=steps, file=str((folder / "timed").resolve()))["cpu"]
                    for steps in (WARM, WARM + TIMED)
                )
            except Unavailable as error:
                missing[name] = str(error)
                continue
            steps = max(1, round(bout.seconds / ((after - before) / TIMED)))
            runs[name] = partial(_peer, worker, name, steps, folder)
    return runs, missing


def _peer(worker: Worker, name: str, steps: int, folder: Path, case: Case, client: int) -> tuple[Tensor, float, str]:
    held, file = folder / f"client-{client}", (folder / "pictures.safetensors").resolve()
    case.save(held)
    worker.ask("take", folder=str(held.resolve()))
    spent = worker.ask("reconstruct", name=name, steps=steps, file=str(file))["cpu"]
    return load_file(file)["pictures"], spent, ""


if __name__ == "__main__":
    main()
