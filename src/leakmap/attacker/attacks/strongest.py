"""The suite that an auditor runs when no attack is named."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from leakmap.attacker.attacks import attacks
from leakmap.attacker.buffers import assumed_rule, client_passes
from leakmap.attacker.matching.context import SearchContext
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.masks import open_masks
from leakmap.attacker.matching.residual import buffer_residual, update_residual
from leakmap.attacker.matching.statistics import norm_layers
from leakmap.attacker.reconstruction import Attack, Attempt, Reconstruction, Tick
from leakmap.client_step import LocalRule
from leakmap.errors import BadSetting, NonFinite, NotApplicable
from leakmap.observation.observation import Observation
from leakmap.registry.spec import Spec
from leakmap.seeds import derive

SUITE, VERSION = "strongest", "v1"
SOLVED = 1e-6
"""Cosine distance of the update at which nothing is left to find: the rest of the suite is not run."""


def _always(observation: Observation, rule: LocalRule) -> str:
    return ""


def _moved_buffers(observation: Observation, rule: LocalRule) -> str:
    if observation.buffers is None:
        return "the client's buffers are not granted"
    try:
        mode = client_passes(observation).mode
    except NotApplicable as error:
        return str(error)
    if mode is None:
        return "there is no BatchNorm layer"
    return "" if mode == "train" else "the client ran in inference mode"


def _public(observation: Observation, rule: LocalRule) -> str:
    return "" if observation.public is not None else "no public pictures are granted"


def _dropout(observation: Observation, rule: LocalRule) -> str:
    return "" if open_masks(observation.network.module(), rule).layers else "there is no active dropout"


def _unknown_order(observation: Observation, rule: LocalRule) -> str:
    count = observation.count or 1
    mixed = rule.shuffle and rule.epochs > 1 and (rule.batch_size or count) < count
    return "" if mixed else "no mini-batches are shuffled from epoch to epoch"


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
    """Every attack that the granted knowledge allows, cheapest first; what explains best what the client sent wins.

    Suite v1: the closed forms linear, spear and april; inverting_gradients; recovered_statistics where buffers moved;
    proxy_statistics where public pictures are granted; dropout_inversion where dropout is active; dimitrov where
    mini-batches are shuffled from epoch to epoch. All results are compared by one update residual, how far each
    is from what the client sent: the cosine distance of the whole update in the client's mode, with dropout masks
    fitted to each result, plus the squared relative distance of the returned running statistics where they moved. None
    is chosen by the truth. Once a result explains the update to 1e-6, the rest is left out.

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


def why_not(member: str, observation: Observation, rule: LocalRule) -> str:
    """Why a member of the suite does not apply to a client; empty if it does, or if only trying will show."""
    return MEMBERS[member](observation, rule)


@dataclass(frozen=True)
class Strongest:
    """The suite, ready to run.

    Args:
        members: By name, in the order in which they run.
    """

    members: tuple[tuple[str, Attack], ...]

    needs = frozenset({"count"})
    leaky_model = "convnet"

    def blind(self) -> "Floor":
        """The floor of the suite: its plain search, with public statistics where these are granted."""
        members = dict(self.members)
        searches = [members[name] for name in ("inverting_gradients", "proxy_statistics")]
        plain, proxy = (m.blind() for m in searches if isinstance(m, GradientMatching))
        return Floor(plain, proxy)

    def __call__(self, observation: Observation, seed: int, tick: Tick) -> Reconstruction:
        """Attacks with every member that applies.

        Raises:
            NotApplicable: no member came to a result.
        """
        assumed = assumed_rule(observation)
        skipped = {name: why_not(name, observation, assumed.rule) for name, _ in self.members}
        running = [name for name, why in skipped.items() if not why]
        attempts: list[Attempt] = []
        results: dict[str, Reconstruction] = {}
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
                found = member(observation, seed, lambda f, p=place: tick((p + f) / len(running)))
                distance, term = _residuals(observation, assumed.rule, found, seed)
            except NotApplicable as error:
                attempts.append(Attempt(name, note=str(error)))
                continue
            except Exception as error:
                attempts.append(Attempt(name, note=f"{type(error).__name__}: {error}", failed=True))
                continue
            attempts.append(Attempt(name, found.pictures, found.y, term, time.perf_counter() - started))
            results[name] = found
            lowest = min(lowest, distance)
        tick(1.0)
        if not results:
            told = "; ".join(f"{attempt.name}: {attempt.note}" for attempt in attempts)
            raise NotApplicable(f"No member of the suite came to a result ({told}).")
        winner = min((attempt for attempt in attempts if attempt.pictures is not None), key=lambda a: a.term)
        best = results[winner.name]
        used = assumed.used.union(*(str((r.notes or {}).get("used", "")).split(", ") for r in results.values()))
        notes = {**(best.notes or {}), "suite": VERSION, "won": winner.name, "used": ", ".join(sorted(used - {""}))}
        return replace(best, objective=winner.term, notes=notes, attempts=tuple(attempts))


def _residuals(observation: Observation, rule: LocalRule, found: Reconstruction, seed: int) -> tuple[float, float]:
    """How far a result is from the update, and from all that the client sent, by which results are compared.

    Raises:
        NonFinite: its pictures or the update residual are not finite.
    """
    context = SearchContext(observation, rule, found.y, derive(seed, "yardstick"))
    x = observation.network.task.normalize(found.pictures)
    distance = update_residual(context, x)
    term = distance + buffer_residual(context, x)
    if not bool(torch.isfinite(found.pictures).all()) or not math.isfinite(term):
        raise NonFinite("The pictures, or the update that they would give, are not finite.")
    return distance, term


@dataclass(frozen=True)
class Floor:
    """What the suite paints without all that came from the client.

    Args:
        plain: Where no public pictures are granted.
        proxy: Where they are, and the network has normalization layers.
    """

    plain: GradientMatching
    proxy: GradientMatching

    needs = frozenset({"count"})
    leaky_model = "convnet"

    def __call__(self, observation: Observation, seed: int, tick: Tick) -> Reconstruction:
        """Paints."""
        proxy = observation.public is not None and norm_layers(observation.network.module())
        return (self.proxy if proxy else self.plain)(observation, seed, tick)
