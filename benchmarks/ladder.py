"""Where does a detector begin to leak? The ladder from a production design to its most lenient variant.

    python -m benchmarks.ladder [--data coco:DIR] [--scale cpu] [--out runs/ladder]

Runs studies/ladder.toml, continues where it was interrupted, and writes docs/results/ladder.md: every rung beside its
floors, and the effect of every step. With another --study only OUT/ladder.md is written.
"""

import argparse
from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.markdown import publish, table
from benchmarks.studies import run_to_end
from leakmap.attacker.labels import label_rules
from leakmap.auditing.prepare import prepare
from leakmap.plan.plan import Plan
from leakmap.report import study as study_report
from leakmap.report.page import interval
from leakmap.result.result import Result
from leakmap.result.values import gain_over_best_floor
from leakmap.runs.run import held_by, seen_by_server
from leakmap.runs.store import Store
from leakmap.runs.trial import Trial
from leakmap.runs.workers import default_workers
from leakmap.scoring.effects import contrast
from leakmap.scoring.equivalence import equivalent_mean
from leakmap.scoring.power import ALPHA, detectable_margin
from leakmap.scoring.score import overlap
from leakmap.study.claims import MATTERS, VALUES
from leakmap.study.file import read_study
from leakmap.study.paper import versions
from leakmap.study.planning import pictures_of

STUDY, PAGE = Path("studies/ladder.toml"), Path("docs/results/ladder.md")
Cell = study_report.Cell


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--data", help="Pictures with objects in place of the built-in ones.")
    parser.add_argument("--scale", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"))
    options = parser.parse_args()
    study = read_study(options.study, "cpu" if options.scale == "cpu" else None)
    if options.data:
        cells = tuple(replace(cell, plan=replace(cell.plan, data=options.data)) for cell in study.cells)
        study = replace(study, cells=cells)
    found = run_to_end(study, options.out, options.workers)
    kind = (options.data or "").partition(":")[0]
    command = f"python -m benchmarks.ladder --scale {options.scale}{f' --data {kind}:DIR' if kind else ''}"
    study_report.write_study(
        options.out / "report.html", study.title, found, study=study.resolved(), command=command, figures=options.out
    )
    classes = {str(cell.axes): _classes(cell.plan, options.out) for cell in study.cells}
    plan = study.cells[0].plan
    lines = [
        "# The ladder of a detector",
        "",
        f"    {command}",
        "",
        f"{plan.victims} clients of one picture of {plan.image_size} px, `{plan.attack}`, boxes and classes known. "
        "Every rung is the last with one change. *Fresh*: BatchNorm's running statistics are 0 and 1; *calibrated*: "
        "they are measured on public pictures; *trained*: the network was trained briefly on pictures that no client "
        "holds. The line-up score is the share of the others that the true picture, or object, beats: 0.5 is chance. "
        f"*Judged*: more than chance is shown; or it is shown to lie within {MATTERS['over_chance']:g} of chance (two "
        "one-sided tests, 5 %); or it stays open, with the margin that so many clients could show with 80 % power. "
        "Intervals are 95 %, bootstrap over clients; steps are differences to the rung above, client by client. "
        "*Classes*: overlap of the objects' classes and numbers with what the gradient of the head says of them, were "
        "they not known; mean and range over clients.",
        "",
        f"{ran_on(options.out)}.",
        "",
    ]
    for mode in ("train", "eval"):
        for weights in ("fresh", "calibrated", "trained"):
            column = [c for c in found if c.axes["client.mode"] == mode and c.axes["weights"] == weights]
            lines += _column(mode, weights, column, classes)
    publish("\n".join(lines), options.out / "ladder.md", *([PAGE] if options.study == STUDY else []))


def _classes(plan: Plan, folder: Path) -> str:
    """How much of the objects' classes and numbers the head's gradient gives away: mean and range over clients."""
    setup = prepare(plan, pictures_of(plan), trained=folder / "networks").main
    threat = replace(plan.threat, labels="unknown")
    rule, right = label_rules.build("objects"), []
    for client in range(plan.victims):
        trial = Trial(setup.digest, plan.rule, threat, plan.attack, client=client, seed=plan.seed)
        held = held_by(trial, setup)
        right.append(overlap(rule(seen_by_server(trial, setup), plan.seed).y, held.y))
    return f"{sum(right) / len(right):.2f} ({min(right):.2f} to {max(right):.2f})"


def _column(mode: str, weights: str, cells: list[Cell], classes: Mapping[str, str]) -> list[str]:
    """The rungs of one mode and kind of weights."""
    if not cells:
        return []
    head = ["rung", "verdict", "PSNR over its best floor, dB", "in boxes", "line-up score", "objects"]
    head += ["judged", "step, dB", "step, line-up score", "classes"]
    rows = []
    for number, cell in enumerate(cells):
        own = {"model": cell.axes["model"]}
        before = {"model": cells[number - 1].axes["model"]} if number else None
        rows.append(
            [
                cell.axes["model"],
                cell.result.verdict.level.replace("_", " "),
                *(_told(cells, value, [(1.0, own)]) for value in ("gain", "gain_in_boxes", "rank", "object_rank")),
                _judged(cells, own),
                *(_told(cells, value, before and [(1.0, own), (-1.0, before)]) for value in ("psnr", "rank")),
                classes[str(cell.axes)],
            ]
        )
    name = {"train": "Training", "eval": "Inference"}[mode]
    return [f"## {name} mode, {weights}", "", *table(head, rows)]


def _told(cells: list[Cell], value: str, terms: list[tuple[float, dict[str, Any]]] | None) -> str:
    effect = contrast(cells, lambda cell: _VALUES[value](cell.result), terms) if terms else None
    return "–" if effect is None else interval(effect.difference)


def _judged(cells: list[Cell], own: dict[str, Any]) -> str:
    """Whether the line-ups of a rung show a leak, or that there is none that would matter."""
    effect = contrast(cells, lambda cell: VALUES["over_chance"](cell.result), [(1.0, own)])
    if effect is None:
        return "–"
    if effect.difference.low > 0 and effect.p < ALPHA:
        return "more than chance"
    small = equivalent_mean(effect.difference.value, effect.error, effect.clients, MATTERS["over_chance"])
    return "chance" if small.equivalent else f"open, {detectable_margin(effect.error, effect.clients):.2f}"


def object_rank_score(result: Result) -> dict[Hashable, float]:
    """Client -> share of the others that the true objects beat, mean over the large ones; without any left out."""
    return {
        one.client: fmean((n - rank) / (n - 1) for rank, n in zip(one.object_ranks, one.object_galleries, strict=True))
        for one in result.finished
        if one.object_ranks
    }


def ran_on(folder: Path) -> str:
    """Versions, device, number of runs and what they took."""
    store = Store(folder)
    seconds = [outcome.seconds for outcome in map(store.read, store.keys()) if outcome is not None]
    told = ", ".join(f"{name} {version}" for name, version in versions(folder).items())
    return f"{told}; {len(seconds):,} runs, {sum(seconds) / 3600:.1f} hours of computing on one core each"


_VALUES = {
    **VALUES,
    "gain_in_boxes": lambda result: gain_over_best_floor(result, "psnr_in_boxes"),
    "object_rank": object_rank_score,
}


if __name__ == "__main__":
    main()
