"""Cells of a study made up from known leakage, scored and judged by the real code."""

import math

import torch

from leakmap import LocalRule, Plan, ThreatModel
from leakmap.auditing.conclude import bands_of, exposure_of, gains, line_ups
from leakmap.report.study import Cell
from leakmap.result.clients import FailedRun, LostClient
from leakmap.scoring.verdict import Client, Evidence, judge
from leakmap.seeds import generator
from tests.result.made_up import finished, made_up, verdict

GALLERY = 100
FLOORS = {"prior_only": 13.0, "swapped": 10.5, "mean_picture": 12.5, "nearest_public": 13.5}


def cell(axes, leakage, *, clients=12, batch=1, side=32, pictures=True, threat=None, failed=0, source=None):
    """An audit of which a share ``leakage`` of the pictures is found, and whose PSNR grows with it.

    Args:
        axes: Coordinates; ``client.mode`` and ``seed`` are read.
        leakage: In [0, 1].
        clients: How many.
        batch: Pictures of each.
        side: Of the pictures.
        pictures: Whether there are any.
        threat: What is granted.
        failed: How many clients failed.
        source: ``(N, C, H, W)`` originals; smooth random ones by default.
    """
    name = " ".join(f"{axis}={level}" for axis, level in axes.items())
    random = generator(axes.get("seed", 0), "synthetic", name)
    victims = generator(axes.get("seed", 0), "victims")
    uniform = lambda n: torch.rand(n, generator=random).tolist()  # noqa: E731
    judged, swapped, deranged, rows, pictured = [], [], [], [], []
    for client in range(clients - failed):
        lucky = uniform(batch)
        ranks = tuple(
            1.0 if u < leakage else float(math.ceil(v * GALLERY * (1 - 0.7 * leakage)))
            for u, v in zip(lucky, uniform(batch), strict=True)
        )
        psnr = tuple(10 + 8 * leakage + 2 * u for u in uniform(batch))
        ssim = tuple(0.05 + 0.5 * leakage + 0.1 * u for u in uniform(batch))
        floors = {
            "psnr": {floor: tuple(value + u for u in uniform(batch)) for floor, value in FLOORS.items()},
            "ssim": {floor: tuple(0.2 + 0.1 * u for u in uniform(batch)) for floor in FLOORS},
        }
        chance = tuple(float(math.ceil(u * GALLERY)) for u in uniform(batch))
        bands = {"colour": ranks, "layout": ranks, "detail": chance}
        judged.append(Client(ranks, (GALLERY,) * batch, {"psnr": psnr, "ssim": ssim}, floors, ranks, bands))
        swapped.append(Client(chance, (GALLERY,) * batch, judged[-1].scores))
        deranged.append(Client(chance, (GALLERY,) * batch, {}))
        rows.append(finished(client, ranks, (GALLERY,) * batch, judged[-1].scores, floors, swapped_ranks=chance))
        if pictures:
            pictured.append(_pictures(leakage, batch, side, random, victims, source, client))
    control = [Client((1.0,), (GALLERY,), {"psnr": (20.0,), "ssim": (0.5,)}) for _ in range(6)]
    lost = range(clients - failed, clients)
    failures = [FailedRun(role="attack", client=one, kind="NonFinite", message="loss") for one in lost]
    rows += [LostClient(client=one, failure="NonFinite: loss") for one in lost]
    flags = {"failed_runs": f"{failed} runs failed, the first with NonFinite: loss"} if failed else {}
    found = judge(Evidence(judged, swapped, control, deranged, blocking=flags))
    result = made_up(
        *rows,
        verdict=verdict(found.level, found.rule, found.reasons, f"Made up: {name}."),
        exposure=exposure_of(judged, range(len(judged))),
        line_up=line_ups(judged, swapped, deranged, control),
        bands=bands_of(judged),
        metrics=gains(judged),
        flags=flags,
        failures=tuple(failures),
        plan=Plan(
            "resnet", "samples", LocalRule(mode=axes.get("client.mode", "train")), threat or ThreatModel(public=0)
        ),
        command=f"leakmap audit --seed {axes.get('seed', 0)} --model resnet",
        seconds_of_runs=36.0 * clients,
    )
    return Cell(axes, result, pictured)


def _pictures(leakage, batch, side, random, victims, source, client):
    if source is None:
        coarse = torch.rand(batch, 3, 6, 6, generator=victims)
        original = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    else:
        original = source[[(client * batch + i) % len(source) for i in range(batch)]]
    noise = torch.rand(original.shape, generator=random)
    mean = original.mean((2, 3), keepdim=True).expand_as(original)
    return {
        "original": original,
        "reconstruction": leakage * original + (1 - leakage) * noise,
        "prior only": 0.7 * mean + 0.3 * noise,
        "swapped update": 0.6 * noise + 0.4 * original.flip(3),
        "mean picture": mean,
        "nearest public": original.flip(2),
    }
