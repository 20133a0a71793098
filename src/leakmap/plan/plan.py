"""The plan of an audit: which client, which pictures, which runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from leakmap.attacker.attacks import DEFAULT, attacks
from leakmap.errors import BadSetting, in_words
from leakmap.local_rule import LocalRule
from leakmap.problem import Target
from leakmap.registry.declared import Declared
from leakmap.registry.declared import check as check_values
from leakmap.registry.spec import Spec
from leakmap.scoring import GALLERY
from leakmap.scoring.metrics import metrics
from leakmap.threat import ThreatModel

if TYPE_CHECKING:
    from leakmap.attacker.protocol import Attack

Progress = Callable[[str, float], None]
"""``(what is being done, finished fraction)``."""

MODEL, DATA, CLIENT = "Model", "Data", "Client"
SERVER, ATTACK, RUN = "What the server sees", "Attack", "Run"

BUDGET = 20
"""Settings that a tuning tries of each attack, where nobody says another number."""
SEARCHED, FITTED = 36, 200
"""Usual clients of an attack that works anew on each, and of one that is fitted once and then costs little."""

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
        facts: Of the rehearsed client, see :func:`leakmap.auditing.prepare.facts`.
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
        calibrate: Whether fresh BatchNorm statistics are measured on reference pictures first; training would move
            them.
        image_size: Height and width; None keeps the data's.
        victims: Number of clients; :func:`usual_victims` is what follows from the attack where nobody says.
        batch_size: Pictures of each client.
        classes: Outputs of the model, if there are more than classes in the data.
        normalization: ``data`` (mean and deviation of the reference pictures), ``imagenet``, ``cifar10`` or
            ``M/M/M:S/S/S``.
        loss: ``cross_entropy[,label_smoothing=E]`` or a user's ``file.py:function``; where the target takes another of
            leakmap's own, ``bce`` or ``mse``, the usual value stands for it.
        target: What a picture is labelled with, see :mod:`leakmap.problem.targets`; ``auto``: as data, model and loss
            tell.
        output: Which part of what the model returns the loss takes, a name or a position; empty: all of it.
        seed: Everything random derives from it.
        null: Whether this is a null audit: every update comes from other pictures.
        metrics: Besides PSNR and SSIM.
        gallery: Candidates in a line-up.
        captured: Real updates in place of simulated ones.
    """

    model: Annotated[str, Declared("NAME[,key=value…] or path/to/file.py:function.", MODEL, table="model", key="name")]
    data: Annotated[
        str,
        Declared("samples, npz:FILE, folder:DIR, cifar10:DIR or coco:DIR.", DATA, table="data", key="source"),
    ] = "samples"
    rule: Annotated[LocalRule, Declared(panel=CLIENT, table="client")] = field(default_factory=LocalRule)
    threat: Annotated[ThreatModel, Declared(panel=SERVER, table="threat")] = field(default_factory=ThreatModel)
    attack: Annotated[
        Spec, Declared("NAME[,key=value…] or path/to/file.py:function.", ATTACK, table="attack", key="name")
    ] = field(default_factory=lambda: Spec(DEFAULT))
    tuned: Annotated[Tuning | None, Declared()] = None
    weights: Annotated[
        str | None, Declared("safetensors, or a torch checkpoint.", MODEL, table="weights", key="file")
    ] = None
    train_epochs: Annotated[int, Declared("Train briefly first.", MODEL, table="weights", least=0, limit=10**4)] = 0
    calibrate: Annotated[bool, Declared("Measure fresh BatchNorm statistics first.", MODEL, table="weights")] = False
    image_size: Annotated[int | None, Declared("Crop and resize.", DATA, table="data")] = None
    victims: Annotated[
        int,
        Declared(
            f"Clients to audit; {SEARCHED}, or {FITTED} where the attack is fitted first.",
            DATA,
            table="data",
            least=1,
            follows=True,
        ),
    ] = SEARCHED
    batch_size: Annotated[int, Declared("Pictures of each client.", DATA, table="data", least=1)] = 1
    classes: Annotated[
        int | None,
        Declared("Outputs of the model, if not those of the data.", DATA, table="data", least=1, limit=10**7),
    ] = None
    normalization: Annotated[str, Declared("data, imagenet, cifar10 or MEAN/…:STD/….", DATA, table="data")] = "data"
    loss: Annotated[str, Declared("cross_entropy[,label_smoothing=E] or file.py:function.", MODEL, table="model")] = (
        "cross_entropy"
    )
    target: Annotated[Literal["auto", Target], Declared("What a picture is labelled with.", MODEL, table="model")] = (
        "auto"
    )
    output: Annotated[
        str, Declared("What of the model's outputs the loss takes: a name or a position.", MODEL, table="model")
    ] = ""
    seed: Annotated[int, Declared("Everything random follows.", RUN, table="study")] = 0
    null: Annotated[bool, Declared("A null audit: updates of other pictures.", ATTACK, table="study")] = False
    metrics: Annotated[
        tuple[str, ...],
        Declared("Besides PSNR and SSIM; repeatable.", RUN, option="metric", table="study", key="metrics"),
    ] = ()
    gallery: Annotated[int, Declared("Candidates in a line-up.", RUN, hidden=True, table="study", least=20)] = GALLERY
    captured: Annotated[Captured | None, Declared()] = None

    def __post_init__(self) -> None:
        check_values(self)
        if self.calibrate and self.train_epochs:
            raise BadSetting("calibrate measures the statistics of untrained weights; training measures its own.")

    @property
    def column(self) -> Literal["default", "given"] | Column:
        """Where the attack's settings come from: results of different columns are not compared."""
        if self.tuned is not None:
            return self.tuned.column
        return "given" if self.attack.params else "default"


def usual_victims(attack: Spec) -> int:
    """The number of clients of an audit where nobody says it, by what the attack costs.

    36 clients without a leak bound its share below 10 % (95 %). Where an attack is fitted before any client answers and
    searches nothing afterwards, a client more costs little.

    Raises:
        UsageError: there is no such attack, or a setting of it is unknown.
    """
    return _usual_victims(str(attack))


@lru_cache(maxsize=256)
def _usual_victims(attack: str) -> int:
    built = attacks.build(attack)
    return FITTED if built.fits and not any(part.iterations for part in built.cost.parts) else SEARCHED


def check(plan: Plan) -> None:
    """Refuses an attack or metrics that cannot be, before any work.

    Raises:
        UsageError: no model is named, a name or setting is unknown, or a needed fact is withheld.
    """
    if not plan.model:
        raise BadSetting("Give --model NAME, or --observation FILE with what a real client sent.")
    check_needs(attacks.build(plan.attack), plan.threat)
    for name in plan.metrics:
        metrics.build(name)


def check_needs(attack: "Attack", threat: ThreatModel) -> None:
    """Refuses an attack whose needs are not granted, or that lacks what an attack must have, before any work.

    Raises:
        BadSetting: a needed fact is withheld, or the attack has no floor of its own, for example.
    """
    from leakmap.attacker.protocol import checked
    from leakmap.observation.observation import HOW_TO_GRANT

    if withheld := sorted(checked(attack).needs - threat.facts):
        how = "; ".join(HOW_TO_GRANT[fact] for fact in withheld)
        raise BadSetting(f"This attack needs {', '.join(withheld)}, which the threat model withholds: {how}.")


def check_device(device: str) -> None:
    """Refuses a device that does not exist here.

    Raises:
        BadSetting: torch does not know it, or has no such device.
    """
    import torch

    try:
        float(torch.zeros(1, device=device))
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = in_words(error).partition(": ")[2].partition(". ")[0]
        raise BadSetting(f"The device {device!r} cannot be used here: {reason[:200]}.") from None
