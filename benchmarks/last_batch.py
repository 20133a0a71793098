"""Does the last, partial batch of an ordinary client give its pictures away?

    python -m benchmarks.last_batch --data DIR [--only CASE ...] [--out FOLDER] [--page]

DIR is that of ``benchmarks.learned``. A case takes minutes, the whole about an hour of one core. Each is stored when it
is finished, and the same command continues. With ``--page`` what is measured so far is written to
docs/results/last-batch.md.

Every client really trains: all of its local steps, through the client step. Its pictures are test pictures; those of
its last step are the victims, and its other pictures are no candidates. A rank is that of the true picture among the
candidates of all classes, by NCC with the reconstructions of its client. Labels are granted in the order in which the
client goes through its pictures; where it shuffles, and in the row that says so, the classes of the last step are not
known.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import run_cases
from benchmarks.clients import Pool
from benchmarks.learned import network_of
from benchmarks.markdown import bounds, measured_with, ranged, table, versions
from leakmap.attacker.attack import attack, fit
from leakmap.attacker.attacks import attacks
from leakmap.attacker.learned.simulation import varied
from leakmap.attacker.protocol import Fitted
from leakmap.client.simulate import Batch, simulate
from leakmap.errors import NotApplicable, NotGranted
from leakmap.local_rule import LocalRule
from leakmap.models.network import Network
from leakmap.observation.contents import Public
from leakmap.plan.plan import Progress
from leakmap.scoring.bands import BANDS
from leakmap.scoring.lineup import Similarity, cross_correlation
from leakmap.scoring.match import matched
from leakmap.scoring.statistics import clopper_pearson, rank_sum_p
from leakmap.seeds import derive, generator
from leakmap.threat import ThreatModel, known_before, observe

PAGE = Path("docs/results/last-batch.md")
CANDIDATES = 332
COARSE = 32
RULE = LocalRule("delta", batch_size=32, lr=0.01)


@dataclass(frozen=True)
class Case:
    """One row.

    Args:
        title: In the table.
        network: Of ``benchmarks.learned``.
        rule: The clients' local rule.
        count: Pictures of each client.
        clients: How many.
        buffers: Whether they return their buffers.
        assumed: The rule that the attacker takes them to follow, if another.
        labels: Whether they are granted.
        augmented: Whether each picture is mirrored and shifted at random before the client trains on it.
    """

    title: str
    network: str = "resnet20"
    rule: LocalRule = field(default_factory=lambda: RULE)
    count: int = 289
    clients: int = 100
    buffers: bool = True
    assumed: LocalRule | None = None
    augmented: bool = False
    labels: bool = True


CASES = {
    "plain": Case("289 pictures, batches of 32: one picture is the last batch", clients=200),
    "momentum": Case("the same, momentum .9", rule=replace(RULE, momentum=0.9), clients=200),
    "blind": Case("the same as the first, labels not granted", clients=200, labels=False),
    "blind-momentum": Case(
        "momentum .9, labels not granted", rule=replace(RULE, momentum=0.9), clients=200, labels=False
    ),
    "dropped": Case("the same as the first, `drop_last=True`: 32 pictures are", rule=replace(RULE, drop_last=True)),
    "kept": Case("the same as the first, buffers stay local", buffers=False),
    "group": Case("X-rays, GroupNorm instead", "xray-group", count=33),
    "short": Case("33 pictures, two steps", count=33),
    "two": Case("290 pictures: two are the last batch", count=290),
    "four": Case("292 pictures: four are", count=292),
    "eight": Case("296 pictures: eight are", count=296, clients=50),
    "epochs2": Case("289 pictures, two epochs, shuffled", rule=replace(RULE, epochs=2, shuffle=True)),
    "epochs5": Case("289 pictures, five epochs, shuffled", rule=replace(RULE, epochs=5, shuffle=True), clients=50),
    "adam": Case("289 pictures, Adam, lr .001", rule=replace(RULE, optimizer="adam", lr=0.001)),
    "augmented": Case("289 pictures, mirrored and shifted at random by the client", augmented=True),
    "size": Case(
        "289 pictures; the attacker takes the batches for 16", assumed=replace(RULE, batch_size=16), clients=50
    ),
    "xray": Case("X-rays, trained small ResNet, 289 pictures", "xray"),
    "xray4": Case("X-rays, 292 pictures: four are", "xray", count=292),
    "mobilenet": Case("MobileNetV2, ImageNet weights, 224 px, 33 pictures", "mobilenet", count=33, clients=40),
}


def measured(case: Case, data: Path, told: Progress) -> dict[str, Any]:
    """Fits, attacks every client, and says what was reached."""
    return {"case": asdict(case), **read(case, *network_of(data, case.network), told), "versions": versions()}


def read(case: Case, network: Network, pool: Pool, told: Progress) -> dict[str, Any]:
    """What is read of the last local step.

    Args:
        case: The clients.
        network: What the server sent.
        pool: The pictures.
        told: Called with the title and the finished fraction.
    """
    rule = case.assumed or case.rule
    threat = ThreatModel("known" if case.labels else "unknown", buffers=case.buffers, public=len(pool.public))
    setting = known_before(network, rule, case.count, threat, Public(pool.public, pool.public_y))
    began = time.process_time()
    try:
        fitted = fit(attacks.build("last_batch"), setting, 3, lambda fraction: told(case.title, 0.6 * fraction))
    except (NotGranted, NotApplicable) as error:
        return {"refused": str(error)}
    fitting = time.process_time() - began
    last = len(case.rule.held_by(case.rule.steps(case.count) - 1, case.count))
    most = min(CANDIDATES, len(pool.y) * 2 // 5)
    candidates = pool.victims[:most]
    clients = min(case.clients, most // last)
    nccs, errors, floors = [], [], []
    ranks: dict[str, list[list[float]]] = {name: [] for name in KINDS}
    for client in range(clients):
        own = torch.arange(client * last, (client + 1) * last)
        found = _attacked(case, network, pool, own, fitted, client)
        told(case.title, 0.6 + 0.4 * (client + 1) / clients)
        some, found = _small(candidates), _small(found)
        found = matched(found, some[own])
        nccs.append(float(cross_correlation(found, some[own]).diagonal().mean()))
        errors.append(float((-10 * (found - some[own]).square().flatten(1).mean(1).log10()).mean()))
        mean = _small(pool.public).mean(0, keepdim=True)
        floors.append(float(cross_correlation(mean, some[own]).mean()))
        for name, similarity in KINDS.items():
            scores = similarity(found, some).max(0).values
            ranks[name].append([_rank(scores, int(i), own) for i in own])
    size = most - last + 1
    return {
        "clients": clients,
        "last": last,
        "candidates": size,
        "fit_seconds": fitting,
        "simulated": int(fitted.state["clients"]),
        "ncc": bounds(nccs),
        "psnr": bounds(errors),
        "mean_ncc": bounds(floors),
        "held_out": {n: float(v) for n, v in fitted.state.items() if n.startswith("ncc/")},
        "first": {name: _share(of) for name, of in ranks.items()},
        "relative": bounds([float(np.mean([(r - 1) / (size - 1) for r in of])) for of in ranks["whole"]]),
        "p": rank_sum_p(ranks["whole"], [[size] * last] * clients) if clients * last <= 1500 else None,
    }


KINDS: dict[str, Similarity] = {"whole": cross_correlation, **BANDS}


def _attacked(case: Case, network: Network, pool: Pool, own: torch.Tensor, fitted: Fitted, client: int) -> torch.Tensor:
    source = generator(11, "client", client)
    others = torch.arange(min(CANDIDATES, len(pool.y) * 2 // 5), len(pool.y))
    drawn = others[torch.randperm(len(others), generator=source)]
    needed = case.count - len(own)
    # Where the data set is small, a client holds some pictures twice; never one of the last step.
    drawn = drawn.repeat(-(-needed // len(drawn)))[:needed]
    seed = derive(7, "client", client)
    held = torch.empty(case.count, dtype=torch.int64)
    place = case.rule.held_by(case.rule.steps(case.count) - 1, case.count, derive(seed, "order"))
    rest = torch.ones(case.count, dtype=torch.bool)
    rest[place] = False
    held[place], held[rest] = own, drawn
    pictures = pool.victims[held]
    if case.augmented:
        pictures = torch.stack([varied(picture, network.task.shape, source) for picture in pictures])
    round = simulate(network, case.rule, Batch(pictures, pool.y[held]), seed)
    shown = Public(pool.public[:64], pool.public_y[:64])
    threat = ThreatModel("known" if case.labels else "unknown", buffers=case.buffers, public=len(shown.labels))
    return attack(observe(round, threat, shown), fitted, seed=derive(7, "attack", client)).pictures


def _small(pictures: torch.Tensor) -> torch.Tensor:
    """Larger pictures are predicted at 32 pixels: that is where they are compared."""
    if max(pictures.shape[2:]) <= 2 * COARSE:
        return pictures
    return torch.nn.functional.interpolate(pictures, (COARSE, COARSE), mode="bicubic", antialias=True)


def _rank(scores: torch.Tensor, truth: int, own: torch.Tensor) -> float:
    others = torch.ones(len(scores), dtype=torch.bool)
    # The client's other pictures of the last step are no candidates: the answer speaks of them too.
    others[own] = False
    better, equal = (scores[others] > scores[truth]).sum(), (scores[others] == scores[truth]).sum()
    return 1 + float(better) + 0.5 * float(equal)


def _share(ranks: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    flat = [rank for of in ranks for rank in of]
    found = clopper_pearson(sum(rank == 1 for rank in flat), len(flat))
    return found.value, found.low, found.high


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    run_cases(parser, list(CASES), PAGE, lambda key, own, told: measured(CASES[key], own.data, told), page)


def page(found: dict[str, dict[str, Any]]) -> str:
    """The page."""
    # Titles are today's: a row keeps its meaning where those before it are not measured.
    found = {key: entry | {"case": asdict(CASES[key])} for key, entry in found.items()}
    lines = [
        "# What the last batch gives away",
        "",
        "    python -m benchmarks.last_batch --data DIR",
        "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().split("\n"),
        "",
        "The network is a trained ResNet-20 in training mode, batches hold 32 pictures, SGD has a learning rate of",
        ".01, unless told otherwise. *Mean* is the NCC of the mean public picture, which needs no client. *Relative",
        "rank* is 0 for the true picture first and .5 by chance; *p* is that of the rank sum. Intervals are 95 %,",
        "exact for shares. Seconds are CPU seconds of one core, of the whole fit, once for all clients.",
        "",
        measured_with(found.values()),
        "",
    ]
    head = ("client", "clients", "last batch", "fit, s", "NCC", "mean", "PSNR, dB", "first", "chance", "relative rank")
    rows = [
        (
            entry["case"]["title"],
            entry["clients"],
            entry["last"],
            f"{entry['fit_seconds']:.0f}",
            ranged(entry["ncc"], ".2f"),
            f"{entry['mean_ncc'][0]:.2f}",
            f"{entry['psnr'][0]:.1f}",
            ranged(entry["first"]["whole"], ".1%"),
            f"{1 / entry['candidates']:.1%}",
            ranged(entry["relative"], ".2f"),
            "" if entry["p"] is None else f"{entry['p']:.1g}",
        )
        for entry in found.values()
        if "refused" not in entry
    ]
    lines += table((*head, "p"), rows)
    if refused := [entry for entry in found.values() if "refused" in entry]:
        lines += ["Where there is nothing to read, the attack says so:", ""]
        lines += [f"- {entry['case']['title']}: {entry['refused']}" for entry in refused] + [""]
    bands = ("colour", "layout", "detail")
    lines += ["## What of the pictures leaks", "", "Share of pictures that are first by one band alone.", ""]
    lines += table(
        ("client", *bands, "chance"),
        [
            (e["case"]["title"], *(ranged(e["first"][b], ".1%") for b in bands), f"{1 / e['candidates']:.1%}")
            for e in found.values()
            if "refused" not in e
        ],
    )
    if missing := [case.title for key, case in CASES.items() if key not in found]:
        lines += [f"Not measured yet: {'; '.join(missing)}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
