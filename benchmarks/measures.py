"""What does each measure that a platform can take hide, and what does it cost?

    python -m benchmarks.measures --data DIR [--only MEASURE ...] [--out FOLDER] [--page]

DIR is that of ``benchmarks.learned``. A measure takes about eight minutes of one core, all of them some hours. Each is
stored when it is finished, and the same command continues. With ``--page`` what is measured so far is written to
docs/results/measures.md.

**Accuracy.** Ten clients hold 100 CIFAR-10 pictures each. A network that was trained for five epochs on 1,000 other
pictures is trained on by all of them for a number of rounds that is the same for every measure of a client: every
client goes through its local rule, whose rate falls to 0 by a cosine, the server averages what they send, with a
momentum of .9. The accuracy is that on 846 test pictures, three times from other seeds.

**Leakage.** Clients of the same rule hold test pictures, and the server sends the network of the last round. An inverse
is fitted to 1,728 public pictures that neither a client nor the first training saw. Searches attack some of the
clients. A rank is that of the true picture among all test pictures of its class, by NCC; of the last picture of an
epoch, whose class is not known, among all.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import last_batch
from benchmarks.cases import Entry, run_cases
from benchmarks.clients import Pool, above_chance, attacked, epsilon_of, figures, pool_of
from benchmarks.learned import Case
from benchmarks.markdown import measured_with, ranged, table, versions
from leakmap.attacker.attack import fit
from leakmap.attacker.attacks import attacks
from leakmap.client.simulate import Batch, simulate
from leakmap.client.training import accuracy, train
from leakmap.errors import NotApplicable, NotGranted
from leakmap.inspection.reference import Effect
from leakmap.local_rule import LocalRule
from leakmap.models.network import Network, build_network
from leakmap.observation.contents import Public
from leakmap.plan.plan import Progress
from leakmap.problem.task import Task
from leakmap.scoring.bands import BANDS
from leakmap.seeds import derive, generator
from leakmap.threat import ThreatModel, known_before

PAGE = Path("docs/results/measures.md")
CLIENTS, HELD, FIRST = 10, 100, 1000
"""Clients that train, pictures of each, and pictures of the first training."""
SEEDS = 3
VICTIMS, SEARCHED = 200, 32
"""Pictures that the fitted attack reads at most, and that the searches do."""
SEARCHES = ("even_steps", "whitened")
MOMENTUM = 0.9
SIGN = 1e-3
"""What a server takes a sign for, which has no size; the usual rate of signSGD with momentum."""
CHEAP = 3
"""Points of accuracy that count as little."""
SMALL = "resnet,blocks=1-1-1,width=24,preact=false"
VIT = "vit,dim=96"


Told = Callable[[float], None]


@dataclass(frozen=True)
class Client:
    """A client that measures are compared on.

    Args:
        title: In the page.
        model: Its network.
        rule: What it does with its pictures.
        count: Pictures of a round.
        rounds: Of the training.
        buffers: Whether they come back.
        attack: What is fitted, or solves in closed form.
    """

    title: str
    model: str
    rule: LocalRule
    count: int
    rounds: int
    buffers: bool = True
    attack: str = "learned_inverse"


BATCH = Client(
    "one step on four pictures, post-activation ResNet with BatchNorm in training mode, buffers returned",
    SMALL,
    LocalRule("delta", lr=0.01),
    4,
    500,
)
EPOCH = Client(
    "an epoch over 100 pictures in batches of 33: one picture is the last batch",
    SMALL,
    LocalRule("delta", batch_size=33, lr=0.02),
    100,
    100,
    attack="last_batch",
)
PATCHES = Client(
    "one step on one picture, vision transformer",
    VIT,
    LocalRule("delta", lr=0.002),
    1,
    1000,
    buffers=False,
    attack="patch_positions",
)


@dataclass(frozen=True)
class Measure:
    """What a platform can change.

    Args:
        title: In the table.
        client: As it is without the measure.
        changes: What it has in place of the client's own.
        trained: What is trained and sent: ``all``, ``head``, or all but the ``patches`` and positions of a ViT.
        local: Whether every client keeps its own buffers.
    """

    title: str
    client: Client
    changes: dict[str, Any] = field(default_factory=dict)
    trained: str = "all"
    local: bool = False

    @property
    def changed(self) -> Client:
        """The client with the measure."""
        return replace(self.client, **self.changes)


def _defended(defence: str) -> dict[str, Any]:
    return {"rule": replace(BATCH.rule, defence=defence)}


MEASURES = {
    "batch": Measure("none", BATCH),
    "local": Measure("buffers stay with the client (FedBN's way)", BATCH, {"buffers": False}, local=True),
    "frozen": Measure(
        "BatchNorm frozen: inference mode", BATCH, {"rule": replace(BATCH.rule, mode="eval"), "buffers": False}
    ),
    "group": Measure("GroupNorm in place of BatchNorm", BATCH, {"model": f"{SMALL},norm=group", "buffers": False}),
    "batch16": Measure("16 pictures a step", BATCH, {"count": 16}),
    "batch64": Measure("64 pictures a step", BATCH, {"count": 64}),
    "steps": Measure(
        "4 local steps on four pictures each", BATCH, {"rule": replace(BATCH.rule, batch_size=4), "count": 16}
    ),
    "head": Measure("only the last layer is trained and sent", BATCH, {"buffers": False}, trained="head"),
    "topk": Measure("the largest 1 % of every tensor", BATCH, _defended("topk,keep=0.01")),
    "quantise": Measure("8 bits", BATCH, _defended("quantise,bits=8")),
    "sign": Measure("signs only", BATCH, _defended("sign")),
    "noise3": Measure("clipped to .1, noise multiplier .001", BATCH, _defended("clip_noise,clip=0.1,noise=0.001")),
    "noise2": Measure("clipped to .1, noise multiplier .01", BATCH, _defended("clip_noise,clip=0.1,noise=0.01")),
    "noise1": Measure("clipped to .1, noise multiplier .1", BATCH, _defended("clip_noise,clip=0.1,noise=0.1")),
    "noise1-local": Measure(
        "clipped to .1, noise multiplier .1, and buffers stay with the client",
        BATCH,
        _defended("clip_noise,clip=0.1,noise=0.1") | {"buffers": False},
        local=True,
    ),
    "epoch": Measure("none", EPOCH),
    "epoch-drop": Measure("`drop_last=True`", EPOCH, {"rule": replace(EPOCH.rule, drop_last=True)}),
    "epoch-local": Measure("buffers stay with the client", EPOCH, {"buffers": False}, local=True),
    "patches": Measure("none", PATCHES),
    "patches-kept": Measure(
        "positions and patch embedding are neither trained nor sent",
        PATCHES,
        {"attack": "learned_inverse"},
        trained="patches",
    ),
    "patches-batch": Measure("four pictures a step", PATCHES, {"count": 4, "attack": "learned_inverse"}),
}


@dataclass(frozen=True)
class Split:
    """Pictures by use; none is in two of them.

    Args:
        first: Places of the first training among the training pictures.
        clients: Of each client.
        public: Of the server.
    """

    first: Tensor
    clients: tuple[Tensor, ...]
    public: Tensor


def split(count: int) -> Split:
    """Divides the training pictures."""
    own = torch.arange(FIRST, FIRST + CLIENTS * HELD).view(CLIENTS, HELD)
    return Split(torch.arange(FIRST), tuple(own), torch.arange(FIRST + CLIENTS * HELD, count))


@cache
def begun(data: Path, model: str) -> tuple[Network, Pool]:
    """The network that every training begins with, and the pictures, those of the server being the public ones."""
    pool = pool_of(data, "cifar")
    parts = split(len(pool.public))
    shown = pool.public[parts.first].transpose(0, 1).flatten(1)
    task = Task((3, 32, 32), pool.classes, tuple(shown.mean(1).tolist()), tuple(shown.std(1).tolist()))
    pictures = (pool.public[parts.first] * 255).round().to(torch.uint8)
    network = train(build_network(task, model, seed=11), pictures, pool.public_y[parts.first], 5, 11)
    return network, pool


def trained_in_part(network: Network, what: str) -> Network:
    """The same network, of which clients train the last layer only, or all but patches and positions."""
    if what == "all":
        return network
    module = network.module()
    head = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    kept = {id(parameter) for parameter in head.parameters()}
    for name, parameter in module.named_parameters():
        patches = name.startswith(("embedding.", "position"))
        parameter.requires_grad_(id(parameter) in kept if what == "head" else not patches)
    return build_network(network.task, module)


def federated(measure: Measure, start: Network, pool: Pool, seed: int, told: Progress) -> list[Network]:
    """The networks after the training: one, or one of each client where they keep their own buffers."""
    client, parts = measure.changed, split(len(pool.public))
    names = start.trained()
    velocity = {name: torch.zeros_like(start.weights[name]) for name in names}
    networks = [start] * CLIENTS if measure.local else [start]
    for number in range(client.rounds):
        # To nothing by a cosine: else the accuracy is that of the last few batches, points up or down.
        share = (1 + math.cos(math.pi * number / client.rounds)) / 2
        rule = replace(client.rule, lr=client.rule.lr * share)
        rounds = []
        for who, own in enumerate(parts.clients):
            source = generator(seed, "draw", number, who)
            drawn = own[torch.randperm(len(own), generator=source)[: client.count]]
            batch = Batch(pool.public[drawn], pool.public_y[drawn])
            network = networks[who if measure.local else 0]
            rounds.append(simulate(network, rule, batch, derive(seed, "client", number, who)))
        shared = {}
        for name in names:
            mean = torch.stack([each.update.tensors[name] for each in rounds]).mean(0)
            mean = mean * SIGN * share if client.rule.defence == "sign" else mean
            velocity[name] = MOMENTUM * velocity[name] + mean
            shared[name] = networks[0].weights[name] + velocity[name]
        kept = [each.buffers for each in rounds]
        if not measure.local:
            kept = [{n: torch.stack([k[n].double() for k in kept]).mean(0).to(kept[0][n].dtype) for n in kept[0]}]
        networks = [
            replace(network, weights=dict(network.weights) | shared | dict(own))
            for network, own in zip(networks, kept, strict=True)
        ]
        told(measure.title, number / client.rounds)
    return networks


def measured(key: str, data: Path, told: Progress) -> dict[str, Any]:
    """Trains, then attacks."""
    measure = MEASURES[key]
    client = measure.changed
    start, pool = begun(data, client.model)
    start = trained_in_part(start, measure.trained)
    test = (pool.victims * 255).round().to(torch.uint8)
    reached, sent = [], []
    for seed in range(SEEDS):
        networks = federated(measure, start, pool, seed, lambda w, f, s=seed: told(w, 0.6 * (s + f) / SEEDS))
        reached.append(sum(accuracy(network, test, pool.y) for network in networks) / len(networks))
        sent.append(networks[0])
    answer = {
        "title": measure.title,
        "client": asdict(client),
        "before": accuracy(start, test, pool.y),
        "accuracy": reached,
        "pictures": client.count * CLIENTS,
        "versions": versions(),
    }
    if (epsilon := epsilon_of(client.rule.defence)) is not None:
        answer["epsilon"] = epsilon
    return answer | _leaks(measure, sent[0], pool, lambda f: told(measure.title, 0.6 + 0.4 * f))


def _leaks(measure: Measure, network: Network, pool: Pool, told: Told) -> dict[str, Any]:
    client, parts = measure.changed, split(len(pool.public))
    own = replace(pool, public=pool.public[parts.public], public_y=pool.public_y[parts.public])
    if client.attack == "last_batch":
        return _last(measure, network, own, told)
    case = Case(measure.title, "", client.rule, client.count, client.attack, client.buffers)
    index = torch.arange(min(VICTIMS, len(own.y)) // client.count * client.count).view(-1, client.count)
    some = index[: max(2, SEARCHED // client.count)]
    answer: dict[str, Any] = {"searches": {}}
    try:
        how = attacks.build(client.attack)
        if how.fits:
            threat = ThreatModel("known", buffers=client.buffers, public=len(own.public))
            setting = known_before(network, client.rule, client.count, threat, Public(own.public, own.public_y))
            fitted = fit(how, setting, 3, lambda fraction: told(0.6 * fraction))
        else:
            fitted = client.attack
        answer["any"] = figures(own, index, [attacked(case, network, own, o, fitted, i) for i, o in enumerate(index)])
    except (NotApplicable, NotGranted) as error:
        answer["refused"] = str(error)
    for place, search in enumerate(SEARCHES):
        tried = []
        for i, each in enumerate(some):
            tried.append(attacked(case, network, own, each, search, i))
            told(0.6 + 0.2 * (place + (i + 1) / len(some)))
        answer["searches"][search] = figures(own, some, tried)
    return answer


def _last(measure: Measure, network: Network, pool: Pool, told: Told) -> dict[str, Any]:
    """What is read of the last local step, in the form of ``figures``."""
    client = measure.changed
    case = last_batch.Case(measure.title, "", client.rule, client.count, 100, client.buffers)
    found = last_batch.read(case, network, pool, lambda what, fraction: told(fraction))
    if "refused" in found:
        return {"refused": found["refused"], "searches": {}}
    bands = {band: {"first": share} for band, share in found["first"].items()}
    whole = bands["whole"] | {"relative": found["relative"], "chance": 1 / found["candidates"], "p": found["p"]}
    told_of = {"clients": found["clients"], "ncc": found["ncc"], "psnr": found["psnr"]}
    return {"any": told_of | bands | {"whole": whole}, "searches": {}}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    run_cases(parser, list(MEASURES), PAGE, lambda key, own, told: measured(key, own.data, told), page)


def page(found: dict[str, Entry]) -> str:
    """The page."""
    lines = [
        "# What to change",
        "",
        "    python -m benchmarks.measures --data DIR --page",
        "",
        *_conclusion(found),
        "Every table is about one client and what a platform can change of it. Ranks and NCC are those of the fitted",
        f"attack or the closed form; where neither applies, of the search `{SEARCHES[0]}`. *Relative rank* is 0 for",
        "the true picture first and .5 by chance; *leaks* says whether any attack reads more than chance, corrected",
        "(Holm) for those tried, and compares the interval of the relative rank with that of the first row, attack by",
        "attack: *more* where one reads more, *less* where one reads less and none more. Intervals are 95 %, exact for",
        "shares of pictures; of the accuracy the least and the greatest of three runs are given.",
        "",
        *(__doc__ or "").split("\n\n", 3)[3].strip().split("\n"),
        "",
        measured_with(found.values()),
        "",
    ]
    for base in (BATCH, EPOCH, PATCHES):
        own = [found[key] for key, measure in MEASURES.items() if measure.client is base and key in found]
        if not own:
            continue
        lines += [f"## The client: {base.title}", "", f"{base.rounds} rounds; `{base.model}`.", ""]
        lines += table(HEAD, [_row(entry, own[0]) for entry in own])
        lines += ["First ranks by one band of the pictures alone:", ""]
        bands = [
            (one["title"], *(ranged(_speaks(one)[band]["first"], ".0%") for band in BANDS)) for one in own if _read(one)
        ]
        lines += table(("measure", *BANDS), bands)
        if refused := [entry for entry in own if "refused" in entry]:
            lines += ["Where the fitted attack or the closed form has nothing to read, it says so:", ""]
            lines += [f"- {entry['title']}: {entry['refused']}" for entry in refused] + [""]
    if missing := [measure.title for key, measure in MEASURES.items() if key not in found]:
        lines += [f"Not measured yet: {'; '.join(missing)}.", ""]
    return "\n".join(lines)


HEAD = ("measure", "accuracy", "first", "chance", "relative rank", "NCC", "NCC of searches", "leaks", "costs")


def _read(entry: Entry) -> Entry:
    """The figures of every attack that applied, the fitted one or the closed form first."""
    return ({"any": entry["any"]} if "any" in entry else {}) | entry["searches"]


def _speaks(entry: Entry) -> Entry:
    """Those of the first of them: the order is fixed beforehand, so that the truth chooses nothing."""
    return next(iter(_read(entry).values()))


def leaks(entry: Entry, before: Entry) -> str:
    """What a measure does to what leaks: whether there is any, and then attack by attack, by intervals of the rank."""
    after, once = _read(entry), _read(before)
    if not after:
        return "nothing tried applies"
    if not above_chance(list(after.values())):
        return "chance"
    changes = [
        Effect("", "", "", once[name]["whole"]["relative"], one["whole"]["relative"]).change
        for name, one in after.items()
        if name in once
    ]
    return "more" if "more" in changes else "less" if "less" in changes else "as much" if changes else "not compared"


def _row(entry: Entry, before: Entry) -> list[str]:
    accuracies, usual = entry["accuracy"], before["accuracy"]
    title = entry["title"]
    if "epsilon" in entry:
        title += f" (epsilon {entry['epsilon']:,.3g} a round)"
    told = [title, f"{_mean(accuracies):.1%} ({min(accuracies):.1%} to {max(accuracies):.1%})"]
    if _read(entry):
        whole = _speaks(entry)["whole"]
        told += [ranged(whole["first"], ".0%"), f"{whole['chance']:.1%}", ranged(whole["relative"], ".2f")]
        told.append(ranged(_speaks(entry)["ncc"], ".2f"))
    else:
        told += ["–"] * 4
    best = max(entry["searches"].values(), key=lambda one: one["ncc"][0], default=None)
    told.append("–" if best is None else ranged(best["ncc"], ".2f"))
    if entry is before:
        return [*told, "", ""]
    return [*told, leaks(entry, before), f"{100 * (_mean(accuracies) - _mean(usual)):+.1f} points"]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _conclusion(found: dict[str, Entry]) -> list[str]:
    """Sentences that follow from the figures: what helps and costs little, and what does not help."""
    helps, vain = [], []
    for key, entry in found.items():
        base = next(k for k, measure in MEASURES.items() if measure.client is MEASURES[key].client)
        if key == base or base not in found:
            continue
        cost = 100 * (_mean(found[base]["accuracy"]) - _mean(entry["accuracy"]))
        told = f"{entry['title']} ({-cost:+.1f} points of accuracy)"
        effect = leaks(entry, found[base])
        if effect in ("chance", "nothing tried applies") and cost < CHEAP:
            helps.append(told)
        elif effect in ("as much", "more"):
            vain.append(told)
    lines = []
    if helps:
        lines += [f"Nothing is read any more, at less than {CHEAP} points of accuracy, with: {'; '.join(helps)}.", ""]
    if vain:
        lines += [f"These leave as much to read as before: {'; '.join(vain)}.", ""]
    return lines


if __name__ == "__main__":
    main()
