"""The threat model, and the only door between the two sides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from leakmap.errors import BadSetting, check_type
from leakmap.registry.declared import Declared, check

if TYPE_CHECKING:
    from torch import Tensor

    from leakmap.attacker.setting import Setting
    from leakmap.client.simulate import Round
    from leakmap.local_rule import LocalRule
    from leakmap.models.network import Network
    from leakmap.observation.contents import Public
    from leakmap.observation.observation import Observation

AsMany = Literal["auto"]
"""In place of a number: as many as there are."""


@dataclass(frozen=True)
class ThreatModel:
    """Which facts an honest-but-curious server is granted besides the update itself: independent of each other.

    Args:
        labels: ``unknown``; ``counts`` of each class; or ``known``, the class of each example. For detection: nothing;
            how many objects of each class there are; or every box with its class.
        count: Whether it knows the number of examples.
        rule: Whether it knows the local rule (mode, steps, learning rate).
        buffers: Whether the client returns its BatchNorm buffers.
        public: How many public pictures it holds; ``auto``: all that are given to :func:`observe`, and in an audit as
            many as :func:`leakmap.client.groups.divide` can spare. Reports and results hold the number.
        known_pixels: Share of the true pixels that it is given, in [0, 1): only to study what a search makes of a
            good start.
    """

    labels: Annotated[Literal["unknown", "counts", "known"], Declared("Of the client's pictures.")] = "unknown"
    count: Annotated[bool, Declared("How many pictures the client has.", hidden=True)] = True
    rule: Annotated[bool, Declared("What the client does.", hidden=True)] = True
    buffers: Annotated[bool, Declared("Returned BatchNorm buffers.")] = True
    public: Annotated[
        AsMany | int,
        Declared("Public pictures it holds: auto, or how many.", least=0, expected="'auto', or at least 0 pictures"),
    ] = "auto"
    known_pixels: Annotated[
        float,
        Declared(
            "Share of true pixels; study of starts.",
            least=0,
            below=1,
            expected="a share of the true pixels in [0, 1)",
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        check(self, "A threat model's")
        if self.labels != "unknown" and not self.count:
            raise BadSetting("Whoever knows the labels knows how many examples there are: grant count too (--count).")
        if self.known_pixels and not self.count:
            raise BadSetting(
                "Whoever is given true pixels knows how many examples there are: grant count too (--count)."
            )

    @property
    def facts(self) -> frozenset[str]:
        """Names of the facts that an Observation holds under it; ``auto`` counts as some public pictures."""
        granted = {
            "count": self.count,
            "rule": self.rule,
            "buffers": self.buffers,
            "labels": self.labels == "known",
            "label_counts": self.labels != "unknown",
            "public": self.public != 0,
            "known_pixels": self.known_pixels > 0,
        }
        return frozenset(fact for fact, given in granted.items() if given)

    @property
    def letter(self) -> str:
        """The nearest attacker of Carletti et al., see :func:`letter_of`."""
        granted = {
            "rule": self.rule,
            "buffers": self.buffers,
            "public": self.public != 0,
            "labels": self.labels != "unknown",
            "known_pixels": self.known_pixels > 0,
        }
        return letter_of(fact for fact, given in granted.items() if given)


def letter_of(facts: Iterable[str]) -> str:
    """The nearest attacker of Carletti et al. (USENIX Security 2025) for a set of facts; active ones (F to H) never.

    B knows picture statistics such as smoothness and range, which every attack here uses; C adds the local rule; D
    public pictures; E statistics of the client's own data, which returned buffers are. ``+`` marks labels or counts,
    which their ladder leaves open, and ``with known pixels`` true pixels, which none of its attackers holds.
    """
    facts = set(facts)
    letter = "E" if "buffers" in facts else "D" if "public" in facts else "C" if "rule" in facts else "B"
    return f"{letter}{'+' if 'labels' in facts else ''}{' with known pixels' if 'known_pixels' in facts else ''}"


def observe(
    round: Round,
    threat: ThreatModel,
    public: Public | None = None,
    *,
    scored: Tensor | None = None,
    seed: int = 0,
) -> Observation:
    """What a server sees of a round. The result has been through its file form: no graph or storage is shared.

    Args:
        round: What really happened.
        threat: What is granted.
        public: Public pictures, of which the first ``threat.public`` are granted and the first :data:`SHOWN` of these
            are in the Observation; none of them need be given under ``auto``.
        scored: ``(N, C, H, W)`` in [0, 1]: the pictures whose pixels are shown, if not the round's own: a
            swapped update comes with known pixels of those that it is scored against.
        seed: Decides which pixels are known; nothing else is random.

    Raises:
        BadSetting: fewer public pictures are there than granted, or counts of classes where there are none.
        UsageError: an argument is of another type.
    """
    import torch

    from leakmap.client.simulate import Round
    from leakmap.observation.contents import SHOWN
    from leakmap.observation.observation import Observation
    from leakmap.problem.objects import unpack

    check_type(round, Round, "The round", "what leakmap.simulate returns")
    check_type(threat, ThreatModel, "The threat", "a leakmap.ThreatModel")
    y, task = round.batch.y, round.network.task
    if threat.labels == "counts" and not task.counted:
        raise BadSetting(
            f"The target {task.target} has no classes to count; grant the labels (--labels known), or nothing of them."
        )
    granted = Observation(
        network=round.network,
        update=round.update,
        count=len(y) if threat.count else None,
        labels=y if threat.labels == "known" else None,
        label_counts=torch.bincount(unpack(y)[1] if task.objects else y, minlength=task.labels)
        if threat.labels != "unknown" and task.counted
        else None,
        buffers=round.buffers if threat.buffers else None,
        rule=round.rule if threat.rule else None,
        public=_granted_public(threat, public, SHOWN),
        known_pixels=_known_pixels(round.batch.pictures if scored is None else scored, threat.known_pixels, seed)
        if threat.known_pixels
        else None,
    )
    return granted.through_bytes()


def known_before(
    network: Network, rule: LocalRule, count: int, threat: ThreatModel, public: Public | None = None
) -> Setting:
    """What a server knows before any client answers: the setting in which its attacks are fitted.

    Args:
        network: As it is sent to the clients.
        rule: What they do with it.
        count: Examples of each.
        threat: What is granted.
        public: Public pictures, of which the first ``threat.public`` are granted; none need be given under ``auto``.

    Raises:
        BadSetting: fewer public pictures are there than granted.
    """
    from leakmap.attacker.setting import Setting
    from leakmap.observation.contents import Public

    public = _granted_public(threat, public)
    return Setting(
        network,
        rule.share,
        count if threat.count else None,
        rule if threat.rule else None,
        threat.facts if public is not None else threat.facts - {"public"},
        public and Public(public.pictures.to(network.device), public.labels.to(network.device)),
    )


def _granted_public(threat: ThreatModel, public: Public | None, most: int | None = None) -> Public | None:
    """The granted ones, of which at most ``most`` are shown; None where there are none."""
    have = 0 if public is None else len(public.pictures)
    granted = have if threat.public == "auto" else threat.public
    if have < granted:
        raise BadSetting(f"The threat model grants {granted} public pictures; only {have} were given.")
    if public is None or not granted:
        return None
    shown = granted if most is None else min(granted, most)
    return public.first(shown)


def _known_pixels(pictures: Tensor, share: float, seed: int) -> Tensor:
    """The pictures with NaN but for a random share of the pixels, all channels of each; a larger share adds pixels."""
    import torch

    from leakmap.seeds import generator

    count, _, height, width = pictures.shape
    # "hint" names the random stream: under another name, the same seed would show other pixels.
    drawn = torch.rand(count, 1, height, width, generator=generator(seed, "hint")).to(pictures.device)
    return pictures.where(drawn < share, torch.nan)
