"""The plan of an audit: which client, which pictures, which runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from leakmap.attacker.attacks import DEFAULT, attacks
from leakmap.attacker.protocol import Attack, checked
from leakmap.client_step import LocalRule
from leakmap.errors import BadSetting
from leakmap.registry.spec import Spec
from leakmap.scoring.lineup import GALLERY
from leakmap.scoring.metrics import metrics
from leakmap.threat import ThreatModel

Progress = Callable[[str, float], None]
"""``(what is being done, finished fraction)``."""

Scalar = str | int | float | bool | None
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
    facts: dict[str, Scalar]
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
        normalization: ``data`` (mean and deviation of the public pictures), ``imagenet``, ``cifar10`` or
            ``M/M/M:S/S/S``.
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
    normalization: str = "data"
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
    """Refuses an attack whose needs are not granted, or that lacks what an attack must have, before any work.

    Raises:
        BadSetting: a needed fact is withheld, or the attack has no floor of its own, for example.
    """
    if withheld := sorted(checked(attack).needs - threat.facts):
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
