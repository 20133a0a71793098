"""What one iteration of an attack costs, in plain training steps of the client.

    python -m benchmarks.cost > docs/results/cost.md

Rounds are interleaved; each figure is the median over rounds of the ratio to the training step of the same round.
"""

import statistics
import sys
import time

import torch
from rich.progress import track

from benchmarks.markdown import versions
from leakmap import LocalRule, Task, ThreatModel, attacks, build_network, observe, simulate
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.client.simulate import Batch
from leakmap.client_step import arrange, local_signal
from leakmap.errors import NotApplicable
from leakmap.observation.contents import Public
from leakmap.registry.spec import Spec
from leakmap.report.markdown import wrapped

ROUNDS, ITERATIONS, BATCH = 3, 6, 4
NETWORKS = ("convnet", "resnet,blocks=1-1-1,width=24,preact=true,dropout=0.1", "resnet,blocks=2-2-2,width=16")


def main() -> None:
    """The command."""
    torch.set_num_threads(1)
    task = Task((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)
    names = [name for name in attacks.names() if isinstance(attacks.build(name), GradientMatching)]
    names.remove("prior_only")
    rows: dict[str, list[str]] = {name: [] for name in names}
    pictures = torch.rand(BATCH, *task.shape, generator=torch.Generator().manual_seed(0))
    batch, public = Batch(pictures, torch.arange(BATCH)), Public(pictures.flip(0), torch.arange(BATCH))
    rule = LocalRule("delta", epochs=2, batch_size=2)
    for model in track(NETWORKS, console=None, disable=not sys.stderr.isatty()):
        network = build_network(task, model)
        for name in names:
            client = rule if name == "dimitrov" else LocalRule()
            round = simulate(network, client, batch)
            observation = observe(round, ThreatModel("known", public=BATCH), public)
            attack = attacks.build(Spec(name, {"steps": ITERATIONS}))
            try:
                rows[name].append(f"{_ratio(attack, observation, network, client, batch):.1f}")
            except NotApplicable:
                rows[name].append("–")
    print("# What an iteration costs\n")
    about = (
        "In plain training steps (forward and backward, as the client takes them) on the same network, "
        f"batch {BATCH}, 32 px: the median of {ROUNDS} interleaved rounds. L-BFGS evaluates several times in an "
        "iteration; dimitrov simulates a client of four local steps; a dash: without BatchNorm the attack does not "
        "apply.\n"
    )
    print(wrapped(about))
    print("    python -m benchmarks.cost > docs/results/cost.md     # minutes\n")
    print(f"| attack | {' | '.join(f'`{model}`' for model in NETWORKS)} |\n|---|{'---|' * len(NETWORKS)}")
    for name, cells in rows.items():
        print(f"| `{name}` | {' | '.join(cells)} |")
    print(f"\nOne thread. {versions()}.")


def _ratio(attack, observation, network, client, batch) -> float:
    module, loss = arrange(network.module(), client), network.loss()
    x = network.task.normalize(batch.pictures)
    ratios = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(ITERATIONS):
            local_signal(module, network.weights, x, batch.y, client, loss)
        step = time.perf_counter() - started
        started = time.perf_counter()
        attack(observation, 0, lambda fraction: None)
        ratios.append((time.perf_counter() - started) / step)
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
