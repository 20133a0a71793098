"""What do trained modern networks give away at contemporary resolution?

    python -m benchmarks.modern --data DIR [--only CASE ...] [--out FOLDER] [--page]

DIR holds ``weights``, and the folders ``imagenet_public/images`` and ``imagenet_samples/images`` with their
``labels.csv``. A case takes 5 to 20 minutes of one core. Each is stored when it is finished, and the same command
continues. With ``--page`` what is measured so far is written to docs/results/modern.md.

Victims are 200 pictures of ImageNet at 224 pixels, public pictures 760 others, no two of one class. MobileNetV2,
EfficientNet-Lite0 and SqueezeNet have the weights of their authors. The others are trained for five epochs on half of
the public pictures, and attackers have the other half: their weights are no longer random, but they tell no new
pictures apart. A client sends a gradient, and its BatchNorm buffers where they move. Labels are known.

*Search* is ``even_steps`` with 100 iterations, on the first clients. *Fitted* is ``learned_inverse``. *Closed form* is
``patch_positions`` for one picture, ``patch_subspace`` for several. A rank is that of the true picture among all
victims, by NCC at 32 pixels.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Entry, run_cases
from benchmarks.clients import IMAGENET, Pool, attacked, chance_p, class_mean, figures, pool_of, told_p
from benchmarks.learned import Case, network_of
from benchmarks.markdown import measured_with, ranged, table, versions
from leakmap.attacker.attack import fit
from leakmap.attacker.attacks import attacks
from leakmap.client.training import accuracy, train
from leakmap.errors import NotApplicable, NotGranted
from leakmap.inspection.reference import ABOVE_CHANCE
from leakmap.local_rule import LocalRule
from leakmap.models.network import Network, build_network
from leakmap.observation.contents import Public
from leakmap.plan.plan import Progress
from leakmap.problem.task import Task
from leakmap.scoring.exposure import EXACT_PSNR
from leakmap.scoring.metrics.psnr import decibels
from leakmap.threat import ThreatModel, known_before

PAGE = Path("docs/results/modern.md")
VICTIMS, SEARCHED = 200, 4
"""Pictures that are read without a search, and those that searches look for."""
SIMULATED = 1500
"""Clients of which updates are read; statistics, which take a forward pass each, are read of as many as by default."""
EPOCHS = 5
SEARCH = "even_steps,steps=100"
CLOSED = {1: "patch_positions", 4: "patch_subspace"}
TRAINED = {
    "vit": ("ViT-S/32", "timm/vit_small_patch32_224"),
    "convnext": ("ConvNeXt-Atto", "timm/convnext_atto"),
    "swin": ("Swin-T", "timm/swin_tiny_patch4_window7_224"),
}
"""Networks without published weights here, which the benchmark trains for some epochs; in both modes they are one."""
PUBLISHED = {"mobilenet": "MobileNetV2", "efficientnet": "EfficientNet-Lite0", "squeezenet": "SqueezeNet 1.1"}
ATTACKS = ("search", "fitted", "closed form")


@dataclass(frozen=True)
class Cell:
    """A network, its client's mode, and the pictures of a client."""

    network: str
    mode: str
    count: int

    @property
    def title(self) -> str:
        """In the table."""
        return {**PUBLISHED, **{key: name for key, (name, _) in TRAINED.items()}}[self.network]


CELLS = {
    f"{network}-{mode}-b{count}": Cell(network, mode, count)
    for network in (*PUBLISHED, *TRAINED)
    for mode in (("train", "eval") if network in PUBLISHED else ("train",))
    for count in (1, 4)
}


@cache
def sent_of(data: Path, name: str) -> tuple[Network, Pool, float]:
    """The network that is sent, the pictures, and its accuracy on those that it was trained on here, else 1."""
    if name in ("mobilenet", "efficientnet"):
        return *network_of(data, name), 1.0
    pool = pool_of(data, "imagenet")
    if name == "squeezenet":
        return squeezenet(data), pool, 1.0
    half = len(pool.public) // 2
    network = build_network(Task((3, 224, 224), 1000, *IMAGENET), TRAINED[name][1], seed=11)
    shown, y = (pool.public[:half] * 255).round().to(torch.uint8), pool.public_y[:half]
    network = train(network, shown, y, EPOCHS, 11)
    return network, replace(pool, public=pool.public[half:], public_y=pool.public_y[half:]), accuracy(network, shown, y)


def squeezenet(data: Path) -> Network:
    """SqueezeNet 1.1 with its authors' weights, which take blue first, 0 to 255, and round the size of a pool up."""
    task = Task((3, 224, 224), 1000, (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3)
    weights = torch.load(data / "weights/squeezenet1_1_imagenet_caffe_fp16.pth", weights_only=True)
    module = build_network(task, "torchvision/squeezenet1_1").module()
    module.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    for layer in module.modules():
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    first.weight.data = first.weight.data.flip(1).contiguous()
    return build_network(task, module)


def measured(key: str, data: Path, told: Progress) -> Entry:
    """All attacks on one cell."""
    cell = CELLS[key]
    network, pool, learned = sent_of(data, cell.network)
    case = Case(cell.title, "", LocalRule(mode="train" if cell.mode == "train" else "eval"), cell.count)
    index = torch.arange(VICTIMS // cell.count * cell.count).view(-1, cell.count)
    some = index[: max(2, SEARCHED // cell.count)]
    answer: Entry = {"cell": key, "learned": learned, "floor": class_mean(pool, pool.public, pool.public_y, index)}
    share = lambda start, end: lambda fraction: told(key, start + (end - start) * fraction)  # noqa: E731
    tried = {
        "fitted": lambda: fitted(case, network, pool, index, share(0, 0.6)),
        "closed form": lambda: timed(case, network, pool, index, CLOSED[cell.count], share(0.6, 0.7)),
        "search": lambda: timed(case, network, pool, some, SEARCH, share(0.7, 1)),
    }
    for name, read in tried.items():
        try:
            answer[name] = read()
        except (NotApplicable, NotGranted) as error:
            answer[name] = {"refused": str(error)}
    return {**answer, "versions": versions()}


def fitted(case: Case, network: Network, pool: Pool, index: Tensor, told: Callable[[float], None]) -> Entry:
    """What the fitted inverse reads; seconds include the fit."""
    began = time.process_time()
    threat = ThreatModel("known", buffers=True, public=len(pool.public))
    setting = known_before(network, case.rule, case.count, threat, Public(pool.public, pool.public_y))
    try:
        attack = attacks.build("learned_inverse,views=statistics")
        attack.fit_cost(setting)
    except NotApplicable:
        attack = attacks.build(f"learned_inverse,clients={SIMULATED}")
    how = fit(attack, setting, 3, lambda fraction: told(0.9 * fraction))
    seconds = time.process_time() - began
    rehearsed = float(how.state["ncc/answer"])
    found = timed(case, network, pool, index, how, lambda fraction: told(0.9 + 0.1 * fraction))
    return found | {"fit": seconds, "rehearsed": rehearsed, "simulated": int(how.state["clients"])}


def timed(
    case: Case, network: Network, pool: Pool, index: Tensor, how: Any, told: Callable[[float], None]
) -> dict[str, Any]:
    """The figures of an attack on some clients, the clients that it reads exactly, and its seconds a client."""
    found, exact = [], 0
    began = time.process_time()
    for client, own in enumerate(index):
        found.append(attacked(case, network, pool, own, how, client))
        error = (found[-1].clamp(0, 1) - pool.victims[own]).square().flatten(1).mean(1)
        exact += int(all(float(decibels(each)) >= EXACT_PSNR for each in error))
        told((client + 1) / len(index))
    seconds = (time.process_time() - began) / len(index)
    return figures(pool, index, found) | {"exact": exact, "seconds": seconds}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    run_cases(parser, list(CELLS), PAGE, lambda key, own, told: measured(key, own.data, told), page)


def page(found: dict[str, Entry]) -> str:
    """The page."""
    lines = [
        "# Modern networks at 224 pixels",
        "",
        "    python -m benchmarks.modern --data DIR --page",
        "",
        *_conclusion(found),
        *(__doc__ or "").split("\n\n", 2)[2].strip().split("\n"),
        "",
        "*Relative rank* is 0 for the true picture first and .5 by chance; *class mean* is the mean public picture,",
        "which needs no client: no public picture has a victim's class. *Exact* counts clients all of whose pictures",
        f"are read at {EXACT_PSNR:g} dB or more. Intervals are 95 %, of shares exact over pictures. Seconds are CPU",
        "seconds of one core, of a client and, of the fitted attack, of the fit.",
        "",
        measured_with(found.values()),
        "",
    ]
    for name in ATTACKS:
        own = {key: entry[name] for key, entry in found.items() if name in entry and "refused" not in entry[name]}
        lines += [f"## {name.capitalize()}", ""]
        lines += table(HEAD, [_row(key, found[key], figures_of) for key, figures_of in own.items()])
        refused = {key: entry[name]["refused"] for key, entry in found.items() if "refused" in entry.get(name, {})}
        if refused:
            lines += ["Not applicable, and why:", ""]
            lines += [f"- {_named(key)}: {reason}" for key, reason in refused.items()] + [""]
    learned = {CELLS[key].title: entry["learned"] for key, entry in found.items() if CELLS[key].network in TRAINED}
    if learned:
        lines += [
            "Of the pictures that they were trained on, the networks that are trained here tell right: "
            f"{', '.join(f'{name} {share:.0%}' for name, share in learned.items())}.",
            "",
        ]
    if missing := [_named(key) for key in CELLS if key not in found]:
        lines += [f"Not measured yet: {'; '.join(missing)}.", ""]
    return "\n".join(lines)


HEAD = (
    "network",
    "mode",
    "clients",
    "exact",
    "NCC",
    "class mean",
    "PSNR, dB",
    "first",
    "chance",
    "relative rank",
    "p",
    "seconds",
)


def _named(key: str) -> str:
    cell = CELLS[key]
    return f"{cell.title}, {cell.mode}, {cell.count} picture{'s' if cell.count > 1 else ''}"


def _row(key: str, entry: Entry, read: Entry) -> tuple[str, ...]:
    cell, whole = CELLS[key], read["whole"]
    seconds = f"{read['seconds']:.2g}"
    return (
        cell.title,
        "either" if cell.network in TRAINED else cell.mode,
        f"{read['clients']} x {cell.count}",
        str(read["exact"]),
        ranged(read["ncc"], ".2f"),
        f"{entry['floor']['ncc'][0]:.2f}",
        f"{read['psnr'][0]:.1f}",
        ranged(whole["first"], ".1%"),
        f"{whole['chance']:.1%}",
        ranged(whole["relative"], ".2f"),
        told_p(chance_p(read)),
        f"{seconds} + {read['fit']:.0f}" if "fit" in read else seconds,
    )


def _conclusion(found: dict[str, Entry]) -> list[str]:
    """What the figures say of whether such networks resist, attack by attack."""
    lines = []
    for name in ATTACKS:
        own = {key: entry[name] for key, entry in found.items() if name in entry and "refused" not in entry[name]}
        if not own:
            continue
        told = [_named(key) for key, read in own.items() if chance_p(read) < ABOVE_CHANCE]
        exact = [_named(key) for key, read in own.items() if 2 * read["exact"] > read["clients"]]
        lines.append(
            f"**{name.capitalize()}**: more than chance (5 %) in {len(told)} of {len(own)} cells"
            + (f" ({'; '.join(told)})" if 0 < len(told) < len(own) else "")
            + (f", exact for most clients in {len(exact)} ({'; '.join(exact)})." if exact else ".")
        )
        lines.append("")
    return lines


if __name__ == "__main__":
    main()
