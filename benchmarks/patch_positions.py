"""How well `patch_positions` reads pictures: on vision transformers, and from updates that are not exact gradients.

    python -m benchmarks.patch_positions --large folder:imagenet_samples/images --small npz:cifar10_subset.npz

Writes docs/results/patch-positions.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from benchmarks.markdown import publish, table, versions
from leakmap.attacker.attacks.patch_positions import PatchPositions
from leakmap.attacker.gradients import mean_gradient
from leakmap.attacker.patches import readable_patches
from leakmap.auditing.prepare import prepare
from leakmap.errors import NotApplicable
from leakmap.local_rule import LocalRule
from leakmap.observation.contents import Update
from leakmap.observation.observation import Observation
from leakmap.plan.plan import Plan
from leakmap.registry.spec import Spec
from leakmap.runs.run import held_by, seen_by_server
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Trial
from leakmap.scoring.exposure import EXACT_PSNR
from leakmap.scoring.metrics.psnr import decibels
from leakmap.seeds import generator

PAGE = Path("docs/results/patch-positions.md")
LARGE = (
    "timm/vit_small_patch16_224,head_std=0.02",
    "timm/deit_small_patch16_224,head_std=0.02",
    "timm/vit_base_patch16_clip_224,head_std=0.02",
    "timm/vit_small_patch14_dinov2,head_std=0.02",
    "torchvision/vit_b_16,head_std=0.02",
)
SMALL = "vit,patch=4,depth=6"
FIXED = (1e-4, 1e-2)
"""Cuts at a share of the largest singular value, beside which the chosen one stands."""
Change = Callable[[Observation], Observation]

GRADIENT, SGD = LocalRule(), LocalRule("delta", lr=0.01)


@dataclass(frozen=True)
class Condition:
    """How an update comes about.

    Args:
        told: In words.
        rule: What the client does.
        change: What happens to its update before the server has it.
        count: Pictures of the client.
    """

    told: str
    rule: LocalRule = GRADIENT
    change: Change = lambda observation: observation
    count: int = 1


def every(tensors: Callable[[Tensor], Tensor]) -> Change:
    """A change of each tensor of the update."""

    def change(observation: Observation) -> Observation:
        update = observation.update
        changed = {name: tensors(tensor) for name, tensor in update.tensors.items()}
        return replace(observation, update=Update(update.kind, changed))

    return change


def noisy(share: float) -> Change:
    """Gaussian noise whose norm is a share of that of each tensor."""
    source = generator(0, "noise")

    def add(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=source)
        return tensor + share * tensor.norm() / tensor.numel() ** 0.5 * noise

    return every(add)


CONDITIONS = (
    Condition("gradient, float32"),
    Condition("gradient rounded to float16", change=every(lambda tensor: tensor.half().to(tensor.dtype))),
    Condition("gradient rounded to bfloat16", change=every(lambda tensor: tensor.bfloat16().to(tensor.dtype))),
    Condition("gradient with noise of 1 % of each tensor's norm", change=noisy(0.01)),
    Condition("gradient with noise of 10 %", change=noisy(0.1)),
    Condition("delta of 1 step of SGD, lr 0.01", SGD),
    Condition("delta of 3 steps", replace(SGD, epochs=3)),
    Condition("delta of 10 steps, momentum 0.9", replace(SGD, epochs=10, momentum=0.9)),
    Condition("delta of 3 steps, weight decay 0.01", replace(SGD, epochs=3, weight_decay=0.01)),
    Condition("gradient under `quantise,bits=8`", LocalRule(defence="quantise,bits=8")),
    Condition("gradient under `clip_noise,noise=0`", LocalRule(defence="clip_noise,noise=0")),
    Condition("gradient under `topk,keep=0.1`", LocalRule(defence="topk,keep=0.1")),
    Condition("delta of 1 step of Adam", replace(SGD, optimizer="adam")),
    Condition("gradient of 2 pictures", count=2),
)


@dataclass(frozen=True)
class Read:
    """What the attack came to on one client.

    Args:
        psnr: In dB, at most 60.
        fixed: The same with each of the fixed cuts.
        seconds: CPU seconds of the attack.
    """

    psnr: float
    fixed: tuple[float, ...]
    seconds: float


def setup_of(model: str, data: str, options: argparse.Namespace, *, size: int | None, epochs: int, count: int) -> Setup:
    """The network and the clients' pictures, as an audit has them."""
    plan = Plan(model, data, image_size=size, victims=options.victims, train_epochs=epochs, batch_size=count)
    return prepare(plan).main


def read(setup: Setup, condition: Condition, client: int, *, fixed: bool = False) -> Read:
    """Attacks one client.

    Raises:
        NotApplicable: the closed form does not apply.
    """
    trial = Trial(setup.digest, condition.rule, Plan("", "").threat, Spec("patch_positions"), client=client)
    truth, observation = held_by(trial, setup).pictures, condition.change(seen_by_server(trial, setup))
    started = time.process_time()
    found = PatchPositions()(observation, 0, lambda fraction: None).pictures
    seconds = time.process_time() - started
    task = setup.network.task
    others: list[float] = []
    if fixed:
        patches = readable_patches(observation)
        gradient = mean_gradient(observation, (patches.position, patches.embedding))
        tokens, weight = patches.of_tokens(gradient[patches.position]), gradient[patches.embedding].flatten(1)
        for share in FIXED:
            solved = torch.linalg.pinv(tokens.T, rtol=share) @ weight
            others.append(psnr(task.denormalize(patches.picture(solved, task)), truth))
    return Read(psnr(found, truth), tuple(others), seconds)


def psnr(pictures: Tensor, truth: Tensor) -> float:
    """Of one picture, in dB."""
    return float(decibels((pictures.double().clamp(0, 1) - truth.double()).square().mean()))


def row(name: str, clients: Sequence[Read]) -> list[str]:
    """Of a table: name, clients that are read exactly, lowest and median PSNR."""
    values = [client.psnr for client in clients]
    exact = sum(value >= EXACT_PSNR for value in values)
    return [name, f"{exact} of {len(values)}", f"{min(values):.1f}", f"{statistics.median(values):.1f}"]


def updates_row(setup: Setup, condition: Condition, victims: int) -> list[str]:
    """Of one condition: what :func:`row` says and the medians of the fixed cuts, or the reason of the refusals."""
    clients: list[Read] = []
    reasons: list[str] = []
    for client in range(victims):
        try:
            clients.append(read(setup, condition, client, fixed=True))
        except NotApplicable as error:
            reasons.append(str(error).rpartition(f"{setup.network.model}: ")[2])
    if not clients:
        return [condition.told, f"refused: {reasons[0]}", *[""] * (2 + len(FIXED))]
    told = condition.told + (f" ({len(reasons)} of {victims} refused as noise)" if reasons else "")
    fixed = [f"{statistics.median(client.fixed[place] for client in clients):.1f}" for place in range(len(FIXED))]
    return [*row(told, clients), *fixed]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--large", required=True, help="Pictures for networks that take 224 pixels.")
    parser.add_argument("--small", required=True, help="Pictures for the project's own transformer.")
    parser.add_argument("--victims", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5, help="Of the brief training.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = [(model, options.large, 224, 0) for model in LARGE]
    networks += [(SMALL, options.small, None, 0), (SMALL, options.small, None, options.epochs)]
    rows: list[list[str]] = []
    for model, data, size, epochs in track(networks, "networks"):
        setup = setup_of(model, data, options, size=size, epochs=epochs, count=1)
        clients = [read(setup, CONDITIONS[0], client) for client in range(options.victims)]
        pixels, seconds = setup.network.task.shape[1], statistics.median(client.seconds for client in clients)
        told = f"`{model}`" + (f", trained for {epochs} epochs" if epochs else "")
        rows.append([*row(told, clients), str(pixels), f"{clients[0].seconds:.1f}", f"{seconds:.2f}"])
    setups = {n: setup_of(LARGE[0], options.large, options, size=224, epochs=0, count=n) for n in (1, 2)}
    changed: list[list[str]] = []
    for condition in track(CONDITIONS, "updates"):
        changed.append(updates_row(setups[condition.count], condition, options.victims))
    publish(page(rows, changed, options), PAGE)


def page(networks: list[list[str]], updates: list[list[str]], options: argparse.Namespace) -> str:
    """Markdown."""
    cuts = [f"median, cut at {share:g}" for share in FIXED]
    reached = ["read exactly", "lowest PSNR", "median PSNR"]
    return "\n".join(
        [
            "# Patches read off the gradients of their positions",
            "",
            f"`patch_positions` on {options.victims} clients of one picture each, in training mode, with random "
            f"weights unless said otherwise. A picture is read exactly from {EXACT_PSNR:.0f} dB on, as in "
            "[the verdict](../verdict.md); PSNR is told up to 60 dB.",
            "",
            "    python -m benchmarks.patch_positions --large folder:imagenet_samples/images "
            "--small npz:cifar10_subset.npz     # minutes",
            "",
            "## Networks",
            "",
            "From one gradient. Heads are drawn with a deviation of 0.02; torchvision's own is zero and sends zeros. "
            "Seconds are CPU seconds of the attack on one client: on the first the positions and the head are found by "
            "running the network, and kept for the others, of whom the median is told.",
            "",
            *table(["network", *reached, "pixels", "first client, s", "next, s"], networks),
            "An audit shows the same with floors and controls; where no attack is named, the suite runs this one:",
            "",
            f"    leakmap audit --model {LARGE[0]} --data folder:imagenet_samples/images --image-size 224     "
            "# its first line says how long",
            "",
            "## Updates",
            "",
            f"Of `{LARGE[0]}`. The gradient of the class token is the largest part of that of the positions, so noise "
            "in proportion to the whole is far larger beside those of the patches. The last columns have "
            "a cut of singular values at a fixed share of the largest in place of the one that the residual chooses.",
            "",
            *table(["update", *reached, *cuts], updates),
            f"One thread. {versions()}.",
        ]
    )


if __name__ == "__main__":
    main()
