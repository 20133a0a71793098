"""The degenerate-update check: can this update say anything about the picture at all?

With untrained weights "modern architectures resist inversion" is partly an artefact of initialisation: a
zero-initialised head leaves every gradient below it at exactly 0. So before anything is attacked, the auditor looks at
what the update depends on. Runs on the truth's side; nothing here reaches an attack.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from leakmap.attacker.labels.head import last_layer
from leakmap.client.simulate import Batch, simulate
from leakmap.client_step import arrange, check_examples_apart
from leakmap.defences import NONE
from leakmap.errors import ModelError
from leakmap.local_rule import LocalRule
from leakmap.models.network import Network
from leakmap.problem.task import loss_of
from leakmap.result.method import UpdateCheck
from leakmap.seeds import derive, generator

TINY_FRACTION = 1e-5
HEAD_FRACTION = 0.99
ZERO_FRACTION = 0.5
SAME = 0.999
SATURATED_LOSS = 1e-5
PRECISION = 0.99


def degenerate(check: UpdateCheck) -> dict[str, str]:
    """Why an update is degenerate, by flag name; empty if it is not."""
    # A number that is not finite is None here. Every comparison with NaN is false, so it raises no flag.
    numbers = [check.norm, check.head_fraction, check.cos_other, check.cos_noise, check.cos_precise, check.loss]
    norm, head, cos_other, cos_noise, cos_precise, loss = (math.nan if n is None else n for n in numbers)
    found: dict[str, str] = {}
    if norm == 0:
        found["degenerate_update"] = "The update is exactly zero."
    elif check.zero_tensors > ZERO_FRACTION * check.tensors or (head > HEAD_FRACTION and check.zero_below):
        why = f"; the head carries {head:.1%}: its weights are zero, so nothing below gets a gradient"
        found["degenerate_update"] = (
            f"{check.zero_tensors:.0f} of {check.tensors} tensors of the update are exactly zero"
            f"{why if head > HEAD_FRACTION else ''}."
        )
    elif cos_other > SAME and cos_noise > SAME:
        found["degenerate_update"] = (
            f"Updates of other pictures and of noise have cosines {cos_other:.4f} and {cos_noise:.4f} to "
            "this one: it hardly depends on the picture."
        )
    if loss < SATURATED_LOSS or cos_precise < PRECISION:
        found["saturated"] = (
            f"The client's loss is {loss:.1e} and its update has cosine {cos_precise:.3f} to the same "
            "update in float64: what it sends is mostly rounding."
        )
    return found


def check_update(
    networks: Sequence[Network],
    rule: LocalRule,
    batches: Sequence[Batch],
    others: Sequence[Batch],
    seed: int = 0,
) -> UpdateCheck:
    """Probes a client with its own batch, another one, noise, and in float64.

    Args:
        networks: What each of them got: task, architecture and weights.
        rule: The local rule; dropout and the defence are left out, so that cosines compare pictures, not noise.
        batches: Of the clients to probe.
        others: Batches with the same labels.
        seed: For the noise.

    Raises:
        ModelError: DP-SGD cannot train this network.
    """
    check_examples_apart(arrange(networks[0].module(), rule), rule, networks[0].loss())
    calm = replace(rule, dropout=0.0, defence=NONE)
    rows: list[dict[str, float]] = []
    for i, (network, batch, other) in enumerate(zip(networks, batches, others, strict=True)):
        # "gate" names the random stream: under another name, the same seed would probe with other noise.
        noise = torch.rand(batch.pictures.shape, generator=generator(seed, "gate", i)).to(batch.pictures)
        own = _update(network, calm, batch)
        norms = [float(tensor.double().norm()) for tensor in own.values()]
        norm = math.hypot(*norms)
        last = last_layer(network, calm)
        head = [name.rpartition(".")[0] == last for name in own]
        rows.append(
            {
                "norm": norm,
                "head_fraction": sum(n**2 for n, top in zip(norms, head, strict=True) if top) / norm**2
                if norm
                else 0.0,
                "zero_below": not all(head) and not any(n for n, top in zip(norms, head, strict=True) if not top),
                "zero_tensors": sum(n == 0 for n in norms),
                "tiny_tensors": sum(n < TINY_FRACTION * norm for n in norms),
                "cos_other": _cosine(own, _update(network, calm, Batch(other.pictures, batch.y))),
                "cos_noise": _cosine(own, _update(network, calm, Batch(noise, batch.y))),
                "cos_precise": _precise(network, calm, batch, own),
                "loss": _loss(network, calm, batch, derive(seed, "gate", i)),
            }
        )
    medians: dict[str, Any] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    medians["zero_below"] = all(row["zero_below"] for row in rows)
    tensors = sum(p.requires_grad for p in networks[0].module().parameters())
    return UpdateCheck(tensors=tensors, **medians)


def _update(network: Network, rule: LocalRule, batch: Batch) -> dict[str, Tensor]:
    return dict(simulate(network, rule, batch).update.tensors)


def _doubled(network: Network) -> Network:
    weights = {name: t.double() if t.is_floating_point() else t for name, t in network.weights.items()}
    return replace(network, weights=weights)


def _precise(network: Network, rule: LocalRule, batch: Batch, own: dict[str, Tensor]) -> float:
    """Cosine to the update in float64; NaN where the model or the device cannot compute in it."""
    try:
        return _cosine(own, _update(_doubled(network), rule, Batch(batch.pictures.double(), batch.y)))
    except (ModelError, TypeError, RuntimeError):
        return math.nan


def _loss(network: Network, rule: LocalRule, batch: Batch, seed: int) -> float:
    module = network.module().train(rule.mode == "train")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return float(loss_of(module, network.loss(), network.task.normalize(batch.pictures), batch.y))


def _cosine(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """In float64, tensor by tensor: no copy of all of a large network is made."""
    products = [_products(tensor.double().flatten(), right[name].double().flatten()) for name, tensor in left.items()]
    dot, own, other = (math.fsum(column) for column in zip(*products, strict=True))
    return dot / math.sqrt(own * other) if own * other else 0.0


def _products(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    return float(a @ b), float(a @ a), float(b @ b)
