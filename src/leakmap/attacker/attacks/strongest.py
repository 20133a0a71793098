"""The suite that an auditor runs when no attack is named."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from leakmap.attacker.attacks import attacks
from leakmap.attacker.buffers import assumed_rule
from leakmap.attacker.matching.context import SearchContext
from leakmap.attacker.matching.residual import buffer_residual, update_residual
from leakmap.attacker.matching.statistics import norm_layers
from leakmap.attacker.protocol import Attack, Cost, Fitted, trying_shows
from leakmap.attacker.reconstruction import Attempt, Reconstruction, Tick
from leakmap.attacker.setting import Setting
from leakmap.client_step import LocalRule
from leakmap.errors import BadSetting, LeakmapError, NonFinite, NotApplicable
from leakmap.observation.observation import Observation
from leakmap.registry.spec import Spec
from leakmap.seeds import derive

SUITE, VERSION = "strongest", "v1"
SOLVED = 1e-6
"""Cosine distance of the update at which nothing is left to find: the rest of the suite is not run."""


MEMBERS = (
    "linear",
    "spear",
    "april",
    "patch_positions",
    "inverting_gradients",
    "recovered_statistics",
    "proxy_statistics",
    "dropout_inversion",
    "dimitrov",
)
"""In the order in which they run: closed forms, the cheapest, first. Each says for itself why it does not apply."""


@attacks.add(SUITE)
def strongest(*, steps: int | None = None, restarts: int | None = None, **settings: Any) -> "Strongest":
    """Every attack that the granted knowledge allows, cheapest first; what explains best what the client sent wins.

    Suite v1: the closed forms linear, spear, april and patch_positions; inverting_gradients; recovered_statistics where
    buffers moved; proxy_statistics where public pictures are granted; dropout_inversion where dropout is active;
    dimitrov where mini-batches are shuffled from epoch to epoch. All results are compared by one update residual, how
    far each is from what the client sent: the cosine distance of the whole update in the client's mode, with dropout
    masks fitted to each result, plus the squared relative distance of the returned running statistics where they moved.
    None is chosen by the truth. Once a result explains the update to 1e-6, the rest is left out.

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


def applying(suite: Spec, observation: Observation) -> list[Spec]:
    """The specifications of the members that would run against such a client."""
    return [member for member in member_specs(suite) if not attacks.build(member).why_not(observation)]


@dataclass(frozen=True)
class Strongest:
    """The suite, ready to be fitted.

    Args:
        members: By name, in the order in which they run.
    """

    members: tuple[tuple[str, Attack], ...]

    needs = frozenset({"count"})
    leaky_model = "convnet"
    why_not = trying_shows

    @property
    def cost(self) -> Cost:
        """That of its members together."""
        return Cost(members=tuple(member.cost for _, member in self.members))

    @property
    def fits(self) -> str:
        """What its members fit."""
        return "; ".join(f"{name}: {member.fits}" for name, member in self.members if member.fits)

    def blind(self) -> "Floor":
        """The floor of the suite: its plain search, with public statistics where these are granted."""
        members = dict(self.members)
        return Floor(members["inverting_gradients"].blind(), members["proxy_statistics"].blind())

    def fit(self, setting: Setting, seed: int, tick: Tick) -> Fitted:
        """Fits the members whose needs are granted, each as if it were alone."""
        able = [(name, member) for name, member in self.members if member.needs <= setting.granted]
        parts = [lambda f, p=place: tick((p + f) / len(able)) for place in range(len(able))]
        return self._ready(
            {name: member.fit(setting, seed, part) for (name, member), part in zip(able, parts, strict=True)}
        )

    def restored(self, setting: Setting, state: Mapping[str, Tensor]) -> Fitted:
        """The same members from their states, whose names begin with that of the member."""
        able = {name: member for name, member in self.members if member.needs <= setting.granted}
        return self._ready({name: member.restored(setting, _own(name, state)) for name, member in able.items()})

    def _ready(self, fitted: Mapping[str, Fitted]) -> Fitted:
        state = {f"{name}/{key}": tensor for name, member in fitted.items() for key, tensor in member.state.items()}
        return Fitted(self.needs, partial(self._attack, fitted), state)

    def _attack(self, fitted: Mapping[str, Fitted], observation: Observation, seed: int, tick: Tick) -> Reconstruction:
        """Attacks with every member that applies.

        Raises:
            NotApplicable: no member applies.
            LeakmapError: a member that applies failed, and no other came to a result.
        """
        assumed = assumed_rule(observation)
        unfit = "a fact that it needs is not granted"
        skipped = {n: member.why_not(observation) or ("" if n in fitted else unfit) for n, member in self.members}
        running = [name for name, why in skipped.items() if not why]
        attempts: list[Attempt] = []
        results: dict[str, Reconstruction] = {}
        lowest = math.inf
        for name, why in skipped.items():
            if not why and lowest <= SOLVED:
                why = f"the update is already explained to {SOLVED:g}"
            if why:
                attempts.append(Attempt(name, note=why))
                continue
            place, started = running.index(name), time.perf_counter()
            try:
                found = fitted[name](observation, seed, lambda f, p=place: tick((p + f) / len(running)))
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
            # A failure must not pass for the answer that nothing applies: a floor that gives it counts as measured.
            kind = LeakmapError if any(attempt.failed for attempt in attempts) else NotApplicable
            raise kind(f"No member of the suite came to a result ({told}).")
        winner = min((attempt for attempt in attempts if attempt.pictures is not None), key=lambda a: a.term)
        best = results[winner.name]
        return replace(
            best,
            objective=winner.term,
            notes={**(best.notes or {}), "suite": VERSION, "won": winner.name},
            attempts=tuple(attempts),
            used=assumed.used.union(*(found.used for found in results.values())),
        )


def _own(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in state.items() if key.startswith(f"{name}/")}


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

    plain: Attack
    proxy: Attack

    needs = frozenset({"count"})
    leaky_model = "convnet"
    why_not = trying_shows

    @property
    def cost(self) -> Cost:
        """Of either."""
        return Cost(members=(self.plain.cost,))

    @property
    def fits(self) -> str:
        """Searches without an update fit nothing."""
        return self.plain.fits or self.proxy.fits

    def blind(self) -> "Floor":
        """A floor is blind already."""
        return self

    def fit(self, setting: Setting, seed: int, tick: Tick) -> Fitted:
        """Fits the one that the setting allows."""
        return self._chosen(setting).fit(setting, seed, tick)

    def restored(self, setting: Setting, state: Mapping[str, Tensor]) -> Fitted:
        """The same from its state."""
        return self._chosen(setting).restored(setting, state)

    def _chosen(self, setting: Setting) -> Attack:
        return self.proxy if setting.public is not None and norm_layers(setting.network.module()) else self.plain
