"""What defences leave, to an attacker who knows them and to one who does not.

    python -m benchmarks.defences

One small network, the same clients in every row, one attack. The naive attacker takes the update for an undefended one.
Prints a table in Markdown.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch

from leakmap import Batch, LocalRule, Plan, ThreatModel, attack, observe, score, simulate
from leakmap.attacker.matching.context import SearchContext
from leakmap.attacker.matching.residual import update_residual
from leakmap.auditing.prepare import Prepared, prepare

DEFENCES = (
    "none",
    "clip_noise,clip=1.0,noise=0.001",
    "clip_noise,clip=1.0,noise=0.01",
    "dp_sgd,clip=1.0,noise=1.0",
    "topk,keep=0.1",
    "topk,keep=0.01",
    "quantise,bits=4",
    "quantise,bits=2",
    "sign",
    "percentile",
    "percentile,percentile=90,gamma=0.001",
    "svt",
    "svt,noise_var=100,gamma=0.001",
)


def row(prepared: Prepared, defence: str, assumed: str, steps: int) -> tuple[float, int, float]:
    """Mean PSNR, pictures ranked first of 41, and median distance at the truth, over all clients."""
    network, groups = prepared.main.network, prepared.main.groups
    values, first, at_truth = [], 0, []
    for client, index in enumerate(groups.victims):
        batch = Batch(groups.pictures(index), groups.labels[index])
        rule = LocalRule(defence=defence)
        seen = observe(simulate(network, rule, batch, client), ThreatModel("known"))
        seen = replace(seen, rule=replace(rule, defence=assumed))
        found = score(
            attack(seen, f"inverting_gradients,steps={steps}", client),
            batch,
            [groups.pictures(groups.distractors[:40])] * len(batch.y),
        )
        values += found.values["psnr"]
        first += sum(rank == 1 for rank in found.ranks)
        context = SearchContext(seen, seen.rule or rule, batch.y, 0)
        at_truth.append(update_residual(context, network.task.normalize(batch.pictures)))
    return statistics.fmean(values), first, statistics.median(at_truth)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="convnet,width=16")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1, help="0 is where what an attack descends on was chosen.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = Plan(options.model, "samples", victims=options.clients, batch_size=options.batch_size, seed=options.seed)
    prepared = prepare(plan)
    pictures = options.clients * options.batch_size
    print("| defence | distance at the truth | PSNR, knows | first, knows | PSNR, naive | first, naive | s |")
    print("|---|---|---|---|---|---|---|")
    for defence in DEFENCES:
        started = time.process_time()
        psnr, first, truth = row(prepared, defence, defence, options.steps)
        seconds = time.process_time() - started
        naive = (psnr, first) if defence == "none" else row(prepared, defence, "none", options.steps)[:2]
        print(
            f"| `{defence}` | {truth:.1g} | {psnr:.1f} | {first} of {pictures} | {naive[0]:.1f} | "
            f"{naive[1]} of {pictures} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
