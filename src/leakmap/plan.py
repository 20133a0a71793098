"""The plan of an audit: which client, which pictures, which runs."""

import hashlib
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from leakmap.attacker.attacks import DEFAULT, attacks
from leakmap.attacker.reconstruction import Attack
from leakmap.client.data import Pictures, load_pictures
from leakmap.client.groups import CONTROLS, Groups, divide
from leakmap.client.training import accuracy, train
from leakmap.errors import BadSetting, DataError, ModelError
from leakmap.local import LocalRule
from leakmap.models.network import IN_MEMORY, Network, build_network, read_weights, write_weights
from leakmap.registry import Spec, file_digest, user_code_digest
from leakmap.scoring.lineup import GALLERY
from leakmap.scoring.metrics import ALWAYS, metrics
from leakmap.task import Loss, Task
from leakmap.threat import ThreatModel
from leakmap.trial import Stage, Trial

NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
Progress = Callable[[str, float], None]
"""``(what is being done, finished fraction)``."""


Fact = str | int | float | bool | None
Column = Literal["rehearsal-tuned", "oracle-tuned"]


@dataclass(frozen=True)
class Tuning:
    """Where the settings of a tuned attack come from.

    Args:
        file: The tuned file.
        column: ``rehearsal-tuned`` on public pictures, or ``oracle-tuned`` on the victims themselves.
        budget: Settings that were tried.
        clients: Clients that each was rehearsed on.
        objective: What was maximised.
        default: Its mean with the default settings.
        score: Its mean with these.
        facts: Of the rehearsed client, see :func:`facts`.
        pictures: SHA-256 of every picture that was rehearsed on.
        attacks: How many attacks were tuned; of several, default and score are means.
    """

    file: str
    column: Column
    budget: int
    clients: int
    objective: str
    default: float
    score: float
    facts: dict[str, Fact]
    pictures: tuple[str, ...]
    attacks: int = 1

    def __str__(self) -> str:
        plural = "" if self.clients == 1 else "s"
        clients = f"public client{plural}" if self.column == "rehearsal-tuned" else f"victim{plural}"
        return (
            f"{self.column}, {self.budget} settings × {self.clients} {clients}, "
            f"{self.objective} {self.score:.3g} against {self.default:.3g} with the defaults"
            f"{f' (means of {self.attacks} attacks)' if self.attacks > 1 else ''}"
        )


@dataclass(frozen=True)
class Plan:
    """All that an audit is, as names and numbers.

    Args:
        model: Specification of the architecture.
        data: Specification of the source.
        rule: What the clients do.
        threat: What the server is granted.
        attack: The attack.
        tuned: Where its settings come from, if they were tuned.
        weights: File with weights; None draws them from the seed.
        train_epochs: Epochs of brief training on pictures that no client holds.
        image_size: Height and width; None keeps the data's.
        victims: Number of clients.
        batch_size: Pictures of each client.
        classes: Outputs of the model, if there are more than classes in the data.
        normalise: ``data`` (mean and deviation of the public pictures), ``imagenet``, ``cifar10`` or ``M/M/M:S/S/S``.
        loss: ``cross_entropy[,label_smoothing=E]`` or a user's ``file.py:function``.
        control: ``swapped`` turns the whole audit into a null audit: every update comes from other pictures.
        metrics: Besides PSNR and SSIM.
        gallery: Candidates in a line-up.
        seed: Everything random derives from it.
    """

    model: str
    data: str
    rule: LocalRule = field(default_factory=LocalRule)
    threat: ThreatModel = field(default_factory=ThreatModel)
    attack: Spec = field(default_factory=lambda: Spec(DEFAULT))
    tuned: Tuning | None = None
    weights: str | None = None
    train_epochs: int = 0
    image_size: int | None = None
    victims: int = 12
    batch_size: int = 1
    classes: int | None = None
    normalise: str = "data"
    loss: str = "cross_entropy"
    control: Literal["none", "swapped"] = "none"
    metrics: tuple[str, ...] = ()
    gallery: int = GALLERY
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("victims", 1), ("batch_size", 1), ("train_epochs", 0), ("gallery", 20)):
            if getattr(self, name) < least:
                raise BadSetting(f"{name} must be at least {least}; got {getattr(self, name)}.")
        if self.control not in ("none", "swapped"):
            raise BadSetting(f"control must be 'none' or 'swapped'; got {self.control!r}.")

    @property
    def column(self) -> Literal["default", "given"] | Column:
        """Where the attack's settings come from: results of different columns are not compared."""
        if self.tuned is not None:
            return self.tuned.column
        return "given" if self.attack.params else "default"


@dataclass(frozen=True)
class Names:
    """What an audit is played on, by name, before any network exists: enough to name all of its runs.

    A name is the SHA-256 of a recipe: of pictures, specifications, seed and files, not of weights, which differ in the
    last bit between machines. Empty where code or pictures only live in memory.

    Args:
        network: The audited network.
        main: The stage with the audited network.
        control: The stage with the planted control's.
    """

    network: str = ""
    main: str = ""
    control: str = ""


@dataclass(frozen=True)
class Prepared:
    """The stages of an audit.

    Args:
        main: The audited network and all pictures.
        control: The planted control's network and the same pictures.
        accuracy: Of the audited network on the public pictures.
    """

    main: Stage
    control: Stage
    accuracy: float

    @property
    def digests(self) -> tuple[str, str]:
        """Of both stages."""
        return self.main.digest, self.control.digest


def prepare(
    plan: Plan,
    pictures: Pictures | None = None,
    module: nn.Module | None = None,
    loss: Loss | None = None,
    device: str = "cpu",
    rehearsals: int = 0,
    trained: Path | None = None,
    progress: Progress = lambda what, fraction: None,
) -> Prepared:
    """Loads the pictures, divides them, builds and trains the networks.

    Args:
        plan: The audit.
        pictures: In place of ``plan.data``.
        module: In place of ``plan.model``.
        loss: In place of ``plan.loss``.
        device: Where to train.
        rehearsals: Simulated clients to tune on; they change neither the clients nor the network.
        trained: Folder that keeps briefly trained weights, by name; None trains every time.
        progress: Called with what is being done and the finished fraction.

    Raises:
        UsageError: something does not fit; nothing was computed yet.
    """
    check_device(device)
    check(plan)
    groups, task = gather(plan, pictures, rehearsals, progress)
    progress("building the model", 0.0)
    chosen = module if module is not None else plan.model
    network = build_network(task, chosen, seed=plan.seed, weights=plan.weights, loss=loss).to("cpu")
    in_memory = IN_MEMORY in (plan.model, plan.data) or loss is not None
    names = Names() if in_memory else names_of(plan, task, groups.digest, groups.training_digest)
    if plan.train_epochs:
        kept = trained / f"{names.network}.safetensors" if trained is not None and names.network else None
        network = _kept(network, kept) or _trained(plan, network, groups, device, progress)
        if kept is not None and not kept.is_file():
            write_weights(kept, network)
    public = groups.public
    own_loss = network.code.loss is not None
    right = math.nan if own_loss else accuracy(network, groups.images[public], groups.labels[public])
    return Prepared(Stage(network, groups, names.main), planted(plan, groups, task, names, loss), right)


def planted(plan: Plan, groups: Groups, task: Task, names: Names, loss: Loss | None = None) -> Stage:
    """The stage of the planted control: a network that is known to leak to the plan's attack, and the same pictures."""
    leaky = attacks.build(plan.attack).leaky_model
    return Stage(build_network(task, leaky, seed=plan.seed, loss=loss), groups, names.control)


def check(plan: Plan) -> None:
    """Refuses an attack or metrics that cannot be, before any work.

    Raises:
        UsageError: a name or setting is unknown, or a needed fact is withheld.
    """
    check_needs(attacks.build(plan.attack), plan.threat)
    for name in plan.metrics:
        metrics.build(name)


def gather(
    plan: Plan,
    pictures: Pictures | None = None,
    rehearsals: int = 0,
    progress: Progress = lambda what, fraction: None,
) -> tuple[Groups, Task]:
    """The pictures of an audit in groups, and the task that they make.

    Args:
        plan: The audit.
        pictures: In place of ``plan.data``.
        rehearsals: Simulated clients to tune on.
        progress: Called with what is being done and the finished fraction.

    Raises:
        UsageError: there are too few pictures, or they do not fit the plan.
    """
    progress("loading pictures", 0.0)
    groups = divide(
        pictures or load_pictures(plan.data, plan.image_size),
        victims=plan.victims,
        batch_size=plan.batch_size,
        public=plan.threat.public,
        training=plan.train_epochs > 0,
        rehearsals=rehearsals,
        seed=plan.seed,
    )
    groups = _without_rehearsed(plan, groups)
    channels, height, width = groups.images.shape[1:]
    mean, std = _normalisation(plan.normalise, groups)
    classes = plan.classes or len(groups.classes)
    if classes < len(groups.classes):
        raise BadSetting(f"classes is {classes}, but the pictures have {len(groups.classes)} classes.")
    return groups, Task((channels, height, width), classes, mean, std, Spec.parse(plan.loss))


def names_of(plan: Plan, task: Task, pictures: str, training: str) -> Names:
    """The names of what an audit is played on.

    Args:
        plan: The audit.
        task: Its task.
        pictures: Digest of the groups.
        training: Digest of the pictures that weights are trained on.

    Raises:
        UsageError: a file that the plan names is not there.
    """
    model = Spec.parse(plan.model)
    facts = {"task": asdict(task), "code": user_code_digest(task.loss), "seed": plan.seed}
    own: dict[str, Any] = {"model": asdict(model), "code of model": user_code_digest(model)}
    if plan.weights is not None:
        own["weights"] = file_digest(Path(plan.weights))
    if plan.train_epochs:
        own |= {"epochs": plan.train_epochs, "training": training}
    network = _named(facts | own)
    leaky = {"model": asdict(Spec.parse(attacks.build(plan.attack).leaky_model))}
    return Names(
        network, _named({"network": network, "pictures": pictures}), _named(facts | leaky | {"pictures": pictures})
    )


def _named(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _kept(network: Network, path: Path | None) -> Network | None:
    """The network with the weights of a file; None where there is none that can be read."""
    if path is None or not path.is_file():
        return None
    try:
        found = replace(network, weights=read_weights(path))
        found.module()
    except ModelError:
        path.unlink(missing_ok=True)
        return None
    return found


def _trained(plan: Plan, network: Network, groups: Groups, device: str, progress: Progress) -> Network:
    pool = groups.training
    found = train(
        network.to(device),
        groups.images[pool],
        groups.labels[pool],
        plan.train_epochs,
        plan.seed,
        lambda fraction: progress("training briefly", fraction),
    )
    return found.to("cpu")


def facts(plan: Plan, stage: Stage) -> dict[str, Fact]:
    """What settings are tuned to, by name: the network, the client and what the server is granted."""
    return {
        "model": plan.model,
        "weights": stage.network_digest,
        "data": plan.data,
        "batch_size": plan.batch_size,
        **{f"rule.{name}": value for name, value in asdict(plan.rule).items()},
        **{f"threat.{name}": value for name, value in asdict(plan.threat).items()},
    }


def _without_rehearsed(plan: Plan, groups: Groups) -> Groups:
    """The groups without distractors that were rehearsed on.

    Raises:
        DataError: a victim was rehearsed on, in settings that do not say so.
    """
    if plan.tuned is None or plan.tuned.column == "oracle-tuned":
        return groups
    seen = set(plan.tuned.pictures).intersection(groups.digests(groups.victims))
    if seen:
        raise DataError(
            f"{len(seen)} of {groups.victims.numel()} pictures of victims were rehearsed on in {plan.tuned.file}; "
            "tune again with the --seed, --victims and --batch-size of this audit."
        )
    rehearsed = set(plan.tuned.pictures)
    kept = [digest not in rehearsed for digest in groups.digests(groups.distractors)]
    return replace(groups, distractors=groups.distractors[torch.tensor(kept, dtype=torch.bool)])


def _normalisation(text: str, groups: Groups) -> tuple[tuple[float, ...], tuple[float, ...]]:
    channels = groups.images.shape[1]
    if text == "data":
        public = groups.pictures(groups.public).transpose(0, 1).flatten(1)
        mean, std = public.mean(1), public.std(1).clamp(min=0.05)
        return tuple(round(v, 3) for v in mean.tolist()), tuple(round(v, 3) for v in std.tolist())
    if text in NORMALISATIONS:
        mean, std = NORMALISATIONS[text]
    else:
        try:
            left, right = text.split(":")
            mean, std = tuple(map(float, left.split("/"))), tuple(map(float, right.split("/")))
        except ValueError:
            known = ", ".join(["data", *NORMALISATIONS])
            raise BadSetting(f"normalise is one of {known}, or MEAN/…:STD/…; got {text!r}.") from None
    if len(mean) != channels:
        raise BadSetting(f"normalise={text} has {len(mean)} channels, the pictures have {channels}.")
    return mean, std


def check_needs(attack: Attack, threat: ThreatModel) -> None:
    """Refuses an attack whose needs are not granted, before any work.

    Raises:
        BadSetting: a needed fact is withheld.
    """
    granted = {
        "count": threat.count,
        "rule": threat.rule,
        "buffers": threat.buffers,
        "labels": threat.labels == "known",
        "label_counts": threat.labels != "unknown",
        "public": threat.public > 0,
        "hint": threat.hint > 0,
    }
    if withheld := sorted(fact for fact in attack.needs if not granted[fact]):
        raise BadSetting(f"This attack needs {', '.join(withheld)}, which the threat model withholds; grant it.")


def check_device(device: str) -> None:
    """Refuses a device that does not exist here.

    Raises:
        BadSetting: torch does not know it, or has no such device.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise BadSetting(f"The device {device!r} cannot be used here: {reason}.") from None


ROLES = ("attack", "swapped", "prior_only", "control")


def trials(plan: Plan, main: str, control: str) -> dict[str, list[Trial]]:
    """Every run of an audit, by role, from the digests of its stages.

    ``attack`` is what is judged; ``swapped`` and ``prior_only`` are its floors; ``control`` is the planted client that
    is known to leak: an architecture that leaks to this attack, in inference mode, one picture.
    """
    own = 1 if plan.control == "swapped" else 0
    base = Trial(
        main,
        plan.rule,
        plan.threat,
        plan.attack,
        seed=plan.seed,
        gallery=plan.gallery,
        metrics=(*ALWAYS, *plan.metrics),
        code=user_code_digest(plan.attack),
    )
    prior = plan.attack
    if prior.name != "prior_only":
        prior = Spec("prior_only", {"of": plan.attack.name, **plan.attack.params})
    victims = range(plan.victims)
    planted = replace(base, stage=control, rule=LocalRule(mode="eval"), group="controls", metrics=ALWAYS)
    return {
        "attack": [replace(base, client=v, swap=own) for v in victims],
        "swapped": [replace(base, client=v, swap=own + 1) for v in victims],
        "prior_only": [replace(base, client=v, swap=own, attack=prior) for v in victims],
        "control": [replace(planted, client=k) for k in range(CONTROLS)],
    }


def local_batch(batch_size: int, local_steps: int) -> int | None:
    """Pictures of one local step, when a client's pictures are split into ``local_steps`` mini-batches.

    Raises:
        BadSetting: they cannot be split so.
    """
    if local_steps == 1:
        return None
    part = -(-batch_size // max(local_steps, 1))
    if local_steps < 1 or -(-batch_size // part) != local_steps:
        raise BadSetting(
            f"{batch_size} pictures cannot be split into {local_steps} mini-batches; "
            "raise --batch-size, or repeat all pictures with --epochs."
        )
    return part


def command(plan: Plan) -> str:
    """The command line, or for things in memory the call, that repeats an audit."""
    rule, threat, default = plan.rule, plan.threat, LocalRule()
    if IN_MEMORY in (plan.model, plan.data):
        return (
            f"leakmap.audit(model, images, labels, client={rule}, threat={threat}, attack={str(plan.attack)!r}, "
            f"victims={plan.victims}, batch_size={plan.batch_size}, control={plan.control!r}, seed={plan.seed})"
        )
    parts = ["--model", plan.model, "--data", plan.data, "--mode", rule.mode]
    steps = None if rule.batch_size is None else -(-plan.batch_size // rule.batch_size)
    options = {
        "weights": (plan.weights, None),
        "train-epochs": (plan.train_epochs, 0),
        "image-size": (plan.image_size, None),
        "classes": (plan.classes, None),
        "normalise": (plan.normalise, "data"),
        "loss": (plan.loss, "cross_entropy"),
        "victims": (plan.victims, 12),
        "batch-size": (plan.batch_size, 1),
        "share": (rule.share, default.share),
        "local-steps": (steps, None),
        "epochs": (rule.epochs, default.epochs),
        "lr": (rule.lr, default.lr),
        "momentum": (rule.momentum, default.momentum),
        "weight-decay": (rule.weight_decay, default.weight_decay),
        "optimizer": (rule.optimizer, default.optimizer),
        "dropout": (rule.dropout, None),
        "accumulate": (rule.accumulate, 1),
        "defence": (rule.defence, default.defence),
        "labels": (threat.labels, "unknown"),
        "public": (threat.public, 0),
        "hint": (threat.hint, 0.0),
        "attack": (str(plan.attack) if plan.tuned is None else plan.attack.name, DEFAULT),
        "tuned": (plan.tuned and plan.tuned.file, None),
        "control": (plan.control, "none"),
        "seed": (plan.seed, 0),
    }
    for name, (value, usual) in options.items():
        parts += [f"--{name}", str(value)] if value != usual else []
    for name in plan.metrics:
        parts += ["--metric", name]
    parts += [] if threat.buffers else ["--no-buffers"]
    parts += ["--shuffle"] if rule.shuffle else []
    return shlex.join(["leakmap", "audit", *parts])
