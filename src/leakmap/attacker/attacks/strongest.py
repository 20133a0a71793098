"""The suite that an auditor runs when no attack is named."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from leakmap.attacker.attacks import attacks
from leakmap.attacker.buffers import client_passes, tracked_layers
from leakmap.attacker.matching.engine import matching_term
from leakmap.attacker.matching.gradient_matching import GradientMatching, assumed_rule
from leakmap.attacker.matching.masks import open_masks
from leakmap.attacker.matching.scene import Scene
from leakmap.attacker.reconstruction import Attack, Attempt, Progress, Reconstruction
from leakmap.errors import BadSetting, LeakmapError, NotApplicable
from leakmap.local import LocalRule
from leakmap.observation import Observation
from leakmap.registry import Spec

SUITE, VERSION = "strongest", "v1"
SOLVED = 1e-6
"""Matching term at which nothing is left to find: the rest of the suite is not run."""


def _always(observation: Observation, rule: LocalRule) -> str:
    return ""


def _moved_buffers(observation: Observation, rule: LocalRule) -> str:
    if observation.buffers is None:
        return "the client's buffers are not granted"
    if not tracked_layers(observation):
        return "there is no BatchNorm layer"
    return "" if client_passes(observation).mode == "train" else "the client ran in inference mode"


def _public(observation: Observation, rule: LocalRule) -> str:
    return "" if observation.public is not None else "no public pictures are granted"


def _dropout(observation: Observation, rule: LocalRule) -> str:
    return "" if open_masks(observation.network.module(), rule).layers else "there is no active dropout"


def _unknown_order(observation: Observation, rule: LocalRule) -> str:
    count = observation.count or 1
    mixed = rule.epochs > 1 and (rule.batch_size or count) < count
    return "" if mixed else "there are no mini-batches whose order changes from epoch to epoch"


MEMBERS: dict[str, Callable[[Observation, LocalRule], str]] = {
    "linear": _always,
    "spear": _always,
    "april": _always,
    "inverting_gradients": _always,
    "recovered_statistics": _moved_buffers,
    "proxy_statistics": _public,
    "dropout_inversion": _dropout,
    "dimitrov": _unknown_order,
}
"""Member -> why it does not apply, empty if it does. Closed forms, the cheapest, come first and say for themselves."""


@attacks.add(SUITE)
def strongest(*, steps: int | None = None, restarts: int | None = None, **settings: Any) -> "Strongest":
    """Every attack that the granted knowledge allows, cheapest first; the lowest matching term wins.

    Suite v1: the closed forms linear, spear and april; inverting_gradients; recovered_statistics where buffers moved;
    proxy_statistics where public pictures are granted; dropout_inversion where dropout is active; dimitrov where the
    order of mini-batches is unknown. All results are compared by one yardstick, the cosine distance of the whole update
    in the client's mode; none is chosen by the truth. Once a result explains the update to 1e-6, the rest is left out.

    Args:
        steps: Iterations of every search; by default each member's own.
        restarts: Independent starts of every search.
        settings: ``MEMBER.setting=value``, as a rehearsal chooses them.

    Applies: always.

    Source: this project, after AutoAttack (Croce and Hein 2020, arXiv:2003.01690).
    """
    given = {key: value for key, value in (("steps", steps), ("restarts", restarts)) if value is not None}
    members = member_specs(Spec(SUITE, given | settings))
    return Strongest(tuple((member.name, attacks.build(member)) for member in members))


def member_specs(suite: Spec) -> list[Spec]:
    """The specification of every member, with the settings that that of the suite gives it.

    Raises:
        BadSetting: a setting is neither ``steps``, ``restarts`` nor ``MEMBER.setting``.
    """
    own: dict[str, dict[str, Any]] = {name: {} for name in MEMBERS}
    common: dict[str, Any] = {}
    for key, value in suite.params.items():
        member, dot, setting = key.partition(".")
        if key in ("steps", "restarts"):
            common[key] = value
        elif dot and member in MEMBERS:
            own[member][setting] = value
        else:
            raise BadSetting(
                f"The suite takes steps, restarts and MEMBER.setting, MEMBER being {', '.join(MEMBERS)}; got {key!r}."
            )
    return [
        Spec(name, {key: value for key, value in common.items() if key in attacks.settings(name)} | params)
        for name, params in own.items()
    ]


def why_not(member: str, observation: Observation) -> str:
    """Why a member of the suite does not apply; empty if it does, or if only trying will show."""
    return MEMBERS[member](observation, assumed_rule(observation)[0])


@dataclass(frozen=True)
class Strongest:
    """The suite, ready to run.

    Args:
        members: By name, in the order in which they run.
    """

    members: tuple[tuple[str, Attack], ...]

    needs = frozenset({"count"})
    leaky_model = "convnet"

    def blind(self) -> GradientMatching:
        """The floor of the suite: that of its plain search."""
        plain = dict(self.members)["inverting_gradients"]
        return (plain if isinstance(plain, GradientMatching) else GradientMatching()).blind()

    def __call__(self, observation: Observation, seed: int, progress: Progress) -> Reconstruction:
        """Attacks with every member that applies.

        Raises:
            LeakmapError: no member came to a result; the message is the last one's.
        """
        rule, _ = assumed_rule(observation)
        skipped = {name: why_not(name, observation) for name, _ in self.members}
        running = [name for name, why in skipped.items() if not why]
        attempts: list[Attempt] = []
        results: dict[str, Reconstruction] = {}
        last: LeakmapError | None = None
        lowest = math.inf
        for name, member in self.members:
            why = skipped[name]
            if not why and lowest <= SOLVED:
                why = f"the update is already explained to {SOLVED:g}"
            if why:
                attempts.append(Attempt(name, note=why))
                continue
            place, started = running.index(name), time.perf_counter()
            try:
                observation.need(*sorted(member.needs))
                found = member(observation, seed, lambda f, p=place: progress((p + f) / len(running)))
            except LeakmapError as error:
                last = error
                failed = "" if isinstance(error, NotApplicable) else f"{type(error).__name__}: "
                attempts.append(Attempt(name, note=f"{failed}{error}", failed=bool(failed)))
                continue
            x = observation.network.task.normalise(found.pictures)
            term = matching_term(Scene(observation, rule, found.y, seed), x)
            attempts.append(Attempt(name, found.pictures, found.y, term, time.perf_counter() - started))
            results[name] = found
            lowest = min(lowest, term)
        progress(1.0)
        if last is not None and not results:
            raise last
        winner = min((a for a in attempts if a.pictures is not None), key=lambda a: _order(a.term))
        best = results[winner.name]
        notes = {**(best.notes or {}), "suite": VERSION, "won": winner.name}
        return replace(best, objective=winner.term, notes=notes, attempts=tuple(attempts))


def _order(term: float) -> float:
    return term if math.isfinite(term) else math.inf
