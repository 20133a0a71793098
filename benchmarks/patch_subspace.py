"""What `patch_subspace` reads of two and three pictures that a vision transformer is trained on together.

    python -m benchmarks.patch_subspace --data DIR [--pairs 10] [--out FOLDER] [--page]

DIR holds the folders ``imagenet_public/images`` and ``imagenet_samples/images`` with their ``labels.csv``, as for
``benchmarks.learned``: public pictures are of the former, clients' and candidates of the latter. A quarter of an hour
of one core. Every row is stored when it is finished, and the same command continues. With ``--page`` what is measured
so far is written to docs/results/patch-subspace.md.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import run_cases
from benchmarks.clients import IMAGENET, pool_of
from benchmarks.markdown import measured_with, table, versions
from leakmap.attacker.attack import attack
from leakmap.client.simulate import Batch, simulate
from leakmap.local_rule import LocalRule
from leakmap.models.network import build_network
from leakmap.observation.contents import Public
from leakmap.plan.plan import Progress
from leakmap.problem.task import Task
from leakmap.scoring.lineup import cross_correlation
from leakmap.scoring.metrics.psnr import decibels
from leakmap.threat import ThreatModel, observe

PAGE = Path("docs/results/patch-subspace.md")
MODEL = "timm/vit_base_patch16_224,head_std=0.02"
PUBLIC = 100
"""Public pictures that the prior is taken of."""
ROWS = {
    "2": (2, "patch_subspace", "2 pictures, patches that continue across borders"),
    "2-alone": (2, "patch_subspace,continuity=false", "2 pictures, each patch alone"),
    "3": (3, "patch_subspace", "3 pictures, patches that continue across borders"),
}


def measured(row: str, data: Path, clients: int, told: Progress) -> dict[str, Any]:
    """PSNR to the nearest picture, and where the client's pictures stand in line-ups."""
    count, spec, title = ROWS[row]
    pool = pool_of(data, "imagenet")
    task = Task((3, 224, 224), 1000, *IMAGENET)
    network = build_network(task, MODEL, seed=11)
    public = Public(pool.public[:PUBLIC], pool.public_y[:PUBLIC])
    mean = public.pictures.mean(0, keepdim=True)
    found: dict[str, list[Any]] = {"psnr": [], "floor": [], "between": [], "rank": [], "seconds": []}
    for client in range(clients):
        own = torch.arange(client * count, (client + 1) * count)
        truth = pool.victims[own]
        seen = observe(
            simulate(network, LocalRule(), Batch(truth, pool.y[own]), client),
            ThreatModel("known", public=PUBLIC),
            public,
        )
        began = time.process_time()
        picture = attack(seen, spec, seed=1).pictures[:1]
        found["seconds"].append(time.process_time() - began)
        for name, guess in (("psnr", picture), ("floor", mean), ("between", truth.mean(0, keepdim=True))):
            found[name].append(max(float(decibels((guess.clamp(0, 1) - x).square().mean())) for x in truth))
        others = torch.ones(len(pool.victims), dtype=torch.bool)
        # One of the client's pictures is looked for at a time, the other ones are no candidates.
        others[own] = False
        scores = cross_correlation(picture, pool.victims)[0]
        found["rank"].append(1 + int(min((scores[others] > scores[i]).sum() for i in own.tolist())))
        told(title, (client + 1) / clients)
    return {**found, "candidates": int(others.sum()) + 1, "versions": versions()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=10, help="Clients of each row.")
    run_cases(parser, list(ROWS), PAGE, lambda row, own, told: measured(row, own.data, own.pairs, told), page)


def page(found: dict[str, dict[str, Any]]) -> str:
    """The page."""
    rows: list[list[str]] = []
    for row, entry in found.items():
        psnr, many = entry["psnr"], len(entry["psnr"])
        rows.append(
            [
                ROWS[row][2],
                f"{statistics.median(psnr):.1f} ({min(psnr):.1f} to {max(psnr):.1f})",
                f"{statistics.median(entry['floor']):.1f}",
                f"{statistics.median(entry['between']):.1f}",
                f"{sum(rank == 1 for rank in entry['rank'])} of {many}",
                f"{100 * ROWS[row][0] / entry['candidates']:.1f}%",
                f"{statistics.median(entry['rank']):g} of {entry['candidates']}",
                f"{statistics.median(entry['seconds']):.0f}",
            ]
        )
    head = ["client", "PSNR, dB", "mean public picture", "their own mean", "first", "chance", "median rank", "seconds"]
    return "\n".join(
        [
            "# Several pictures read off the positions of a transformer",
            "",
            "    python -m benchmarks.patch_subspace --data DIR",
            "",
            *(__doc__ or "").split("\n\n", 2)[2].strip().split("\n"),
            "",
            f"`{MODEL}` at 224 pixels, training mode, random weights, one gradient; {PUBLIC} public pictures. PSNR is "
            "that to the nearer picture: median and range. *Their own mean* is what the mean of the client's "
            "pictures, which no attacker has, reaches. A client is *first* where one of its pictures is first in a "
            "line-up of all candidates, by NCC; *chance* counts each of them. Seconds are CPU seconds of one core.",
            "",
            *table(head, rows),
            measured_with(found.values()),
        ]
    )


if __name__ == "__main__":
    main()
