"""What several local steps cost: memory and time of the engines beside one graph through all of them."""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.engines.memory import grown
from benchmarks.engines.pieces import Clock, Found, Piece, Tell, agreement, seconds
from benchmarks.engines.works import ARMS, EXACT, FROZEN, UNROLLED, Work, client, unrolled
from benchmarks.markdown import table

COUNTS = (1, 4, 16)
WORKS = (
    Work("CIFAR ResNet-18, B=4", "resnet", 4),
    Work("pre-act 1-1-1, train, B=8", "resnet,blocks=1-1-1,width=24,preact=true", 8, "train"),
)
ROUNDS = 3
MIB = 2**20


def measure(work: Work, options: argparse.Namespace, tell: Tell) -> dict[str, Any]:
    """Memory, seconds and agreement of every arm."""
    found: dict[str, Any] = {"memory": {}}
    for arm in ARMS:
        tell(f"memory of {arm}")
        found["memory"][arm] = grown(work, arm)
    held = client(work)
    arms = {name: make(held) for name, make in ARMS.items()}
    clock = Clock()
    clock.race(arms, min(ROUNDS, options.rounds), tell)
    tell("agreement")
    answers = {name: run()[0] for name, run in arms.items()}
    found["agreement"] = {name: agreement(answer, answers[UNROLLED]) for name, answer in answers.items()}
    arms.clear()
    reference = unrolled(held, torch.float64)()[0]
    found["float64"] = {name: agreement(answer, reference) for name, answer in answers.items()}
    parameters = sum(tensor.numel() * tensor.element_size() for tensor in held.target)
    return found | {"seconds": clock.record(), "parameters": parameters}


def pieces(options: argparse.Namespace) -> Iterator[Piece]:
    """One for each network and number of steps."""
    for count in COUNTS:
        for number, work in enumerate(WORKS):
            many = replace(work, steps=count)

            def run(tell: Tell, many: Work = many) -> dict[str, Any]:
                return measure(many, options, tell)

            yield Piece(f"steps-{number}-{count}", run, many.facts() | {"rounds": options.rounds}, 20 + 15 * count)


def page(found: Found, options: argparse.Namespace) -> list[str]:
    """Its section."""
    memory, time, agreed = [], [], []
    for number, work in enumerate(WORKS):
        of = {count: found[f"steps-{number}-{count}"] for count in COUNTS if f"steps-{number}-{count}" in found}
        for count, here in of.items():
            copies = here["parameters"] / MIB
            before = max((smaller for smaller in of if smaller < count), default=0)
            cells = [_grown(of, arm, count, before) for arm in ARMS]
            memory.append([work.title, count, f"{count * copies:.0f}", *cells])
            timed = here["seconds"]
            ratios = [f"{timed[arm]['cpu'] / timed[UNROLLED]['cpu']:.2f}" for arm in (EXACT, FROZEN)]
            time.append([work.title, count, *(seconds(timed[arm]) for arm in ARMS), *ratios])
            for name, key in (("unrolled", "agreement"), ("unrolled, float64", "float64")):
                arms = [arm for arm in ARMS if key == "float64" or arm != UNROLLED]
                cells = [f"{here[key][arm]['cosine']:.6f} ({here[key][arm]['error']:.0e})" for arm in arms]
                agreed.append([work.title, count, name, *cells, *([] if UNROLLED in arms else ["–"])])
    if not memory:
        return []
    return [
        "## Local steps",
        "",
        "    python -m benchmarks.engines --only steps",
        "",
        "A client that shares the change of its weights after K local steps (SGD, each step with all its pictures). "
        "*Unrolled*: written by hand, one graph through all steps and `autograd.grad` back to the pictures. Random "
        "weights, pictures of noise, 32 px; evaluated at the truth and half a standard deviation of noise.",
        "",
        "Memory: MiB by which the process grows over the client, at the peak of 2 evaluations, each in a process of "
        "its own that returns freed pages at once. In brackets: what each step adds over the row above, in copies "
        "of the parameters.",
        "",
        *table(["network", "K", "K copies of the parameters", *ARMS], memory),
        f"Milliseconds of one evaluation, of the process (wall): medians of {min(ROUNDS, options.rounds)} interleaved "
        "rounds.",
        "",
        *table(["network", "K", *ARMS, "exact / unrolled", "frozen / unrolled"], time),
        "The gradient of the matching term with respect to the pictures: cosine, and relative error in brackets.",
        "",
        *table(["network", "K", "against", *ARMS], agreed),
    ]


def _grown(of: dict[int, Any], arm: str, count: int, before: int) -> str:
    peak = of[count]["memory"][arm]["peak"]
    if not before:
        return f"{peak / MIB:.0f}"
    added = (peak - of[before]["memory"][arm]["peak"]) / (count - before) / of[count]["parameters"]
    return f"{peak / MIB:.0f} ({added:+.1f})"
