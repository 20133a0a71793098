"""Does a watch over 50 rounds alarm where nothing leaks, and how soon where something does?

    python -m benchmarks.rounds

Each federation has one client, which holds the same picture in every round, of those that come with scikit-image, at 16
pixels. In each round it trains a network that nobody has seen before, and its true picture is ranked among 24 of its
class, once by what the attack makes of its update and once by what it makes of that of another picture. Then
`leakmap.scoring.rounds` pools what there is so far, after every round. Half an hour of one core; each row is stored
when it is finished, and the same command continues. With ``--page`` docs/results/rounds.md is written.
"""

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import run_cases
from benchmarks.markdown import measured_with, table, versions
from leakmap import Batch, LocalRule, Task, ThreatModel, attack, build_network, observe, simulate
from leakmap.client.data import Pictures, load_pictures
from leakmap.errors import NotApplicable
from leakmap.plan.plan import Progress
from leakmap.scoring.exposure import VISIBLE_SSIM
from leakmap.scoring.lineup import pick_distractors, rank
from leakmap.scoring.rounds import ERROR, pooled
from leakmap.scoring.score import metric_values
from leakmap.scoring.statistics import clopper_pearson
from leakmap.seeds import derive, generator

PAGE = Path("docs/results/rounds.md")
FEDERATIONS, ROUNDS, GALLERY, SIDE = 200, 50, 24, 16


@dataclass(frozen=True)
class Case:
    """What clients send.

    Args:
        told: What the table calls it.
        model: Of the network.
        attack: With which it is attacked.
        defence: Of the client.
        other: Whether the update is that of another picture than the client's, drawn anew in each round.
        leaks: Whether something can be found.
    """

    told: str
    model: str
    attack: str
    defence: str = "none"
    other: bool = False
    leaks: bool = False


DROWNED = "clip_noise,clip=1,noise=100"
CASES = {
    "drowned": Case("noise of 100 times the update, closed form", "mlp,hidden=16", "linear", DROWNED),
    "searched": Case("the same, search", "convnet,width=4", "inverting_gradients,steps=3", DROWNED),
    "others": Case("updates of other pictures, which come back exactly", "mlp,hidden=16", "linear", other=True),
    "faint": Case("a little noise", "mlp,hidden=16", "linear", "clip_noise,clip=1,noise=0.02", leaks=True),
    "plain": Case("no noise", "mlp,hidden=16", "linear", leaks=True),
}


def capture(case: Case, pictures: Pictures, own: int, own_lineup: Tensor, seed: int) -> tuple[float, bool]:
    """One round of one client: the advantage of its update, and whether its picture can be seen."""
    task = Task((3, SIDE, SIDE), len(pictures.classes), (0.5,) * 3, (0.25,) * 3)
    network = build_network(task, case.model, seed=derive(seed, "weights"))
    alike = (pictures.labels == pictures.labels[own]).nonzero()[:, 0]
    alike = alike[~torch.isin(alike, torch.cat([own_lineup, torch.tensor([own])]))]
    first, second = alike[torch.randperm(len(alike), generator=generator(seed, "others"))[:2]].tolist()
    truth = pictures.images[own].float() / 255
    beaten: list[float] = []
    seen = False
    for place, held in enumerate((first if case.other else own, second)):
        batch = Batch(pictures.images[[held]].float() / 255, pictures.labels[[held]])
        sent = simulate(network, LocalRule(mode="eval", defence=case.defence), batch, derive(seed, "client", place))
        try:
            found = attack(observe(sent, ThreatModel("known")), case.attack, seed=derive(seed, "attack")).pictures
        except NotApplicable:
            # What a closed form refuses is no reconstruction: every candidate is as near.
            found = torch.full_like(batch.pictures, 0.5)
        place_of_truth = rank(found, truth, pictures.images[own_lineup].float() / 255)
        beaten.append((GALLERY - place_of_truth) / (GALLERY - 1))
        if place == 0:
            (similarity,) = metric_values(found, Batch(truth[None], pictures.labels[[own]]), ("ssim",))["ssim"]
            seen = similarity > VISIBLE_SSIM
    return beaten[0] - beaten[1], seen


def measured(name: str, options: argparse.Namespace, told: Progress) -> dict[str, Any]:
    """All federations of a case: the round of the alarm of each, None without one."""
    case, pictures = CASES[name], load_pictures("samples", SIDE)
    pooled_at: list[int | None] = []
    seen_at: list[int | None] = []
    evidence: list[float] = []
    for federation in range(options.federations):
        told(case.told, federation / options.federations)
        seed = derive(11, name, federation)
        # Two more of its class are held by clients that must not be in the line-up.
        enough = pictures.labels.bincount()[pictures.labels] >= GALLERY + 2
        own = int(enough.nonzero()[:, 0][torch.randperm(int(enough.sum()), generator=generator(seed, "picture"))[0]])
        label = int(pictures.labels[own])
        pool = torch.tensor([i for i in range(len(pictures)) if i != own])
        line_up = pick_distractors(pictures.labels, label, pool, GALLERY - 1, seed)
        line_up = line_up[pictures.labels[line_up] == label][: GALLERY - 1]
        rounds = [capture(case, pictures, own, line_up, derive(seed, "round", i)) for i in range(ROUNDS)]
        found = pooled([advantage for advantage, _ in rounds])
        pooled_at.append(found.alarm)
        seen_at.append(next((i for i, (_, seen) in enumerate(rounds) if seen), None))
        evidence.append(found.evidence)
    return {"pooled": pooled_at, "seen": seen_at, "evidence": evidence, "versions": versions()}


def page(found: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    rows: list[list[str]] = []
    for name, entry in found.items():
        for kind in ("pooled", "seen"):
            alarms = [one + 1 for one in entry[kind] if one is not None]
            share = clopper_pearson(len(alarms), len(entry[kind]))
            rows.append(
                [
                    CASES[name].told,
                    "yes" if CASES[name].leaks else "no",
                    {"pooled": "evidence", "seen": "a picture is seen"}[kind],
                    f"{len(alarms)} of {len(entry[kind])}",
                    f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]",
                    f"{statistics.median(alarms):g}" if alarms else "",
                ]
            )
    head = ["client", "leaks", "alarm", "federations", "share", "median round"]
    return "\n".join(
        [
            "# False alarms of a watch over 50 rounds",
            "",
            *(__doc__ or "").split("\n\n", 1)[1].rstrip().split("\n"),
            "",
            f"The evidence may alarm in at most {ERROR:.0%} of federations that do not leak. *A picture is seen*: SSIM "
            f"above {VISIBLE_SSIM:g} in some round. That alone is no alarm: a picture of another client that comes "
            "back exactly may look like this one. A watch alarms at captures that an audit calls `visual` or `exact`.",
            "",
            *table(head, rows),
            measured_with(found.values()),
        ]
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--federations", type=int, default=FEDERATIONS)
    run_cases(parser, list(CASES), PAGE, measured, page)


if __name__ == "__main__":
    main()
