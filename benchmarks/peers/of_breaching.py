"""breaching 0.1.2, from the package index, in an environment of its own.

Its settings ``invertinggradients`` as they come: cosine similarity, total variation 0.2, signed Adam of 0.1 in the box,
the step size decaying over 24,000 iterations. Its loop runs unchanged: of its attacker, one method that is called once
at the start of each iteration is overridden to tell a watch. An evaluation is the closure that its loop gives to its
optimiser, without total variation and sign. Attention takes the math kernel, the only one with a double backward.
"""

import contextlib
import functools
import io
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

with contextlib.redirect_stdout(io.StringIO()):
    import breaching  # pyright: ignore[reportMissingImports]
    from breaching.attacks.optimization_based_attack import (  # pyright: ignore[reportMissingImports]
        OptimizationBasedAttacker,
    )

from benchmarks.peers.contestants import (
    BREACHING,
    BREACHING_IG,
    BREACHING_MODERN,
    SEED,
    Answer,
    Attack,
    Evaluate,
    Preset,
    Settings,
)
from benchmarks.peers.watches import Watch
from benchmarks.peers.works import Case


class Attacker(OptimizationBasedAttacker):
    """breaching's own, with a watch."""

    watch: Watch | None = None

    def _compute_objective(self, candidate: Any, *arguments: Any, **named: Any) -> Any:
        if self.watch is not None:
            self.watch(candidate)
        return super()._compute_objective(candidate, *arguments, **named)


def attacker(
    case: Case, *overrides: str, settings: str = "invertinggradients"
) -> tuple[Attacker, list[dict[str, Any]], list[dict[str, Any]]]:
    """breaching's attacker, and what it calls the server's payload and the shared data."""
    observation = case.observation
    network = observation.network
    template, task, setup = network.module(), network.task, {"dtype": torch.float, "device": network.device}
    chosen = breaching.get_attack_config(settings, list(overrides))
    metadata = SimpleNamespace(shape=task.shape, mean=task.mean, std=task.std, modality="vision", classes=task.classes)
    parameters = [network.weights[name] for name, _ in template.named_parameters()]
    buffers = [network.weights[name] for name, _ in template.named_buffers()] if case.mode == "eval" else None
    payload = [{"parameters": parameters, "buffers": buffers, "metadata": metadata}]
    shared = {"num_data_points": len(case.y), "labels": case.y, "local_hyperparams": _local_steps(case)}
    gradients = [observation.update.tensors[name] for name, _ in template.named_parameters()]
    return (
        Attacker(template, network.loss(), chosen, setup),
        payload,
        [{"gradients": gradients, "buffers": None, "metadata": shared}],
    )


def _local_steps(case: Case) -> dict[str, Any] | None:
    """What breaching calls the local rule of a client that takes several steps of SGD."""
    rule = case.observation.rule
    if rule is None or rule.share != "delta":
        return None
    held = [rule.held_by(step, len(case.y)) for step in range(rule.steps(len(case.y)))]
    labels = [case.y[places] for places in held]
    return {"lr": rule.lr, "steps": len(held), "data_per_step": len(held[0]), "labels": labels}


def contestant(case: Case) -> Evaluate:
    """breaching's closure at the guess."""
    peer, payload, shared = attacker(case, "regularization.total_variation.scale=0", "optim.signed=null")
    models, labels, _ = peer.prepare_attack(payload, shared)
    peer.objective.initialize(peer.loss_fn, peer.cfg.impl, shared[0]["metadata"]["local_hyperparams"])
    candidate = case.guess.clone().requires_grad_()
    optimizer = torch.optim.Adam([candidate])

    def evaluate() -> Answer:
        with sdpa_kernel(SDPBackend.MATH):
            term = peer._compute_objective(candidate, labels, models, optimizer, shared, 0)()
        if candidate.grad is None:
            raise ValueError("breaching left no gradient.")
        return term.detach().squeeze(), candidate.grad

    return evaluate


def attack(case: Case, settings: Settings, watch: Watch) -> None:
    """breaching's loop."""
    steps, tv = settings.published()
    _run(case, watch, f"optim.max_iterations={steps}", f"regularization.total_variation.scale={tv}")


def preset(case: Case, steps: int, watch: Watch, settings: str) -> None:
    """breaching's loop in settings of its own."""
    overrides = [f"optim.max_iterations={steps}"]
    if settings == "modern" and _local_steps(case):
        # Its prior on features hooks a module that its own simulation of several steps never calls.
        overrides.append("regularization.features.scale=0")
    _run(case, watch, *overrides, settings=settings)


def _run(case: Case, watch: Watch, *overrides: str, settings: str = "invertinggradients") -> None:
    torch.manual_seed(SEED)
    peer, payload, shared = attacker(case, *overrides, settings=settings)
    peer.watch = watch
    with sdpa_kernel(SDPBackend.MATH), contextlib.redirect_stdout(io.StringIO()):
        peer.reconstruct(payload, shared, {})


CONTESTANTS: Mapping[str, Any] = {BREACHING: contestant}
ATTACKS: Mapping[str, Attack] = {BREACHING: attack}
PRESETS: Mapping[str, Preset] = {
    BREACHING_IG: functools.partial(preset, settings="invertinggradients"),
    BREACHING_MODERN: functools.partial(preset, settings="modern"),
}
