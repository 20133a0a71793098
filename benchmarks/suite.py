"""Does the suite do as well as the best of its members alone?

    python -m benchmarks.suite [--data DIR] [--only CELL ...] [--out FOLDER] [--page]

DIR holds ``cifar10/cifar10_subset.npz``, whose test pictures are the clients' and whose training pictures are public,
and ``weights``; without it pictures are tiles of photographs, and no network is trained. Eight small networks are
attacked in training and in inference mode, by the suite and by each of its members alone, which is fitted to all public
pictures; the suite keeps some of them for rehearsals. Every cell is stored when it is finished, and the same command
continues. With ``--page`` what is measured so far is written to docs/results/suite.md.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cases import run_cases
from benchmarks.clients import RESNETS, neutral
from benchmarks.markdown import interval, measured_with, table, versions
from leakmap.attacker.attacks.strongest import SUITE, applying, member_specs
from leakmap.auditing.prepare import Prepared, granting, prepare
from leakmap.errors import NotApplicable
from leakmap.local_rule import LocalRule
from leakmap.plan.plan import Plan, Progress
from leakmap.registry.spec import Spec
from leakmap.runs.fitting import forget_fitted
from leakmap.runs.run import held_by, run, seen_by_server
from leakmap.runs.trial import Trial
from leakmap.scoring.lineup import ncc
from leakmap.scoring.statistics import mean_interval
from leakmap.threat import ThreatModel

PAGE = Path("docs/results/suite.md")
RESNET20 = f"{RESNETS}:resnet20"
NETWORKS = {
    "convnet": "convnet,width=32",
    "convnet-batch": "convnet,width=32,norm=batch",
    "pre": "resnet,blocks=1-1-1,width=24,preact=true",
    "post": "resnet,blocks=1-1-1,width=24,preact=false",
    "group": "resnet,blocks=1-1-1,width=24,preact=false,norm=group",
    "mlp": "mlp,hidden=128",
    "vit": "vit,dim=48,depth=2",
    "resnet20": RESNET20,
}
UNTRAINED = "convnet,depth=4,width=32,activation=gelu,head=pool"
"""In place of the trained network, where there are no weights."""
TIE = 1e-3
"""NCC that nobody sees: closed forms that read a picture differ in its last digits, by the same amount each time."""
CELLS = tuple(f"{network}-{mode}" for network in NETWORKS for mode in ("train", "eval"))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100, help="Iterations of every search.")
    parser.add_argument("--simulated", type=int, default=1500, help="Clients that an inverse is fitted to.")
    parser.add_argument("--public", type=int, default=1500, help="Public pictures, with --data.")
    run_cases(parser, CELLS, PAGE, measured, page)


def measured(cell: str, options: argparse.Namespace, told: Progress) -> dict[str, Any]:
    """The NCC of every client by the suite and by each member that applies."""
    plan = plan_of(cell, options)
    prepared = prepare(plan)
    plan = granting(plan, prepared.main.groups)
    first = Trial(prepared.main.digest, plan.rule, plan.threat, plan.attack)
    members = applying(plan.attack, seen_by_server(first, prepared.main))
    found: dict[str, list[float]] = {}
    notes: dict[str, Any] = {}
    chosen_by: dict[str, Any] = {}
    for place, spec in enumerate((plan.attack, *members)):
        share = lambda fraction, p=place: told(cell, (p + fraction) / (1 + len(members)))  # noqa: E731
        values, said, rehearsed = _reached(plan, prepared, spec, share)
        if values is not None:
            found[spec.name] = values
        notes[spec.name] = said
        if not place:
            chosen_by = rehearsed
    forget_fitted()
    return {
        "model": "ResNet-20, trained" if plan.weights else plan.model,
        "mode": plan.rule.mode,
        "public": plan.threat.public,
        "ncc": found,
        "notes": notes,
        "rehearsed": chosen_by,
        **{name: getattr(options, name) for name in ("clients", "steps", "simulated")},
        "versions": versions(),
    }


def plan_of(cell: str, options: argparse.Namespace) -> Plan:
    """The audit of a cell."""
    name, _, mode = cell.rpartition("-")
    suite = Spec(SUITE, {"steps": options.steps, "learned_inverse.clients": options.simulated})
    threat = ThreatModel("known", public=options.public if options.data else "auto")
    trained = options.data is not None and name == "resnet20"
    return Plan(
        UNTRAINED if name == "resnet20" and not trained else NETWORKS[name],
        f"npz:{options.data / 'cifar10/cifar10_subset.npz'}" if options.data else "samples",
        LocalRule(mode="train" if mode == "train" else "eval"),
        threat,
        suite,
        weights=str(options.data / "weights/cifar10_resnet20-12fca82f.th") if trained else None,
        image_size=32,
        victims=options.clients,
        normalization="imagenet" if trained else "data",
        seed=21,
    )


def _reached(
    plan: Plan, prepared: Prepared, spec: Spec, told: Any
) -> tuple[list[float] | None, list[Any], dict[str, Any]]:
    """NCC with each client's picture, which member answered or what failed, and what its members rehearsed; in place of
    the NCC None where it applies to no client.

    A failure, and a client that it does not apply to, count as 0.
    """
    values: list[float] = []
    said: list[Any] = []
    failures: list[str] = []
    rehearsed: dict[str, Any] = {}
    trial = Trial(prepared.main.digest, plan.rule, plan.threat, spec, seed=plan.seed)
    for client in range(plan.victims):
        own = replace(trial, client=client)
        outcome = run(own, prepared.main, lambda fraction, c=client: told((c + fraction) / plan.victims))
        if outcome.failure is not None or outcome.score is None:
            failures.append((outcome.failure or ("", ""))[0])
            said.append(neutral(": ".join(outcome.failure or ())))
            values.append(0.0)
            continue
        values.append(ncc(outcome.score.pictures, held_by(own, prepared.main).pictures))
        said.append(outcome.notes.get("won"))
        prefix = "rehearsed NCC of "
        rehearsed = {n.removeprefix(prefix): ncc for n, ncc in outcome.notes.items() if n.startswith(prefix)}
    return (None if failures == [NotApplicable.__name__] * plan.victims else values), said, rehearsed


def compared(entry: Mapping[str, Any]) -> tuple[str, list[float]]:
    """The best member of a cell, by the mean over its clients, and the suite less it on every client."""
    ncc_of: dict[str, list[float]] = entry["ncc"]
    best = max((name for name in ncc_of if name != SUITE), key=lambda name: math.fsum(ncc_of[name]))
    return best, [own - other for own, other in zip(ncc_of[SUITE], ncc_of[best], strict=True)]


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page."""
    names = [spec.name for spec in member_specs(Spec(SUITE))]
    used = [name for name in names if any(name in entry["ncc"] for entry in found.values())]
    compared_to = {cell: compared(entry) for cell, entry in found.items()}
    # As good as the best within the interval: what the clients show does not exclude it.
    good = [cell for cell, (_, gains) in compared_to.items() if mean_interval(gains).high >= -TIE]
    first: Mapping[str, Any] = next(iter(found.values()), {})
    lines = [
        "# The suite beside its members",
        "",
        "    python -m benchmarks.suite --data DIR --page     # an hour of one core",
        "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().split("\n"),
        "",
        f"Mean NCC over {first.get('clients')} clients with one picture each; searches take {first.get('steps')} "
        f"steps, the inverse {first.get('simulated'):,} simulated clients. The best member is chosen by the same "
        "clients that it is compared on, which favours it. Intervals are 95 %, paired by client.",
        "",
        f"**At or above the best member within its interval in {len(good)} of {len(found)}.** {_beside(found, names)}",
        "",
        measured_with(found.values()),
        "",
    ]
    rows = [
        (
            f"`{entry['model']}`",
            entry["mode"],
            interval(entry["ncc"][SUITE], ".2f"),
            _won(entry["notes"][SUITE]),
            compared_to[cell][0],
            interval(compared_to[cell][1], "+.3f"),
            "yes" if cell in good else "no",
            *(f"{math.fsum(own) / len(own):.2f}" if (own := entry["ncc"].get(name)) else "" for name in used),
        )
        for cell, entry in found.items()
    ]
    head = ("network", "mode", "suite", "answered by", "best member", "suite less it", "at or above", *used)
    return "\n".join([*lines, *table(head, rows)])


def _beside(found: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """The suite over all cells, beside the member that is best over them, and what so few clients can show."""
    mean = lambda values: math.fsum(values) / len(values)  # noqa: E731
    over = {name: mean([mean(entry["ncc"].get(name, [0.0])) for entry in found.values()]) for name in (SUITE, *names)}
    single = max(names, key=lambda name: over[name])
    intervals = [mean_interval(gains) for _, gains in map(compared, found.values())]
    widths = sorted((own.high - own.low) / 2 for own in intervals)
    return (
        f"Over all cells the suite comes to {over[SUITE]:.2f}, the best single member, `{single}`, to "
        f"{over[single]:.2f}. So few clients show differences of {widths[len(widths) // 2]:.2f} (median half-width of "
        f"the intervals; the widest: {widths[-1]:.2f}). Networks without BatchNorm or dropout compute the same in both "
        "modes."
    )


def _won(answers: Sequence[str | None]) -> str:
    """Which members answered for how many clients."""
    return ", ".join(f"{name} {answers.count(name)}" for name in dict.fromkeys(answers) if name)


if __name__ == "__main__":
    main()
