"""Which update residual should choose among the results of the suite? Measured on clients with public pictures.

    python -m benchmarks.residual --data npz:cifar10_subset.npz

The network and the rule are those of the first client of docs/results/reference-clients.md, the pictures those of
rehearsals and so of no victim there. Each client is attacked by every member of the suite that applies. Of their
results one is chosen by the update alone, by the update and the returned running statistics, or, as the most that any
choice can reach, by the truth. Prints markdown.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.markdown import interval, versions
from leakmap.attacker.attack import attack
from leakmap.attacker.attacks.strongest import SUITE
from leakmap.attacker.buffers import assumed_rule
from leakmap.attacker.matching.context import SearchContext
from leakmap.attacker.matching.residual import buffer_residual, update_residual
from leakmap.auditing.prepare import prepare
from leakmap.plan.plan import Plan
from leakmap.registry.spec import Spec
from leakmap.runs.run import held_by, seen_by_server
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Trial
from leakmap.scoring.lineup import ncc
from leakmap.scoring.match import matched
from leakmap.scoring.statistics import paired_p
from leakmap.seeds import derive
from leakmap.threat import ThreatModel

MODEL, VICTIMS = "resnet,blocks=1-1-1,width=24,preact=true", 12
"""Of the page: with the same victims set apart, no rehearsal is one of them."""


@dataclass(frozen=True)
class Result:
    """What one member of the suite came to on one client.

    Args:
        name: Of the member.
        update: How much of the update it leaves unexplained.
        buffers: How much of the returned running statistics.
        ncc: With the truth.
    """

    name: str
    update: float
    buffers: float
    ncc: float


UPDATE, BOTH, TRUTH = "the update alone", "the update and the returned running statistics", "the truth (oracle)"
CHOICES: dict[str, Callable[[Result], float]] = {
    UPDATE: lambda result: result.update,
    BOTH: lambda result: result.update + result.buffers,
    TRUTH: lambda result: -result.ncc,
}
"""Yardstick -> what is lowest for the result that it chooses."""


def results(trial: Trial, setup: Setup, told: Callable[[float], None]) -> list[Result]:
    """What every member that applies came to on one client."""
    observation, truth = seen_by_server(trial, setup), held_by(trial, setup).pictures
    seed = derive(trial.seed, "attack", trial.client)
    found: list[Result] = []
    for attempt in attack(observation, trial.attack, seed, told).attempts:
        if attempt.failed:
            raise SystemExit(f"{attempt.name} failed with {attempt.note}")
        if attempt.pictures is None or attempt.y is None:
            continue
        context = SearchContext(observation, assumed_rule(observation).rule, attempt.y, derive(seed, "yardstick"))
        x = setup.network.task.normalize(attempt.pictures)
        unexplained = update_residual(context, x), buffer_residual(context, x)
        found.append(Result(attempt.name, *unexplained, ncc(matched(attempt.pictures, truth), truth)))
    return found


def table(clients: list[list[Result]], options: argparse.Namespace) -> str:
    """Markdown."""
    rows = ["| result | NCC | clients |", "|---|---|---|"]
    for name in dict.fromkeys(result.name for of in clients for result in of):
        alike = [result.ncc for of in clients for result in of if result.name == name]
        rows.append(f"| always `{name}` | {interval(alike, '.3f')} | {len(alike)} |")
    chosen = {choice: [min(of, key=lowest) for of in clients] for choice, lowest in CHOICES.items()}
    for choice, best in chosen.items():
        counts = ", ".join(f"`{name}` {count}" for name, count in Counter(result.name for result in best).most_common())
        rows.append(f"| chosen by {choice} | {interval([r.ncc for r in best], '.3f')} | {counts} |")
    gains = [b.ncc - a.ncc for a, b in zip(chosen[UPDATE], chosen[BOTH], strict=True)]
    rows += ["", f"Gain of the second choice over the first: {interval(gains, '+.3f')}, p {paired_p(gains):.2g}."]
    rows += [f"`{options.model}`, {len(clients)} clients with public pictures, {options.steps} iterations."]
    return "\n".join(rows) + f" {versions()}."


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--weights", help="File with weights; without one they are random.")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = Plan(options.model, options.data, threat=ThreatModel(public=0), weights=options.weights, victims=VICTIMS)
    setup = prepare(plan, rehearsals=options.clients).main
    suite, seed = Spec(SUITE, {"steps": options.steps}), derive(plan.seed, "rehearsals")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    clients: list[list[Result]] = []
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("clients", total=options.clients)
        for client in range(options.clients):
            trial = Trial(setup.digest, plan.rule, plan.threat, suite, "rehearsals", client, seed=seed)
            clients.append(results(trial, setup, lambda share, done=client: bar.update(task, completed=done + share)))
    print(table(clients, options))


if __name__ == "__main__":
    main()
