"""What does an inverse that is fitted before any client answers read, where searches find nothing?

    python -m benchmarks.learned --data DIR [--only CASE ...] [--out FOLDER] [--page]

DIR holds what the table names: ``cifar10/cifar10_subset.npz``, ``pneumoniamnist/pneumoniamnist_balanced.npz``, the
folders ``imagenet_public/images`` and ``imagenet_samples/images`` with their ``labels.csv``, and ``weights``. A case
takes minutes. Each is stored when it is finished, and the same command continues.
With ``--page`` what is measured so far is written to docs/results/learned.md and docs/images/learned-curves.svg.

Victims are test pictures; public pictures are training pictures, or those of ``imagenet_public``. A rank is that of the
true picture among all test pictures of its class, on ImageNet, which has one a class, among all, by NCC with the
reconstructions of its client.
"""

import argparse
import time
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import run_cases
from benchmarks.clients import DELTA, FINE, IMAGENET, RESNETS, Pool, attacked, class_mean, epsilon_of, figures, pool_of
from benchmarks.learned_page import PAGE, PICTURE, curves, page
from benchmarks.markdown import versions
from leakmap.attacker.attack import fit
from leakmap.attacker.attacks import attacks
from leakmap.client.training import accuracy, train
from leakmap.local_rule import LocalRule
from leakmap.models.network import Network, build_network
from leakmap.observation.contents import Public
from leakmap.plan.plan import Progress
from leakmap.problem.task import Task
from leakmap.report.charts import write
from leakmap.threat import ThreatModel, known_before

VICTIMS = 300
SEARCHED = 8
"""Victims that the search attacks too."""
RESNET20 = f"{RESNETS}:resnet20"
SMALL = "resnet,blocks=1-1-1,width=24,preact=false"


@dataclass(frozen=True)
class Case:
    """One row.

    Args:
        title: In the table.
        network: Key of :func:`network_of`.
        rule: The clients' local rule.
        count: Pictures of each client.
        attack: The attack.
        buffers: Whether buffers are returned.
        public: Public pictures; 0: all there are.
        strangers: Whether public pictures are those of ImageNet, at the victims' size.
    """

    title: str
    network: str
    rule: LocalRule = field(default_factory=LocalRule)
    count: int = 1
    attack: str = "learned_inverse"
    buffers: bool = True
    public: int = 0
    strangers: bool = False


def _steps(count: int, **settings: Any) -> LocalRule:
    return LocalRule("delta", batch_size=1, lr=0.01, **settings) if count > 1 else LocalRule("delta", **settings)


UPDATE = "learned_inverse,views=update"
CASES = {
    "r20": Case("trained ResNet-20, returned buffers", "resnet20"),
    "r20-b4": Case("trained ResNet-20, returned buffers, batches of 4", "resnet20", count=4),
    "r20-b16": Case("trained ResNet-20, returned buffers, batches of 16", "resnet20", count=16),
    "r20-k4": Case("trained ResNet-20, returned buffers, 4 local steps of 1 picture", "resnet20", _steps(4), count=4),
    "r20-k16": Case(
        "trained ResNet-20, returned buffers, 16 local steps of 1 picture", "resnet20", _steps(16), count=16
    ),
    "r20-strangers": Case(
        "trained ResNet-20, returned buffers; public pictures are shrunk ImageNet crops", "resnet20", strangers=True
    ),
    "r20-both": Case("trained ResNet-20, buffers and gradient", "resnet20", attack="learned_inverse,views=both"),
    "r20-grad": Case("trained ResNet-20, gradient only", "resnet20", attack=UPDATE, buffers=False),
    "r20-eval": Case(
        "trained ResNet-20 in inference mode, gradient", "resnet20", LocalRule(mode="eval"), attack=UPDATE
    ),
    "xray": Case("chest X-rays, trained small ResNet, returned buffers", "xray"),
    "xray-b4": Case("chest X-rays, returned buffers, batches of 4", "xray", count=4),
    "xray-b16": Case("chest X-rays, returned buffers, batches of 16", "xray", count=16),
    "xray-grad": Case("chest X-rays, gradient only", "xray", attack=UPDATE, buffers=False),
    "xray-k4": Case("chest X-rays, returned buffers, 4 local steps of 1 picture", "xray", _steps(4), count=4),
    "xray-group": Case("chest X-rays, GroupNorm instead, gradient", "xray-group", attack=UPDATE),
    "small": Case("untrained small ResNet, gradient only", "small", attack=UPDATE, buffers=False),
    "small-buffers": Case("untrained small ResNet, returned buffers", "small"),
    "small-b4": Case(
        "untrained small ResNet, gradient only, batches of 4", "small", count=4, attack=UPDATE, buffers=False
    ),
    "small-b8": Case(
        "untrained small ResNet, gradient only, batches of 8", "small", count=8, attack=UPDATE, buffers=False
    ),
    "small-k4": Case("untrained small ResNet, update of 4 steps only", "small", _steps(4), 4, UPDATE, buffers=False),
    "small-adam": Case(
        "untrained small ResNet, update of a step of Adam only",
        "small",
        LocalRule("delta", optimizer="adam", lr=0.001),
        attack=UPDATE,
        buffers=False,
    ),
    "small-dropout": Case(
        "untrained small ResNet, gradient only, dropout .3", "small-dropout", attack=UPDATE, buffers=False
    ),
    **{
        f"small-{defence.partition(',')[0]}{i}": Case(
            f"untrained small ResNet, gradient only, `{defence}`",
            "small",
            LocalRule(defence=defence),
            1,
            UPDATE,
            buffers=False,
        )
        for i, defence in enumerate(
            (
                "sign",
                "topk,keep=0.01",
                "quantise,bits=8",
                "clip_noise,clip=1,noise=0.0001",
                "clip_noise,clip=1,noise=0.001",
                "clip_noise,clip=1,noise=0.01",
            )
        )
    },
    "r18": Case("untrained CIFAR ResNet-18, gradient only", "resnet18", attack=UPDATE, buffers=False),
    "r18-buffers": Case("untrained CIFAR ResNet-18, returned buffers", "resnet18"),
    "r18-trained": Case("CIFAR ResNet-18 trained for two epochs, returned buffers", "resnet18-trained"),
    "mobilenet": Case("MobileNetV2, ImageNet weights, 224 px, returned buffers", "mobilenet"),
    "mobilenet-b4": Case("MobileNetV2, ImageNet weights, 224 px, returned buffers, batches of 4", "mobilenet", count=4),
    "mobilenet-both": Case(
        "MobileNetV2, ImageNet weights, 224 px, buffers and gradient", "mobilenet", attack="learned_inverse,views=both"
    ),
    **{
        f"mobilenet-{side}": Case(
            f"MobileNetV2, ImageNet weights, 224 px, returned buffers, predicted at {side} pixels",
            "mobilenet",
            attack=f"learned_inverse,side={side}",
        )
        for side in (48, 64)
    },
    "efficientnet": Case("EfficientNet-Lite0, ImageNet weights, 224 px, returned buffers", "efficientnet"),
    **{
        f"r20-m{clients}": Case(
            f"ResNet-20, {clients} simulated clients", "resnet20", attack=f"learned_inverse,clients={clients}"
        )
        for clients in (250, 1000, 4000)
    },
    **{f"r20-p{n}": Case(f"ResNet-20, {n} public pictures", "resnet20", public=n) for n in (100, 400, 1600)},
}


@cache
def network_of(data: Path, name: str) -> tuple[Network, Pool]:
    """A network and its pictures."""
    weights = data / "weights"
    if name == "resnet20":
        pool = pool_of(data, "cifar")
        task = Task((3, 32, 32), 10, *IMAGENET)
        return build_network(task, RESNET20, weights=str(weights / "cifar10_resnet20-12fca82f.th")), pool
    if name in ("mobilenet", "efficientnet"):
        pool = pool_of(data, "imagenet")
        model, file, scale = {
            "mobilenet": ("torchvision/mobilenet_v2", "imagenet_mobilenet_v2", IMAGENET),
            "efficientnet": ("timm/tf_efficientnet_lite0", "imagenet_tf_efficientnet_lite0", ((0.5,) * 3, (0.5,) * 3)),
        }[name]
        return build_network(
            Task((3, 224, 224), 1000, *scale), model, weights=str(weights / f"{file}.safetensors")
        ), pool
    pool = pool_of(data, "xray" if name.startswith("xray") else "cifar-halved" if "trained" in name else "cifar")
    shown = pool.public.transpose(0, 1).flatten(1)
    task = Task(
        (pool.victims.shape[1], *pool.victims.shape[2:]),
        pool.classes,
        tuple(shown.mean(1).tolist()),
        tuple(shown.std(1).tolist()),
    )
    model = {
        "xray-group": f"{SMALL},norm=group",
        "small-dropout": f"{SMALL},dropout=0.3",
        "resnet18": "resnet,blocks=2-2-2-2,width=64,preact=false",
        "resnet18-trained": "resnet,blocks=2-2-2-2,width=64,preact=false",
    }.get(name, SMALL)
    network = build_network(task, model, seed=11)
    epochs = {"xray": 8, "xray-group": 8, "resnet18-trained": 2}.get(name, 0)
    return (train(network, pool.training, pool.training_y, epochs, 11) if epochs else network), pool


def measured(case: Case, data: Path, searched: int, told: Progress) -> dict[str, Any]:
    """Fits, attacks every victim, and says what was reached."""
    network, pool = network_of(data, case.network)
    public, public_y = pool.public, pool.public_y
    if case.strangers:
        other = pool_of(data, "imagenet")
        crops = [other.public[:, :, t : t + 112, w : w + 112] for t in (0, 112) for w in (0, 112)]
        public = torch.nn.functional.interpolate(torch.cat(crops), network.task.shape[1:], mode="area")
        public_y = torch.arange(len(public)) % network.task.classes
    if case.public:
        public, public_y = public[: case.public], public_y[: case.public]
    threat = ThreatModel("known", buffers=case.buffers, public=len(public))
    began = time.process_time()
    setting = known_before(network, case.rule, case.count, threat, Public(public, public_y))
    fitted = fit(attacks.build(case.attack), setting, 3, lambda fraction: told(case.title, 0.9 * fraction))
    fitting = time.process_time() - began
    clients = min(VICTIMS, len(pool.y) // case.count)
    index = torch.arange(clients * case.count).view(clients, case.count)
    found = [attacked(case, network, pool, own, fitted, i) for i, own in enumerate(index)]
    attacking = (time.process_time() - began - fitting) / clients
    answer = figures(pool, index, found)
    if pool.victims.shape[-1] > FINE:
        answer["fine"] = figures(pool, index, found, side=FINE)
    answer |= {"fit_seconds": fitting, "attack_seconds": attacking, "public": len(public)}
    answer["held_out"] = {n: float(v) for n, v in fitted.state.items() if n.startswith("ncc/")}
    answer["simulated"] = int(fitted.state["clients"])
    answer["class_mean"] = class_mean(pool, public, public_y, index)
    if pool.training.numel():
        answer["accuracy"] = accuracy(network, (pool.victims * 255).to(torch.uint8), pool.y)
    if searched and case.count <= 8 and not case.network.startswith(("mobilenet", "efficientnet", "resnet18")):
        some = index[: max(2, searched // case.count)]
        tried = [attacked(case, network, pool, own, "inverting_gradients", i) for i, own in enumerate(some)]
        answer["search"] = figures(pool, some, tried)
    return {"case": asdict(case), **answer, "versions": versions()}


def _titled(case: Case) -> str:
    """The title in the table, with what noise guarantees."""
    epsilon = epsilon_of(case.rule.defence)
    return case.title if epsilon is None else f"{case.title} (epsilon {epsilon:.1g} at delta {DELTA:g})"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--searched", type=int, default=SEARCHED, help="Victims that the search attacks too.")
    about = (__doc__ or "").split("\n\n", 2)[2]
    titles = {key: _titled(case) for key, case in CASES.items()}
    one = lambda key, own, told: measured(CASES[key], own.data, own.searched, told)  # noqa: E731
    run_cases(parser, list(CASES), PAGE, one, partial(page, about, titles), lambda found: write(curves(found), PICTURE))


if __name__ == "__main__":
    main()
