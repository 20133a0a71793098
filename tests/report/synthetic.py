"""Cells of a study made up from known leakage, scored and judged by the real code."""

import math
from dataclasses import asdict

import torch

from leakmap.files import finite
from leakmap.report.study import Cell
from leakmap.scoring.verdict import Client, Evidence, gain_over_floors, judge, line_up
from leakmap.seeds import generator
from leakmap.threat import ThreatModel

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
    judged, swapped, rows, pictured = [], [], [], []
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
        judged.append(Client(ranks, (GALLERY,) * batch, {"psnr": psnr, "ssim": ssim}, floors))
        chance = tuple(float(math.ceil(u * GALLERY)) for u in uniform(batch))
        swapped.append(Client(chance, (GALLERY,) * batch, judged[-1].scores))
        rows.append(
            {
                "client": client, "classes": ["cat"] * batch, "ranks": ranks, "galleries": (GALLERY,) * batch,
                "scores": judged[-1].scores, "floors": floors, "swapped_ranks": chance, "labels_right": 1.0,
                "objective": 0.1, "curve": [1.0, 0.1], "seconds": 3.0, "notes": {},
            }
        )  # fmt: skip
        if pictures:
            pictured.append(_pictures(leakage, batch, side, random, victims, source, client))
    control = [Client((1.0,), (GALLERY,), {"psnr": (20.0,), "ssim": (0.5,)}) for _ in range(6)]
    failures = [
        {"role": "attack", "client": clients - 1 - i, "kind": "NonFinite", "message": "loss"} for i in range(failed)
    ]
    rows += [{"client": clients - 1 - i, "failure": "NonFinite: loss"} for i in range(failed)]
    flags = {"failed_runs": f"{failed} runs failed, the first with NonFinite: loss"} if failed else {}
    verdict = judge(Evidence(judged, swapped, control, flags))
    threat = threat or ThreatModel()
    granted = {fact: getattr(threat, fact) for fact in ("labels", "count", "rule", "buffers", "public")}
    summed = {
        key: {**asdict(found), "above_chance": found.above_chance}
        for key, of in (("attack", judged), ("swapped", swapped), ("control", control))
        if of
        for found in [line_up(of)]
    }
    result = {
        "schema": 1,
        "verdict": {"level": verdict.level, "reasons": verdict.reasons, "statement": f"Made up: {name}."},
        "line_up": {"gallery": [GALLERY, GALLERY] if judged else None, "attack": None, "swapped": None} | summed,
        "metrics": {metric: asdict(gain_over_floors(judged, metric)) for metric in ("psnr", "ssim")} if judged else {},
        "settings": {"column": "default", "statement": "default"},
        "suite": None,
        "labels": {
            "source": "inferred",
            "rule": "idlg",
            "confidence": 1.0,
            "right": 1.0,
            "statement": "inferred by idlg",
        },
        "flags": flags,
        "update_check": {},
        "closed_forms": {"qualify": [], "reasons": []},
        "knowledge": {"attacker": threat.letter, "attacker_used": "C", "granted": granted, "used": ["rule"]},
        "clients": rows,
        "failures": failures,
        "unfinished": 0,
        "pictures": {"victims": clients},
        "accuracy": 0.2,
        "plan": {"model": "resnet", "rule": {"mode": axes.get("client.mode", "train")}},
        "command": f"leakmap audit --seed {axes.get('seed', 0)} --model resnet",
        "control_model": "convnet",
        "seconds": 40.0,
        "seconds_of_runs": 36.0 * clients,
        "resumed_runs": 0,
        "versions": {"leakmap": "0.1.0", "torch": "2.14", "device": "cpu"},
    }
    return Cell(axes, finite(result), pictured)


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
