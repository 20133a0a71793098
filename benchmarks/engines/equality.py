"""Whether reconstructions by frozen and by exact differ after equally many iterations."""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from benchmarks.apart import SEED, studied
from benchmarks.descent_runs import CLIENTS, NETS, THREAT, Target, target_of
from benchmarks.engines.pieces import Found, Piece, Tell
from benchmarks.markdown import interval, table
from leakmap import LocalRule, attack, attacks, score
from leakmap.attacker.matching.engine import Kind
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.registry.spec import Spec
from leakmap.runs.run import distractors_for, held_by, seen_by_server
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Trial
from leakmap.scoring.lineup import ncc
from leakmap.seeds import derive

ATTACK = "inverting_gradients"
ARMS: dict[str, tuple[Kind, str]] = {
    "exact": ("exact", "attack"),
    "frozen": ("frozen", "attack"),
    "exact, other start": ("exact", "attack again"),
}
"""Name -> its engine, and the role of its seed."""
COMPARED = (("frozen", "exact"), ("exact, other start", "exact"))
STUDIED = ("ConvNet", "pre-act, train, B=4", "pre-act, briefly trained, train, B=4", "ResNet-20, trained")
"""Titles in benchmarks.descent_runs."""
CHOSEN = {net.title: net for net in NETS if net.title in STUDIED}
MEASURES = {"psnr": ("PSNR, dB", "+.2f"), "ncc": ("NCC", "+.3f"), "rank": ("rank", "+.1f")}


@cache
def _target(title: str, **settings: Any) -> tuple[Target, Setup]:
    options = argparse.Namespace(**settings)
    pictures, used = studied(options.data)
    target = target_of(CHOSEN[title], pictures, used, options)
    return target, target.setup()


def _trial(target: Target, setup: Setup, client: int, steps: int) -> Trial:
    rows = [tuple(row) for row in setup.groups.victims.tolist()]
    rule, spec = LocalRule(mode=target.net.mode), Spec(ATTACK, {"steps": steps})
    return Trial(setup.digest, rule, THREAT, spec, client=rows.index(target.clients[client]), seed=SEED)


def compute(title: str, client: int, options: argparse.Namespace, tell: Tell) -> dict[str, Any]:
    """Every arm against one client."""
    tell("preparing")
    settings = {name: getattr(options, name) for name in ("data", "weights", "resnet20", "out")}
    target, setup = _target(title, **settings)
    trial = _trial(target, setup, client, options.steps)
    truth, others, observation = (
        held_by(trial, setup),
        distractors_for(trial, setup),
        seen_by_server(trial, setup),
    )
    how = attacks.build(trial.attack)
    if not isinstance(how, GradientMatching):
        raise TypeError(f"{ATTACK} is no gradient matching")
    found: dict[str, Any] = {"gallery": 1 + min(len(of) for of in others)}
    for name, (kind, role) in ARMS.items():
        began = time.process_time()
        result = attack(
            observation,
            replace(how, engine=kind, patience=0),
            derive(SEED, role, trial.client),
            lambda share, name=name: tell(f"{name}, {share:.0%}"),
        )
        spent = time.process_time() - began
        scored = score(result, truth, others)
        found[name] = {
            "psnr": statistics.fmean(scored.values["psnr"]),
            "ncc": ncc(scored.pictures, truth.pictures),
            "rank": statistics.fmean(scored.ranks),
            "first": sum(rank == 1 for rank in scored.ranks) / len(scored.ranks),
            "term": result.objective,
            "engine": (result.notes or {}).get("engine"),
            "seconds": spent / options.steps,
        }
    return found


def pieces(options: argparse.Namespace) -> Iterator[Piece]:
    """One for each network and client."""
    for client in range(options.clients):
        for title, net in CHOSEN.items():
            facts = {"data": options.data, "steps": options.steps}
            lacking = "" if options.data else "needs --data"
            if net.weights:
                facts |= {"weights": options.weights, "resnet20": options.resnet20}
                lacking = lacking or ("" if options.weights else "needs --weights")

            def run(tell: Tell, title: str = title, client: int = client) -> dict[str, Any]:
                return compute(title, client, options, tell)

            cost = len(ARMS) * options.steps * net.cost / 1000
            yield Piece(_name(title, client), run, facts, cost, lacking)


def _name(title: str, client: int) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in title.lower()).split()
    return "-".join(["equality", *words, str(client)])


def page(found: Found, options: argparse.Namespace) -> list[str]:
    """Its section."""
    clients = {title: [found.get(_name(title, client)) for client in range(options.clients)] for title in CHOSEN}
    clients = {title: [one for one in of if one] for title, of in clients.items()}
    clients = {title: of for title, of in clients.items() if of}
    if not clients:
        return []
    rows, compared = [], []
    for title, of in clients.items():
        rows += [[title, name, *_means([one[name] for one in of])] for name in ARMS]
    everyone = [one for of in clients.values() for one in of]
    for title, of in [*clients.items(), ("all", everyone)]:
        for left, right in COMPARED:
            gains = {name: [one[left][name] - one[right][name] for one in of] for name in MEASURES}
            cells = [interval(gains[name], form, marked=True) for name, (_, form) in MEASURES.items()]
            compared.append([title, len(of), f"{left} − {right}", *cells])
    galleries = sorted({one["gallery"] for one in everyone})
    return [
        "## Equality",
        "",
        "    python -m benchmarks.engines --only equality --data npz:cifar10_subset.npz --weights cifar10_resnet20.th",
        "",
        f"`{ATTACK}` as it comes, {options.steps} iterations, labels granted: the same clients, starts and iterations "
        f"with either engine. Networks, pictures and clients are those of benchmarks/descent_runs.py (up to {CLIENTS} "
        "clients whose loss is above 1e-4, training pictures that no other table attacks). Line-ups have "
        f"{' or '.join(map(str, galleries))} candidates. *Other start* shows how much chance alone moves a client.",
        "",
        *table(["network", "engine", "PSNR", "NCC", "rank", "ranked first", "term", "ms per iteration"], rows),
        "Paired differences, means over clients with 95 % intervals; bold: the interval leaves out 0. A rank is a mean "
        "over the pictures of a client; lower is better.",
        "",
        *table(["network", "clients", "difference", *(title for title, _ in MEASURES.values())], compared),
    ]


def _means(arms: list[Any]) -> list[str]:
    def mean(name: str) -> float:
        return statistics.fmean(arm[name] for arm in arms)

    cost = 1000 * statistics.median(arm["seconds"] for arm in arms)
    scores = f"{mean('psnr'):.2f}", f"{mean('ncc'):.3f}", f"{mean('rank'):.1f}", f"{mean('first'):.0%}"
    return [*scores, f"{mean('term'):.3g}", f"{cost:.3g}"]
