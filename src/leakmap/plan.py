"""The plan of an audit: which client, which pictures, which runs."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from leakmap.attacker.attacks import DEFAULT, attacks
from leakmap.attacker.reconstruction import Attack
from leakmap.client.groups import CONTROLS
from leakmap.errors import BadSetting
from leakmap.local import LocalRule
from leakmap.models.network import IN_MEMORY
from leakmap.registry import Spec, is_user_code, user_code_digest
from leakmap.scoring.lineup import GALLERY
from leakmap.scoring.metrics import ALWAYS, metrics
from leakmap.threat import ThreatModel
from leakmap.trial import Trial

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
class Captured:
    """Real updates that are audited in place of simulated ones, and the auditor's pictures.

    Args:
        observations: Files with what each client sent.
        truths: Specification of the pictures that each of them held.
        others: Specification of pictures of the same kind that no client held.
    """

    observations: tuple[str, ...]
    truths: tuple[str, ...]
    others: str


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
        calibrate: Whether fresh BatchNorm statistics are measured on public pictures first; training would move them.
        image_size: Height and width; None keeps the data's.
        victims: Number of clients.
        batch_size: Pictures of each client.
        classes: Outputs of the model, if there are more than classes in the data.
        normalise: ``data`` (mean and deviation of the public pictures), ``imagenet``, ``cifar10`` or ``M/M/M:S/S/S``.
        loss: ``cross_entropy[,label_smoothing=E]`` or a user's ``file.py:function``.
        control: ``swapped`` turns the whole audit into a null audit: every update comes from other pictures.
        metrics: Besides PSNR and SSIM.
        gallery: Candidates in a line-up.
        captured: Real updates in place of simulated ones.
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
    calibrate: bool = False
    image_size: int | None = None
    victims: int = 12
    batch_size: int = 1
    classes: int | None = None
    normalise: str = "data"
    loss: str = "cross_entropy"
    control: Literal["none", "swapped"] = "none"
    metrics: tuple[str, ...] = ()
    gallery: int = GALLERY
    captured: Captured | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("victims", 1), ("batch_size", 1), ("train_epochs", 0), ("gallery", 20)):
            if getattr(self, name) < least:
                raise BadSetting(f"{name} must be at least {least}; got {getattr(self, name)}.")
        if self.calibrate and self.train_epochs:
            raise BadSetting("calibrate measures the statistics of untrained weights; training measures its own.")
        if self.control not in ("none", "swapped"):
            raise BadSetting(f"control must be 'none' or 'swapped'; got {self.control!r}.")

    @property
    def column(self) -> Literal["default", "given"] | Column:
        """Where the attack's settings come from: results of different columns are not compared."""
        if self.tuned is not None:
            return self.tuned.column
        return "given" if self.attack.params else "default"


def check(plan: Plan) -> None:
    """Refuses an attack or metrics that cannot be, before any work.

    Raises:
        UsageError: a name or setting is unknown, or a needed fact is withheld.
    """
    check_needs(attacks.build(plan.attack), plan.threat)
    for name in plan.metrics:
        metrics.build(name)


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
    if plan.captured is not None:
        return _command_of_captured(plan, plan.captured)
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
    parts += ["--calibrate"] if plan.calibrate else []
    parts += [] if threat.buffers else ["--no-buffers"]
    parts += ["--shuffle"] if rule.shuffle else []
    return shlex.join(["leakmap", "audit", *parts])


def _command_of_captured(plan: Plan, captured: Captured) -> str:
    parts = ["leakmap", "audit"]
    for file, truth in zip(captured.observations, captured.truths, strict=True):
        parts += ["--observation", file, "--truth", truth]
    parts += ["--others", captured.others, "--attack", str(plan.attack), "--labels", plan.threat.labels]
    parts += ["--model", plan.model] if is_user_code(Spec.parse(plan.model).name) else []
    parts += ["--loss", plan.loss] if is_user_code(Spec.parse(plan.loss).name) else []
    parts += ["--public", str(plan.threat.public)] if plan.threat.public else []
    for name in plan.metrics:
        parts += ["--metric", name]
    return shlex.join([*parts, "--seed", str(plan.seed)])
