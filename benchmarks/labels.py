"""How many labels each rule recovers, beside what its confidence says.

    python -m benchmarks.labels --data npz:cifar10_subset.npz > docs/results/labels.md

Every rule reads the same updates: three networks, untrained and briefly trained, classes drawn at random with
repetition. Overlap is that of the multisets, in [0, 1].
"""

import argparse
import statistics

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.markdown import versions
from leakmap import LocalRule, Plan, ThreatModel, label_rules, observe, simulate
from leakmap.attacker.labels import recover
from leakmap.auditing.prepare import prepare
from leakmap.client.simulate import Batch
from leakmap.errors import NotApplicable, NotGranted
from leakmap.observation.contents import Public
from leakmap.report.markdown import wrapped
from leakmap.scoring.score import overlap
from leakmap.seeds import generator

NETWORKS = ("convnet,width=16", "resnet,blocks=1-1,width=16", "mlp,hidden=64")
PUBLIC, REPEATS = 64, 4
CLIENTS = {
    "1 picture": (1, LocalRule()),
    "1 picture, eval": (1, LocalRule(mode="eval")),
    "16, one step": (16, LocalRule()),
    "16, one step, eval": (16, LocalRule(mode="eval")),
    "16, 5 epochs, lr 0.01": (16, LocalRule("delta", epochs=5)),
    "16, 5 epochs of 4, lr 0.003": (16, LocalRule("delta", epochs=5, batch_size=4, lr=0.003)),
    "16, Adam, one step": (16, LocalRule("delta", optimizer="adam", lr=0.001)),
}
EPOCHS = {"untrained": 0, "trained": 3}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    setups = [
        (
            kind,
            prepare(Plan(model, options.data, threat=ThreatModel(public=PUBLIC), victims=12, train_epochs=epochs)).main,
        )
        for kind, epochs in EPOCHS.items()
        for model in track(NETWORKS, f"preparing {kind}", console=Console(stderr=True), transient=True)
    ]
    rules = ["auto", *label_rules.names()]
    found: dict[tuple[str, str, int, str], list[tuple[float, float]]] = {}
    for kind, setup in track(setups, "clients", console=Console(stderr=True), transient=True):
        groups = setup.groups
        pool = groups.distractors
        for client, (count, rule) in CLIENTS.items():
            for repeat in range(REPEATS):
                drawn = pool[torch.randint(len(pool), (count,), generator=generator(repeat, client))]
                batch = Batch(groups.pictures(drawn), groups.labels[drawn])
                round = simulate(setup.network, rule, batch, repeat)
                for public in (0, PUBLIC):
                    shown = Public(groups.pictures(groups.public), groups.labels[groups.public])
                    observation = observe(round, ThreatModel(public=public), shown)
                    for name in rules:
                        try:
                            labels = recover(observation, name, repeat)
                        except (NotApplicable, NotGranted):
                            continue
                        values = overlap(labels.y, batch.y), labels.confidence
                        found.setdefault((client, kind, public, name), []).append(values)
    print(wrapped(page(rules, found)))


def page(rules: list[str], found: dict[tuple[str, str, int, str], list[tuple[float, float]]]) -> str:
    """Markdown."""
    lines = [
        "# Label recovery",
        "",
        "Mean overlap of recovered and true classes (1 is all right), with the mean confidence that the rule reports "
        "behind it. A dash: the rule does not apply. `auto` is what attacks use.",
        "",
        "    python -m benchmarks.labels --data npz:cifar10_subset.npz > docs/results/labels.md     # minutes",
        "",
        f"| client | network | public | {' | '.join(f'`{rule}`' for rule in rules)} |",
        "|---|---|---|" + "---|" * len(rules),
    ]
    for client in CLIENTS:
        for kind in EPOCHS:
            for public in (0, PUBLIC):
                cells = []
                for rule in rules:
                    values = zip(*found.get((client, kind, public, rule), []), strict=True)
                    cells.append(" ".join(f"{statistics.fmean(v):.2f}" for v in values) or "–")
                lines.append(f"| {client} | {kind} | {public} | {' | '.join(cells)} |")
    networks = ", ".join(f"`{network}`" for network in NETWORKS)
    lines += ["", f"{networks}; {REPEATS} clients of each; trained: 3 epochs on pictures that no client holds."]
    lines += [f"CIFAR-10, ten classes. {versions()}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
