"""What rounding alone leaves of an update, measured by simulating the client with it."""

from collections.abc import Mapping
from statistics import median

import torch
from torch import Tensor

from leakmap.auditing.case import Case, norm
from leakmap.client.simulate import Batch, simulate
from leakmap.errors import ModelError
from leakmap.seeds import generator

TF32 = 2.0**-3
"""Rounding of TF32 and float16, with 11 significant bits, relative to that of bfloat16, with 8."""
LEVELS, DRAWS = 255, 5
TIMES = 2.5
"""By which factor a distance may differ from a measured one and still be called as much: kernels round differently."""
UNDIRECTED = 0.95
"""Share of a distance that is left whatever the factor, above which it is not along the update."""


def mixed_precision(case: Case) -> float:
    """Distance that a client leaves which computes in bfloat16 where autocast does so; 0 where it cannot."""
    own = case.simulated  # outside of autocast, as it may have to be computed again
    # The cache of autocast would keep weights of one simulation, with a graph that is freed, for the next.
    with torch.autocast(case.batch.pictures.device.type, torch.bfloat16, cache_enabled=False):
        return _distance(case, own, case.batch.pictures)


def eight_bits(case: Case) -> float:
    """Distance that pictures leave whose values were rounded to 8 bits; 0 where those given were not."""
    pictures = case.batch.pictures
    scaled = pictures * LEVELS
    if not torch.allclose(scaled, scaled.round(), rtol=0, atol=1e-3):
        return 0.0
    # The median, as a single draw may move a switch of the network, such as the place of a maximum.
    noises = [torch.rand(pictures.shape, generator=generator(0, "8 bits", i)).to(pictures) - 0.5 for i in range(DRAWS)]
    return median(_distance(case, case.simulated, pictures + noise / LEVELS) for noise in noises)


def _distance(case: Case, own: Mapping[str, Tensor] | None, pictures: Tensor) -> float:
    sent = case.observation.update.tensors
    size = norm(list(sent.values()))
    if own is None or not size:
        return 0.0
    try:
        made = simulate(case.observation.network, case.rule, Batch(pictures, case.batch.y, case.batch.areas))
    except (ModelError, RuntimeError):
        return 0.0
    return norm([made.update.tensors[name] - tensor for name, tensor in own.items() if name in sent]) / size


def cause(case: Case) -> str:
    """What rounding alone leaves the distance of a case, in sentences with its measured size; empty if none does.

    Rounding has no direction: what it leaves is not along the update, as a pull to the weights, decay, clipping and
    schedules are.
    """
    distance = case.distance
    if case.misfit < UNDIRECTED * distance:
        return ""
    found: list[str] = []
    bits, mixed = eight_bits(case), mixed_precision(case)
    if bits / TIMES <= distance <= TIMES * bits:
        found.append(
            f"Pictures whose values were rounded to 8 bits leave as much ({bits:.2g}, measured): if the client's own "
            "inputs are finer, give them as floats."
        )
    if distance <= TIMES * mixed:
        what = ("TF32 or half precision", mixed * TF32) if distance <= TIMES * mixed * TF32 else ("bfloat16", mixed)
        found.append(
            f"Mixed precision on the client, {what[0]}, leaves as much (about {what[1]:.2g}, measured); have it run "
            "once in float32 to be sure."
        )
    return " ".join(found)
