"""What is measured: evaluations and iterations in interleaved rounds, memory, and what is reached when."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.peers.contestants import AUTO, FORWARD, LOOP, Settings, default_attack
from benchmarks.peers.environments import Place, Unavailable, Worker
from benchmarks.peers.works import SMALL, WORKS, Work, prepare
from leakmap.attacker.matching.priors import TotalVariation

WARM = 3
DECIBELS = 20.0
UNCAPPED = 1e6
BY_PSNR, BY_TERM = WORKS[0], WORKS[1]
"""The ConvNet, whose pictures are recovered, and the ResNet-18, whose are not."""


@dataclass(frozen=True)
class Bench:
    """What all measurements share.

    Args:
        places: Where contestants run.
        data: Where the pictures come from.
        log: Takes what workers print.
        rounds: Interleaved rounds.
        cap: Seconds after which breaching stops on the ConvNet.
        patience: On the ResNet-18 it stops after so many times the seconds that leakmap takes.
        advance: Told of each measurement.
    """

    places: Sequence[Place]
    data: str
    log: Path
    rounds: int
    cap: float
    patience: float
    advance: Callable[[str], None] = field(default=lambda what: None)


@dataclass(frozen=True)
class Entry:
    """A run against time.

    Args:
        title: In tables.
        kind: Of the worker.
        settings: Of the attack.
    """

    title: str
    kind: str
    settings: Settings


SHORT = {BY_PSNR.name: (60, 2.0), BY_TERM.name: (100, 0.3)}
"""Work -> iterations and step size that got there soonest with the total variation of breaching, on other pictures."""


def entries(work: Work) -> tuple[Entry, ...]:
    """Both tools, each with its own total variation and with that of the other."""
    steps, lr = SHORT[work.name]
    weight = next(prior.weight for prior in default_attack().priors if isinstance(prior, TotalVariation))
    return (
        Entry("leakmap, as it comes", "leakmap", Settings(None, None, own=True)),
        Entry("leakmap, total variation of breaching", "leakmap", Settings(None, own=True)),
        Entry("leakmap, the same in a short search", "leakmap", Settings(steps, own=True, lr=lr)),
        Entry("breaching, as published", "breaching", Settings()),
        Entry("breaching, total variation of leakmap", "breaching", Settings(tv=weight)),
    )


PAIRS = ((2, 3), (1, 3), (0, 3), (0, 4))
"""Of entries: what is compared. All pairs but the third minimise the same objective."""


@contextmanager
def workers(bench: Bench, work: Work, device: str, failures: dict[str, str], client: int = 0) -> Iterator[list[Worker]]:
    """Every place with the same client at hand."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(work, bench.data, client).save(folder)
        started = []
        for place in bench.places:
            try:
                started.append(stack.enter_context(Worker(place, folder, device, bench.log)))
            except Unavailable as error:
                failures[place.kind] = str(error)
        yield started


def speed(bench: Bench, work: Work, device: str) -> dict[str, Any]:
    """Seconds of an evaluation and of an iteration of whole attacks, in interleaved rounds of rotating order."""
    failures: dict[str, str] = {}
    answers: dict[str, Any] = {}
    tried: list[tuple[str, str, Worker]] = []
    with tempfile.TemporaryDirectory() as folder, workers(bench, work, device, failures) as started:
        for worker in started:
            for name in worker.contestants:
                try:
                    file = f"{folder}/{len(answers)}.safetensors"
                    found = worker.ask("build", name=name, file=file, warm=WARM)
                except Unavailable as error:
                    failures[name] = str(error)
                    continue
                tried.append(("evaluate", name, worker))
                if found:
                    answers[name] = found | {"gradient": load_file(file)["gradient"].double()}
            for name in worker.attacks:
                if name not in failures:
                    tried.append(("iterate", name, worker))
        rounds = []
        for number in range(bench.rounds):
            rounds.append({"evaluate": {}, "iterate": {}})
            turn = number * len(tried) // max(1, bench.rounds)
            for do, name, worker in tried[turn:] + tried[:turn]:
                bench.advance(f"{work.title}, {device}: {name}, round {number + 1}")
                try:
                    rounds[-1][do][name] = worker.ask(do, name=name, iterations=work.iterations)
                except Unavailable as error:
                    failures[f"{name}, whole attack" if do == "iterate" else name] = str(error)
        versions = {worker.place.kind: worker.versions for worker in started}
    return {"rounds": rounds, "answers": _compared(answers), "failures": failures, "versions": versions}


def _compared(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every answer beside that of the hand-written loop."""
    found: dict[str, Any] = {}
    if (reference := answers.get(LOOP)) is None:
        return found
    for name, answer in answers.items():
        ours, theirs = reference["gradient"].flatten(), answer["gradient"].flatten()
        found[name] = {
            "match": answer["match"],
            "difference": abs(answer["match"] - reference["match"]) / abs(reference["match"]),
            "cosine": float(torch.dot(ours, theirs) / (ours.norm() * theirs.norm()).clamp(min=1e-30)),
        }
    return found


def memory(bench: Bench, work: Work, device: str) -> dict[str, Any]:
    """Bytes that each contestant takes beside the client, each in a process of its own."""
    failures: dict[str, str] = {}
    found: dict[str, Any] = {}
    versions: dict[str, Mapping[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        case, small = Path(folder, "case"), Path(folder, "small")
        prepare(work, bench.data).save(case)
        prepare(replace(SMALL, mode=work.mode), bench.data).save(small)
        for place in bench.places:
            names = [None]
            while names:
                name = names.pop()
                try:
                    with Worker(place, case, device, bench.log, return_pages=True) as worker:
                        versions[place.kind] = worker.versions
                        if name is None:
                            names = [other for other in reversed(worker.contestants) if other != FORWARD]
                            name = names.pop()
                        bench.advance(f"memory, {work.title}, {device}: {name}")
                        found[name] = worker.ask("memory", name=name, small=str(small))
                except Unavailable as error:
                    failures[name or place.kind] = str(error)
    return {"bytes": found, "failures": failures, "versions": versions}


def against_time(bench: Bench, work: Work, device: str, client: int) -> dict[str, Any]:
    """What every entry had when, on one client."""
    failures: dict[str, str] = {}
    found: dict[str, Any] = {}
    with workers(bench, work, device, failures, client) as started:
        at = {worker.place.kind: worker for worker in started}
        for entry in entries(work):
            if entry.kind not in at:
                continue
            bench.advance(f"{work.title}, {device}: {entry.title}, picture {client + 1}")
            worker, settings = at[entry.kind], asdict(entry.settings)
            name, until = AUTO, {"cap": UNCAPPED, "psnr": None, "term": None}
            if entry.kind != "leakmap":
                name, until = worker.attacks[0], _until(bench, work, list(found.values()))
            try:
                found[entry.title] = worker.ask("follow", name=name, settings=settings, **until)
            except Unavailable as error:
                failures[entry.title] = str(error)
        versions = {worker.place.kind: worker.versions for worker in started}
    return {"runs": found, "failures": failures, "versions": versions}


def _until(bench: Bench, work: Work, ours: list[Any]) -> dict[str, float | None]:
    """When breaching may end: more of it would change no comparison with the runs of leakmap before it."""
    if work is BY_PSNR:
        return {"cap": bench.cap, "psnr": DECIBELS, "term": None}
    cap = bench.patience * max((run["seconds"] for run in ours), default=bench.cap)
    return {"cap": cap, "psnr": None, "term": min((point[2] for run in ours for point in run["points"]), default=None)}
