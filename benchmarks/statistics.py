"""Do batch statistics help in training mode, and which: recovered, public, running, none?

    python -m benchmarks.statistics --data npz:cifar10_subset.npz --weights cifar10_resnet20.th --out runs/statistics

Every attack gets the same clients, labels, iterations and starts. The weight of the statistics, the only setting that
is searched, is rehearsed on public pictures, in batches of 4 for both batch sizes. Interrupted, the same command
continues. Writes ``table.md`` there.
"""

import argparse
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.markdown import interval, publish, table, versions
from leakmap.auditing.prepare import Prepared, prepare
from leakmap.auditing.tune import tune
from leakmap.local_rule import LocalRule
from leakmap.plan.plan import Plan
from leakmap.registry.spec import Spec
from leakmap.runs.run import held_by
from leakmap.runs.runner import Local, jobs_of, run_trials
from leakmap.runs.store import Store
from leakmap.runs.trial import Outcome, Trial
from leakmap.scoring.effects import holm
from leakmap.scoring.lineup import ncc
from leakmap.scoring.statistics import paired_p, rank_sum_p
from leakmap.threat import ThreatModel

PLAIN = "inverting_gradients"
ATTACKS = {
    "plain": PLAIN,
    "running": "running_statistics",
    "proxy": "proxy_statistics",
    "recovered": "recovered_statistics",
}
COMPARED = (("recovered", "plain"), ("recovered", "proxy"), ("proxy", "plain"), ("running", "plain"))
BUDGET, REHEARSALS, PUBLIC = 4, 3, 64
OWN = "resnet,blocks=1-1-1,width=32,preact=true"


@dataclass(frozen=True)
class Cell:
    """One network and batch size: the outcomes of every attack on the same clients.

    Args:
        weights: What kind.
        batch: Pictures of each client.
        accuracy: Of the network on public pictures.
        chosen: Attack -> rehearsed weight of its statistics.
        outcomes: Column -> one outcome for each client.
        ncc: Column -> mean normalized cross-correlation of each client's pictures.
    """

    weights: str
    batch: int
    accuracy: float
    chosen: Mapping[str, float]
    outcomes: Mapping[str, list[Outcome]]
    ncc: Mapping[str, list[float]]


def plans(options: argparse.Namespace) -> dict[tuple[str, int], Plan]:
    """Every cell, cheapest first."""
    trained = {"model": options.resnet20, "weights": options.weights, "normalization": "imagenet"}
    kinds = {"random": {"model": OWN}, "briefly trained": {"model": OWN, "train_epochs": 3}, "ResNet-20": trained}
    found = {}
    for batch in (4, 8):
        for name, settings in kinds.items():
            found[name, batch] = Plan(
                data=options.data,
                rule=LocalRule(),
                threat=ThreatModel("known", public=PUBLIC),
                victims=options.victims,
                batch_size=batch,
                **settings,
            )
    return {key: plan for key, plan in found.items() if not options.only or options.only in f"{key[0]} {key[1]}"}


def rehearse(folder: Path, plan: Plan, options: argparse.Namespace, bar: Progress) -> dict[str, float]:
    """Attack -> the weight of its statistics that did best on public pictures, everything else fixed."""
    task = bar.add_task(f"rehearsing {folder.name}", total=1.0)
    specs = [Spec(name, fixed(options)) for name in ATTACKS.values() if name != PLAIN]
    tuned = tune(
        plan,
        folder,
        rehearsals=REHEARSALS,
        specs=specs,
        budget=BUDGET,
        runner=Local(options.workers),
        progress=lambda what, fraction: bar.update(task, completed=fraction),
    )
    return {spec.name: tuned.attacks[spec.name].settings["weight"] for spec in specs}


def fixed(options: argparse.Namespace) -> dict[str, Any]:
    """What all attacks share."""
    return {"steps": options.steps, "tv": 1e-2, "fade": 1.0, "lr": 0.3, "sign": "hard"}


def run(cell: tuple[str, int], plan: Plan, chosen: Mapping[str, float], options, bar: Progress) -> Cell:
    """Attacks every client with every attack, and keeps the floors beside them."""
    folder = options.out / f"{cell[0].replace(' ', '-')}-{cell[1]}"
    task = bar.add_task(f"{cell[0]}, {cell[1]} pictures", total=1.0)
    prepared = prepare(plan)
    columns = {
        short: Spec(name, fixed(options) | ({"weight": chosen[name]} if name in chosen else {}))
        for short, name in ATTACKS.items()
    }
    columns["prior only"] = Spec("prior_only", {"of": PLAIN, **fixed(options)})
    base = Trial(prepared.main.digest, plan.rule, plan.threat, columns["plain"], seed=plan.seed)
    victims = range(plan.victims)
    trials = {name: [replace(base, attack=spec, client=v) for v in victims] for name, spec in columns.items()}
    trials["swapped"] = [replace(base, client=v, swap=1) for v in victims]
    outcomes = _finish(trials, prepared, Store(folder), options, lambda f: bar.update(task, completed=f))
    alike = {
        name: [ncc(o.score.pictures, held_by(o.trial, prepared.main).pictures) for o in of]
        for name, of in outcomes.items()
    }
    bar.update(task, completed=1.0)
    return Cell(*cell, prepared.accuracy, chosen, outcomes, alike)


def _finish(trials, prepared: Prepared, store: Store, options, report) -> dict[str, list[Outcome]]:
    store.make()
    everything = [trial for of in trials.values() for trial in of]
    outcomes = {trial.key: found for trial in everything if (found := store.get(trial)) and not found.failure}
    missing = [trial for trial in everything if trial.key not in outcomes]

    def done(outcome: Outcome) -> None:
        store.put(outcome)
        outcomes[outcome.trial.key] = outcome
        report(len(outcomes) / len(everything))

    runner, jobs = jobs_of(missing, {"setup": prepared.main}, store, Local(options.workers))
    run_trials(runner, jobs, done, lambda key, fraction: None, lambda fraction: None)
    for outcome in outcomes.values():
        if outcome.failure:
            raise SystemExit(f"A run failed with {': '.join(outcome.failure)}")
    return {name: [outcomes[trial.key] for trial in of] for name, of in trials.items()}


def page(cells: list[Cell], options: argparse.Namespace) -> str:
    """Markdown."""
    head = ["weights", "B", "attack", "weight", "NCC", "PSNR", "first", "p(ranks)", "term"]
    rows: list[list[object]] = []
    for cell in cells:
        for name, of in cell.outcomes.items():
            scores = [o.score for o in of]
            ranks = [s.ranks for s in scores]
            first = sum(rank == 1 for client in ranks for rank in client)
            term = statistics.fmean(o.objective for o in of)
            figures = [
                cell.chosen.get(ATTACKS.get(name, ""), ""),
                interval(cell.ncc[name], ".3f"),
                f"{statistics.fmean(v for s in scores for v in s.values['psnr']):.1f}",
                f"{first} of {sum(map(len, ranks))}",
                f"{rank_sum_p(ranks, [s.galleries for s in scores]):.2g}",
                "" if math.isnan(term) else f"{term:.3g}",
            ]
            rows.append([cell.weights, cell.batch, name, *figures])
    compared: list[list[object]] = []
    for cell in cells:
        found = [_compared(cell, left, right) for left, right in COMPARED]
        for (title, gains, p, decibels), corrected in zip(found, holm([row[2] for row in found]), strict=True):
            differences = interval(gains, "+.3f"), f"{p:.2g}", f"{corrected:.2g}", interval(decibels, "+.2f")
            compared.append([cell.weights, cell.batch, title, *differences])
    accuracies = ", ".join(f"{cell.weights} {cell.accuracy:.0%}" for cell in cells if cell.batch == cells[0].batch)
    lines = [
        *table(head, rows),
        *table(["weights", "B", "comparison", "NCC", "p", "Holm", "PSNR"], compared),
        f"{options.victims} clients, {options.steps} iterations. Accuracy on public pictures: {accuracies}.",
        f"{versions()}.",
    ]
    return "\n".join(lines) + "\n"


def _compared(cell: Cell, left: str, right: str) -> tuple[str, list[float], float, list[float]]:
    def decibels(name: str) -> list[float]:
        return [statistics.fmean(o.score.values["psnr"]) for o in cell.outcomes[name]]

    def minus(a: list[float], b: list[float]) -> list[float]:
        return [x - y for x, y in zip(a, b, strict=True)]

    gains = minus(cell.ncc[left], cell.ncc[right])
    return f"{left} − {right}", gains, paired_p(gains), minus(decibels(left), decibels(right))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, help="Of ResNet-20 on CIFAR-10.")
    parser.add_argument("--resnet20", default="tests/models/akamaster.py:resnet20", help="Its architecture.")
    parser.add_argument("--out", type=Path, default=Path("runs/statistics"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--victims", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="Part of a cell's name, such as 'random 4'.")
    options = parser.parse_args()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        chosen: dict[str, dict[str, float]] = {}
        cells = []
        for cell, plan in plans(options).items():
            kind = cell[0]
            if kind not in chosen:
                rehearsals = options.out / f"{kind.replace(' ', '-')}-rehearsals"
                chosen[kind] = rehearse(rehearsals, plan, options, bar)
            cells.append(run(cell, plan, chosen[kind], options, bar))
    publish(page(cells, options), options.out / "table.md")


if __name__ == "__main__":
    main()
