"""Does the doctor name the fact that is wrong? One mistake is planted at a time in what a client sent.

    python -m benchmarks.doctor [--models MODEL …] [--only WORD …]

Writes docs/results/doctor.md; with --models or --only, which takes what has one of the words in its name, it only
prints.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.markdown import publish, table, versions
from leakmap import Batch, LocalRule, Network, Observation, Task, ThreatModel, Update, build_network, observe, simulate
from leakmap.client.data import load_pictures
from leakmap.client.training import calibrated
from leakmap.doctor.checks import check
from leakmap.doctor.replay import replay
from leakmap.registry.spec import Spec
from leakmap.seeds import generator

PAGE = Path("docs/results/doctor.md")
MODELS = ("resnet,blocks=1-1-1,width=8", "vit,dim=32,depth=2,heads=2,patch=8", "convnet,width=8")
COUNT, CLASSES = 8, 12
CLIENTS = {
    "one step": LocalRule("delta", lr=0.02),
    "2 epochs of 4, momentum": LocalRule("delta", epochs=2, batch_size=4, lr=0.02, momentum=0.9),
}
Truth = Callable[[Network, LocalRule], tuple[Network, LocalRule]]
Spoil = Callable[[Observation], Observation]
Loop = Callable[[Network, LocalRule, Batch, Batch], Mapping[str, torch.Tensor]]
"""``loop(network, rule, batch, others)``: the delta of a client that does what no fact covers."""


@dataclass(frozen=True)
class Mistake:
    """One wrong fact.

    Args:
        name: In words.
        fact: What the doctor should name: any of these.
        spoil: What goes wrong between the client and the file.
        truth: What the client does otherwise than the default, where the mistake is about that.
        held: How the client holds the batch that the replay is given.
        batch_norm: Whether only networks with BatchNorm show it.
        steps: Whether only several steps show it.
    """

    name: str
    fact: tuple[str, ...]
    spoil: Spoil = lambda o: o
    truth: Truth = lambda network, rule: (network, rule)
    held: Callable[[Batch], Batch] = lambda batch: batch
    batch_norm: bool = False
    steps: bool = False


@dataclass(frozen=True)
class Unknown:
    """A rule of a client that no fact covers.

    Args:
        name: In words.
        word: What the doctor should name as untried.
        loop: The client.
        truth: What the facts say, where that is not the client's default.
        batch_norm: Whether only networks with BatchNorm know it.
        steps: Whether only several steps show it.
    """

    name: str
    word: str
    loop: Loop
    truth: Truth = lambda network, rule: (network, rule)
    batch_norm: bool = False
    steps: bool = False


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--only", nargs="+", default=[""])
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    pictures = load_pictures("samples", 32)
    order = torch.randperm(len(pictures), generator=generator(0, "doctor"))
    own, others = order[:COUNT], order[COUNT:]
    batch = Batch(pictures.images[own].float() / 255, pictures.labels[own])
    task = Task((3, 32, 32), CLASSES, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    rows: list[list[str]] = []
    named: dict[str, list[bool]] = {}
    told: dict[str, list[bool]] = {}
    others_batch = Batch(pictures.images[others].float() / 255, pictures.labels[others])
    for model in options.models or MODELS:
        network = build_network(task, model)
        network = calibrated(network, pictures.images[others][:64], pictures.labels[others][:64])
        for client, rule in CLIENTS.items():
            for mistake in (*MISTAKES, *UNKNOWN):
                if (mistake.batch_norm and not model.startswith("resnet")) or (mistake.steps and client == "one step"):
                    continue
                if not any(word in mistake.name for word in options.only):
                    continue
                if isinstance(mistake, Unknown):
                    right = _untried(network, rule, batch, others_batch, mistake)
                    verdict = "named" if right else "**not named**"
                    console.print(f"{model} | {client} | {mistake.name} | {verdict}", soft_wrap=True)
                    told.setdefault(mistake.name, []).append(right)
                    continue
                row, right = _one(model.partition(",")[0], client, network, rule, batch, mistake)
                console.print(" | ".join(row), soft_wrap=True)
                rows.append(row)
                named.setdefault(mistake.name, []).append(right)
    content = page(rows, named, told, options.models or MODELS)
    publish(content, *([] if options.models or options.only != [""] else [PAGE]))


def _one(
    model: str, client: str, network: Network, rule: LocalRule, batch: Batch, mistake: Mistake
) -> tuple[list[str], bool]:
    sent, done = mistake.truth(network, rule)
    update = observe(simulate(sent, done, mistake.held(batch)), ThreatModel())
    claimed = replace(network, weights=update.network.weights, code=update.network.code)
    told = rule if update.update.kind == rule.share else done
    observation = mistake.spoil(replace(update, network=claimed, rule=told))
    begun = time.process_time()
    wrong = [finding.name for finding in check(observation) if finding.level == "wrong"]
    found = replay(observation, batch)
    seconds = time.process_time() - begun
    facts = [change.name for change in found.explained_by]
    right = len(facts) == 1 and facts[0] in mistake.fact
    told = ", ".join(facts) or ("right" if found.exact else "none")
    also = ", ".join(sorted({c.name for changes in found.equally for c in changes} - set(facts)))
    cells = [model, client, mistake.name, f"**{told}**" if not right else told, also or "–", ", ".join(wrong) or "–"]
    cells += [f"{found.distance:.2g}", f"{found.reached:.1g}", str(len(found.tried)), f"{seconds:.1f}"]
    return cells, right


def _untried(network: Network, rule: LocalRule, batch: Batch, others: Batch, unknown: Unknown) -> bool:
    """Whether nothing is said to explain the update, and the rule is named."""
    sent, rule = unknown.truth(network, rule)
    update = Update("delta", unknown.loop(sent, rule, batch, others))
    found = replay(Observation(network, update, len(batch.y), rule=rule), batch)
    return not found.exact and not found.explained_by and unknown.word in found.sentence


def _trained(
    network: Network,
    rule: LocalRule,
    batch: Batch,
    *,
    velocity: Mapping[str, torch.Tensor] | None = None,
    control: Mapping[str, torch.Tensor] | None = None,
    skipped: int = 0,
) -> dict[str, torch.Tensor]:
    """The delta of a hand-written loop of SGD.

    Args:
        network: As it was sent.
        rule: Gives epochs, batches, rate, momentum and mode.
        batch: What the client holds.
        velocity: Momentum that it kept.
        control: Added to the gradient of every step.
        skipped: Steps at the beginning that are not taken.
    """
    module = network.module().train(rule.mode == "train")
    parameters = dict(module.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.SGD(parameters.values(), rule.lr, 0.9 if velocity else rule.momentum)
    for name, tensor in (velocity or {}).items():
        optimizer.state[parameters[name]]["momentum_buffer"] = tensor.clone()
    x = network.task.normalize(batch.pictures)
    for step in range(rule.steps(len(batch.y))):
        held = rule.held_by(step, len(batch.y))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x[held]), batch.y[held]).backward()
        for name, tensor in (control or {}).items():
            gradient = parameters[name].grad
            assert gradient is not None
            gradient += tensor
        if step >= skipped:
            optimizer.step()
    return {name: p.detach() - before[name] for name, p in parameters.items()}


def _gradient_of(network: Network, batch: Batch) -> dict[str, torch.Tensor]:
    return dict(simulate(network, LocalRule(), batch).update.tensors)


def _scaffold(network: Network, rule: LocalRule, batch: Batch, others: Batch) -> dict[str, torch.Tensor]:
    """With the control variates of a server and a client of 16 and 8 other pictures."""
    of_server, of_client = (_gradient_of(network, _part(others, *ends)) for ends in ((0, 16), (16, 24)))
    return _trained(network, rule, batch, control={name: of_server[name] - of_client[name] for name in of_server})


def _kept(network: Network, rule: LocalRule, batch: Batch, others: Batch) -> dict[str, torch.Tensor]:
    return _trained(network, rule, batch, velocity=_gradient_of(network, _part(others, 0, 8)))


def _mean(network: Network, rule: LocalRule, batch: Batch, others: Batch) -> dict[str, torch.Tensor]:
    clients = [batch, *(_part(others, i, i + COUNT) for i in range(0, 3 * COUNT, COUNT))]
    sent = [_trained(network, rule, client) for client in clients]
    return {name: torch.stack([one[name] for one in sent]).mean(0) for name in sent[0]}


def _own_norms(network: Network, rule: LocalRule, batch: Batch, others: Batch) -> dict[str, torch.Tensor]:
    own = calibrated(network, (others.pictures[64:96] * 255).to(torch.uint8), others.y[64:96])
    return _trained(own, rule, batch)


def _part(batch: Batch, first: int, end: int) -> Batch:
    return Batch(batch.pictures[first:end], batch.y[first:end])


UNKNOWN = (
    Unknown("control variates (SCAFFOLD)", "SCAFFOLD", _scaffold),
    Unknown("momentum kept from the last round", "kept from earlier rounds", _kept),
    Unknown("mean of four clients", "mean of several clients", _mean),
    Unknown(
        "first step skipped by a GradScaler",
        "GradScaler",
        lambda network, rule, batch, others: _trained(network, rule, batch, skipped=1),
        steps=True,
    ),
    Unknown("own running statistics (FedBN)", "FedBN", _own_norms, lambda n, r: (n, replace(r, mode="eval")), True),
)


def _scaled(factor: Callable[[Observation], float]) -> Spoil:
    def spoil(o: Observation) -> Observation:
        return replace(o, update=Update(o.update.kind, {name: t * factor(o) for name, t in o.update.tensors.items()}))

    return spoil


def _lr(o: Observation) -> float:
    return o.rule.lr if o.rule is not None else 1.0


def _weights(o: Observation) -> Observation:
    weights = o.network.weights
    return replace(o, update=Update("delta", {name: weights[name] + t for name, t in o.update.tensors.items()}))


def _called_delta(o: Observation) -> Observation:
    told = LocalRule("delta", mode=o.rule.mode, lr=0.02) if o.rule is not None else None
    return replace(o, update=Update("delta", o.update.tensors), rule=told)


def _swapped(o: Observation) -> Observation:
    """The two last tensors of the most common shape that differ."""
    tensors = dict(o.update.tensors)
    shapes = [tuple(t.shape) for t in tensors.values()]
    first, second = [name for name, t in tensors.items() if tuple(t.shape) == max(shapes, key=shapes.count)][-2:]
    tensors[first], tensors[second] = tensors[second], tensors[first]
    return replace(o, update=Update(o.update.kind, tensors))


def _gradient(network: Network, rule: LocalRule) -> tuple[Network, LocalRule]:
    return network, LocalRule(mode=rule.mode)


def _ruled(**changes: object) -> Truth:
    return lambda network, rule: (network, replace(rule, **changes))


def _tasked(**changes: object) -> Truth:
    return lambda network, rule: (replace(network, task=replace(network.task, **changes)), rule)


def _own_statistics(network: Network, rule: LocalRule) -> tuple[Network, LocalRule]:
    own = {
        name: torch.full_like(t, float(name.endswith("running_var")))
        for name, t in network.weights.items()
        if name.endswith(("running_mean", "running_var"))
    }
    return replace(network, weights={**network.weights, **own}), replace(rule, mode="eval")


def _sent_statistics(o: Observation) -> Observation:
    """The file has the server's running statistics, and the rule is right about the mode."""
    assert o.rule is not None
    told = {n: t * 1.5 + 0.1 for n, t in o.network.weights.items() if n.endswith(("running_mean", "running_var"))}
    network = replace(o.network, weights={**o.network.weights, **told})
    return replace(o, network=network, rule=replace(o.rule, mode="eval"), buffers=None)


WEIGHTED = Spec(
    "cross_entropy", {"class_weights": "/".join(f"{1 + 2 * i / (CLASSES - 1):.3g}" for i in range(CLASSES))}
)
MISTAKES = (
    Mistake("eval mode called train", ("mode",), truth=_ruled(mode="eval"), batch_norm=True),
    Mistake("a gradient called a delta", ("kind",), _called_delta, _gradient),
    Mistake("before - after", ("scale",), _scaled(lambda o: -1.0)),
    Mistake("delta divided by lr", ("scale",), _scaled(lambda o: 1 / _lr(o))),
    Mistake("weights called a delta", ("kind",), _weights),
    Mistake("lr 5 times too small", ("lr",), truth=_ruled(lr=0.1)),
    Mistake("loss summed", ("summed loss",), truth=_ruled(lr=0.02 * 4), steps=True),
    Mistake("client does not normalize", ("normalization",), truth=_tasked(mean=(0.0,) * 3, std=(1.0,) * 3)),
    Mistake("inputs 0 to 255", ("normalization",), truth=_tasked(mean=(0.0,) * 3, std=(1 / 255,) * 3)),
    Mistake("variance in place of std", ("normalization",), truth=_tasked(std=(0.052441, 0.050176, 0.050625))),
    Mistake(
        "constants of its own data", ("normalization",), truth=_tasked(mean=(0.43, 0.4, 0.37), std=(0.28, 0.27, 0.29))
    ),
    Mistake("BGR", ("pictures",), held=lambda b: Batch(b.pictures.flip(1), b.y)),
    Mistake(
        "labels beside other pictures", ("labels",), held=lambda b: Batch(b.pictures, b.y[[3, 0, 1, 2, 5, 6, 7, 4]])
    ),
    Mistake("classes in another order", ("labels",), held=lambda b: Batch(b.pictures, (5 * b.y + 3) % CLASSES)),
    Mistake("tensors swapped", ("parameter order",), _swapped),
    Mistake("other running statistics", ("running statistics",), _sent_statistics, _own_statistics, batch_norm=True),
    Mistake(
        "label smoothing 0.1", ("label smoothing",), truth=_tasked(loss=Spec("cross_entropy", {"label_smoothing": 0.1}))
    ),
    Mistake("class weights 1 to 3", ("class weights",), truth=_tasked(loss=WEIGHTED)),
    Mistake("FedProx, mu 0.1", ("proximal term",), truth=_ruled(proximal=0.1), steps=True),
    Mistake("FedProx, mu 0.03", ("proximal term",), truth=_ruled(proximal=0.03), steps=True),
    Mistake("steps clipped to norm 0.7", ("clipping",), truth=_ruled(clip_norm=0.7), steps=True),
    Mistake("Nesterov's momentum", ("nesterov",), truth=_ruled(nesterov=True), steps=True),
    Mistake("cosine schedule", ("schedule",), truth=_ruled(schedule="cosine"), steps=True),
    Mistake("a tenth of the rate in epoch 2", ("schedule",), truth=_ruled(schedule="step,size=1"), steps=True),
    Mistake(
        "rate times 0.97 each step",
        ("schedule",),
        truth=_ruled(schedule="exponential,gamma=0.97,per=step"),
        steps=True,
    ),
    Mistake("Adam called SGD", ("optimizer",), truth=_ruled(optimizer="adam", momentum=0.0)),
    Mistake("weight decay 5e-4", ("weight decay",), truth=_ruled(weight_decay=5e-4)),
    Mistake("momentum 0.5, not 0.9", ("momentum",), truth=_ruled(momentum=0.5), steps=True),
    Mistake("3 epochs, not 2", ("epochs", "passes"), truth=_ruled(epochs=3), steps=True),
    Mistake("mini-batches of 2", ("batch size", "passes"), truth=_ruled(batch_size=2), steps=True),
    Mistake("pictures backwards", ("mini-batches",), held=lambda b: Batch(b.pictures.flip(0), b.y.flip(0)), steps=True),
)


def page(
    rows: list[list[str]],
    named: dict[str, list[bool]],
    told: dict[str, list[bool]],
    models: tuple[str, ...] | list[str],
) -> str:
    """Markdown."""
    whole = sum(all(found) for found in named.values())
    hits, runs = (sum(map(f, named.values())) for f in (sum, len))
    seconds = [float(row[-1]) for row in rows] or [0.0]
    lines = [
        "# Does the doctor name the fact that is wrong?",
        "",
        "    python -m benchmarks.doctor",
        "",
        f"One mistake is planted at a time between a client and its capture; the doctor gets the file and the client's "
        f"pictures, {COUNT} photograph tiles of 32 px, {CLASSES} classes. It names the right fact, and that alone, in "
        f"{hits} of {runs} runs; {whole} of {len(named)} mistakes are named in every run. A run takes "
        f"{min(seconds):.1f} to {max(seconds):.1f} s of one core. Bold: what is named is not what was planted. *Also*: "
        "facts that explain the update as well. *Without pictures*: what `check` alone calls wrong. Running statistics "
        "are those of 64 other tiles.",
        "",
        f"{', '.join(f'`{model}`' for model in models)}. {versions()}.",
        "",
        *table(["mistake", "named"], _counted(named)),
        "Clients that do what no fact covers, each beside the facts of one that does not: nothing is said to explain "
        "the update, and the rule is named among what was not tried.",
        "",
        *table(["rule", "named as untried"], _counted(told)),
        *table(
            [
                "network",
                "client",
                "planted",
                "named",
                "also",
                "without pictures",
                "distance",
                "after",
                "tried",
                "s",
            ],
            rows,
        ),
    ]
    return "\n".join(lines)


def _counted(found: dict[str, list[bool]]) -> list[list[str]]:
    return [[name, f"{sum(right)} of {len(right)}"] for name, right in found.items()]


if __name__ == "__main__":
    main()
