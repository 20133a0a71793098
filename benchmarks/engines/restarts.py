"""Whether restarts should be folded into one batch, or the step compiled: against the loop over restarts."""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from benchmarks.engines.pieces import Clock, Found, Piece, Tell, agreement, ratio, seconds
from benchmarks.engines.works import Client, Evaluate, Work, client, distance, engine
from benchmarks.markdown import table
from leakmap.client_step import arrange

COUNTS = (1, 4, 8)
WORKS = (Work("ConvNet, B=1", "convnet"), Work("CIFAR ResNet-18, B=1", "resnet"))
MOST = {"ConvNet, B=1": 8, "CIFAR ResNet-18, B=1": 4}
"""Restarts that vmap takes at most, for memory."""
EVALUATIONS = {"ConvNet, B=1": 8, "CIFAR ResNet-18, B=1": 1}
"""Of each arm in a round, over the number of restarts."""
LOOP_EXACT, LOOP_FROZEN, FOLDED = "loop, exact", "loop, frozen", "vmap"
COMPILED = "compiled"
COMPILE_PIECE = "restarts-compile"


def _term(held: Client) -> tuple[Callable[[dict[str, Tensor], Tensor], Tensor], dict[str, Tensor]]:
    """The loss as a function of weights and pictures, and the weights."""
    module = arrange(held.network.module(), held.work.rule)
    loss, buffers = held.network.loss(), dict(module.named_buffers())
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def value(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return loss(functional_call(module, (weights, buffers), (x,)), held.y)

    return value, weights


def folded(held: Client) -> Evaluate:
    """``torch.func.vmap`` over the gradient of the distance of the gradient."""
    value, weights = _term(held)

    def term(x: Tensor) -> Tensor:
        return distance(list(grad(value)(weights, x).values()), held.target)

    every = vmap(grad(term))
    stacked = torch.stack(held.guesses)
    return lambda: list(every(stacked).unbind())


def measure(work: Work, count: int, options: argparse.Namespace, tell: Tell) -> dict[str, Any]:
    """Seconds of one evaluation for one restart."""
    held = client(work, guesses=count)
    arms = {LOOP_EXACT: engine(held, "exact"), LOOP_FROZEN: engine(held, "frozen")}
    if count <= MOST[work.title]:
        arms[FOLDED] = folded(held)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        answers = {name: run() for name, run in arms.items()}
    lowest = {
        name: min(agreement(a, b)["cosine"] for a, b in zip(of, answers[LOOP_EXACT], strict=True))
        for name, of in answers.items()
    }
    turns = max(1, EVALUATIONS[work.title] // count)
    repeated = {name: _repeated(run, turns) for name, run in arms.items()}
    clock = Clock()
    clock.race(repeated, options.rounds, tell)
    told = sorted({str(one.message).splitlines()[0][:160] for one in heard})
    return {"seconds": clock.record(turns * count), "cosine": lowest, "warnings": told}


def _repeated(run: Evaluate, times: int) -> Callable[[], None]:
    def several() -> None:
        for _ in range(times):
            run()

    return several


def compiled(held: Client) -> Evaluate:
    """The whole step, traced with its double backward and compiled."""
    from torch.fx.experimental.proxy_tensor import make_fx

    value, weights = _term(held)
    names = list(weights)

    def step(x: Tensor, *parameters: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        leaves = [p.detach().requires_grad_() for p in parameters]
        loss = value(dict(zip(names, leaves, strict=True)), x)
        shared = list(torch.autograd.grad(loss, leaves, create_graph=True))
        return torch.autograd.grad(distance(shared, held.target), x)[0].detach()

    parameters = list(weights.values())
    fast: Any = torch.compile(make_fx(step)(held.guesses[0], *parameters))

    def evaluate() -> list[Tensor]:
        with torch.no_grad():
            return [fast(x, *parameters) for x in held.guesses]

    return evaluate


def measure_compile(options: argparse.Namespace, tell: Tell) -> dict[str, Any]:
    """Seconds to compile from nothing, and of one evaluation afterwards."""
    held = client(WORKS[0])
    tell("compiling")
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        began = time.perf_counter()
        fast = compiled(held)
        answer = fast()[0]
        spent = time.perf_counter() - began
        arms = {LOOP_EXACT: engine(held, "exact"), LOOP_FROZEN: engine(held, "frozen"), COMPILED: fast}
        clock = Clock()
        turns = EVALUATIONS[WORKS[0].title]
        clock.race({name: _repeated(run, turns) for name, run in arms.items()}, options.rounds, tell)
    cosine = agreement(answer, arms[LOOP_EXACT]()[0])["cosine"]
    return {"compile": spent, "seconds": clock.record(turns), "cosine": cosine}


def pieces(options: argparse.Namespace) -> Iterator[Piece]:
    """One for each network and number of restarts, and one for compilation if it is asked for."""
    for number, work in enumerate(WORKS):
        for count in COUNTS:

            def run(tell: Tell, work: Work = work, count: int = count) -> dict[str, Any]:
                return measure(work, count, options, tell)

            cost = options.rounds * (2 if number == 0 else 2 * count)
            yield Piece(f"restarts-{number}-{count}", run, work.facts() | {"rounds": options.rounds}, cost)
    lacking = "" if options.compile else "needs --compile"
    facts = WORKS[0].facts() | {"rounds": options.rounds}
    yield Piece(COMPILE_PIECE, lambda tell: measure_compile(options, tell), facts, 90, lacking, optional=True)


def page(found: Found, options: argparse.Namespace) -> list[str]:
    """Its section."""
    rows, told = [], []
    for number, work in enumerate(WORKS):
        for count in COUNTS:
            here = found.get(f"restarts-{number}-{count}")
            if here is None:
                continue
            timed = here["seconds"]
            cells = [seconds(timed[name]) if name in timed else "–" for name in (LOOP_EXACT, LOOP_FROZEN, FOLDED)]
            against = ["–"] * 2
            if FOLDED in timed:
                against = [f"{ratio(timed, FOLDED, loop):.2f}" for loop in (LOOP_EXACT, LOOP_FROZEN)]
            cosines = [f"{here['cosine'][name]:.5f}" if name in timed else "–" for name in (LOOP_FROZEN, FOLDED)]
            rows.append([work.title, count, *cells, *against, *cosines])
            told += here["warnings"]
    lines: list[str] = []
    if rows:
        head = ["network", "restarts", LOOP_EXACT, LOOP_FROZEN, FOLDED, "vmap / exact", "vmap / frozen"]
        lines += [
            "## Restarts",
            "",
            "    python -m benchmarks.engines --only restarts --compile",
            "",
            "Milliseconds of the process (wall) for one evaluation of the matching term and its gradient for one "
            f"restart: medians of {options.rounds} interleaved rounds; ratios are medians of those within a round. "
            "*vmap*: `torch.func.vmap` over the gradient of the distance of the gradient, written by hand. Inference "
            "mode. Cosines: the lowest over restarts, with the loop of exact.",
            "",
            *table([*head, "cosine frozen", "cosine vmap"], rows),
            *(f"vmap warns: {text}\n" for text in dict.fromkeys(told)),
        ]
    if COMPILE_PIECE in found:
        lines += _compiled_lines(found[COMPILE_PIECE], options)
    return lines


def _compiled_lines(here: dict[str, Any], options: argparse.Namespace) -> list[str]:
    timed = here["seconds"]
    rows = [[name, seconds(timed[name])] for name in (LOOP_EXACT, LOOP_FROZEN, COMPILED)]
    gains = {name: timed[name]["cpu"] - timed[COMPILED]["cpu"] for name in (LOOP_EXACT, LOOP_FROZEN)}
    pays = [
        f"{here['compile'] / gain:,.0f} iterations against {name}" if gain > 0 else f"never against {name}"
        for name, gain in gains.items()
    ]
    return [
        "### Compiled",
        "",
        f"The whole step on the {WORKS[0].title}: double backward traced by `make_fx`, compiled by `torch.compile`, "
        f"without a cache. It takes {here['compile']:.0f} s to compile (wall) and pays after {' and '.join(pays)}. "
        f"Cosine with exact: {here['cosine']:.5f}.",
        "",
        *table(["", "ms of the process (wall)"], rows),
    ]
