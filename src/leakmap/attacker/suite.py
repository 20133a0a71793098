"""Suites of attacks: which member answers for a client, by rehearsal on simulated ones or by the update residual."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from leakmap.attacker.budget import SPLITS, Pace, Paced, pace_within
from leakmap.attacker.buffers import assumed_rule
from leakmap.attacker.chances import Chances, chances_of
from leakmap.attacker.learned.rehearsal import READ, Rehearsals, rehearsals_of
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.residual import residuals
from leakmap.attacker.matching.statistics import norm_layers
from leakmap.attacker.protocol import Attack, Cost, FitCost, Fitted, Kept, trying_shows
from leakmap.attacker.reconstruction import Attempt, Reconstruction, Tick
from leakmap.attacker.setting import Setting
from leakmap.errors import LeakmapError, NotApplicable, NotGranted
from leakmap.observation.observation import Observation

PLAIN, PROXY = "inverting_gradients", "proxy_statistics"
"""The searches whose floors are those of the suite without rehearsals."""
SOLVED = 1e-6
"""Cosine distance of the update at which nothing is left to find: the rest of the suite is not run."""
SAME = 1e-3
"""Difference of NCC that nobody sees: members that differ by less on every client need no further rehearsals."""

CLOSED_FORMS = ("linear", "spear", "april", "patch_positions")
FITTED = ("patch_subspace", "learned_inverse", "last_batch")
"""Answers from public pictures without a search."""
PORTFOLIO = ("low_variation", "even_steps", "whitened", "learned_start")
"""Searches among which the term alone must not choose: they run where they could rehearse."""


@dataclass(frozen=True)
class Strongest:
    """The suite, ready to be fitted.

    Args:
        members: By name, in the order in which they run.
        version: Of the suite.
        rehearses: The specifications of the members, where they rehearse on public clients if that can be done; empty
            where they do not.
        seconds: Of a core that a search gets for each client; None: as many as its iterations take.
        sees: Whether it sees what came from the client; its floor does not.
    """

    members: tuple[tuple[str, Attack], ...]
    version: str
    rehearses: str = ""
    seconds: float | None = None
    sees: bool = True

    needs = frozenset({"count"})
    leaky_model = "convnet"
    why_not = trying_shows

    @property
    def cost(self) -> Cost:
        """That of its members together; of the floor that of the plain search."""
        if not self.sees:
            return Cost(members=(dict(self.members)[PLAIN].blind().cost,))
        return Cost(members=tuple(self._cost(member) for _, member in self.members))

    @property
    def fits(self) -> str:
        """What its members fit, and that they rehearse."""
        fits = [f"{name}: {member.fits}" for name, member in self.members if member.fits]
        if self.rehearses:
            # A rehearsal runs every member as it is set up: other settings are another rehearsal.
            fits.append(f"rehearsals of {self.rehearses}")
        if self.seconds is not None:
            fits.append(f"iterations that take {self.seconds:g} seconds")
        return "; ".join(fits)

    def blind(self) -> "Strongest":
        """Its floor: that of the member which rehearsed best; else its plain search, with public statistics where these
        are granted."""
        return replace(self, sees=False)

    def fit_cost(self, setting: Setting) -> FitCost:
        """That of its members together, and their rehearsals. What rehearsals show to be needless is not foreseen."""
        rehearsals = rehearsals_of(setting, 0) if self.rehearses else None
        chances = None if rehearsals is None else self._chances(rehearsals, rehearsals.observation(0, 0))
        total, counted = FitCost(), set[str]()
        for name, member in self._able(setting).items():
            if chances is not None and name in chances.left_out:
                continue
            with suppress(NotApplicable):
                if not member.fits or member.fits not in counted:
                    total += member.fit_cost(setting if rehearsals is None else rehearsals.setting)
                counted.add(member.fits)
            if rehearsals is not None and chances is not None and name not in chances.unfit:
                tried = 1 if name in CLOSED_FORMS else len(rehearsals.first)
                total += FitCost(rehearsed=(self._cost(member),) * tried)
        return total

    def left_out(self, setting: Setting) -> frozenset[str]:
        """Members that take too long beside others that rehearse, told before anything is fitted."""
        rehearsals = rehearsals_of(setting, 0) if self.rehearses else None
        if rehearsals is None:
            return frozenset()
        return self._chances(rehearsals, rehearsals.observation(0, 0)).left_out

    def _chances(self, rehearsals: Rehearsals, tried: Observation) -> Chances:
        able = self._able(rehearsals.setting)
        return chances_of({name: (member, self._cost(member)) for name, member in able.items()}, rehearsals, tried)

    def fit(self, setting: Setting, seed: int, tick: Tick, kept: Kept) -> Fitted:
        """Fits the members whose needs are granted, each as if it were alone, and has them rehearse."""
        rehearsals = rehearsals_of(setting, seed) if self.rehearses else None
        able = self._able(setting)
        share = 1 / len(able)
        state: dict[str, Tensor] = {}
        inner = setting if rehearsals is None else rehearsals.setting
        tried = None if rehearsals is None else rehearsals.observation(0, seed)
        chances = None if rehearsals is None or tried is None else self._chances(rehearsals, tried)
        for place, (name, member) in enumerate(able.items()):
            told = lambda fraction, p=place: tick((p + fraction) * share)  # noqa: E731
            own = _under(name, kept)
            if _read_all(state):
                if member.fits:
                    state[f"refused/{name}/another member read the pictures of every rehearsal"] = torch.zeros(0)
                continue
            if chances is not None and (why := chances.unfit.get(name)):
                # What real clients will show may still let a search run, which has nothing to fit.
                if member.fits:
                    state[f"refused/{name}/{why}"] = torch.zeros(0)
                continue
            if chances is not None and _own("rehearsed", state) and (why := chances.long[name]):
                state[f"refused/{name}/{why}"] = torch.zeros(0)
                continue
            try:
                # What another member was fitted to already serves this one too.
                known = self._state(name, state)
                halfway = lambda f, t=told: t(f if rehearsals is None else f / 2)  # noqa: E731
                fitted = member.restored(inner, known) if known else member.fit(inner, seed, halfway, own)
            except NotApplicable as error:
                state |= {f"refused/{name}/{error}": torch.zeros(0)}
                continue
            if not known:
                state |= {f"{name}/{key}": tensor for key, tensor in fitted.state.items()}
            if rehearsals is None or tried is None:
                continue
            if self.seconds is not None and isinstance(member, Paced):
                pace = partial(pace_within, member, inner, fitted.state, tried, self.seconds, seed)
                try:
                    state[f"pace/{name}"] = own("pace", lambda p=pace: {"pace": p().tensor()})["pace"]
                except (NotApplicable, NotGranted) as error:
                    state[f"refused/{name}/{error}"] = torch.zeros(0)
                    continue
                fitted = self._paced(name, member, state).restored(inner, fitted.state)
            best = _own("rehearsed", state).get(_best(state), None)
            state[f"rehearsed/{name}"] = rehearsals.ncc(
                fitted,
                name,
                seed,
                own,
                lambda f, t=told: t((1 + f) / 2),
                clients=rehearsals.first,
                exact=name in CLOSED_FORMS,
                best=None if name in CLOSED_FORMS else best,
            )
        if rehearsals is not None and not _read_all(state):
            if self.seconds is not None:
                self._split(able, rehearsals, state, seed, kept)
            self._final(rehearsals, state, seed, kept, tick)
        return self.restored(setting, state)

    def _final(self, rehearsals: Rehearsals, state: dict[str, Tensor], seed: int, kept: Kept, tick: Tick) -> None:
        """Has the two best members rehearse on further clients, where the first leave open which of them is better."""
        rehearsed = _own("rehearsed", state)
        pair = sorted(rehearsed, key=lambda name: _ncc(rehearsed, name), reverse=True)[:2]
        further = rehearsals.all[len(rehearsals.first) :]
        if len(pair) < 2 or not further or not _open(*(rehearsed[name] for name in pair)):
            return
        ready = self.ready(rehearsals.setting, state)
        for place, name in enumerate(pair):
            told = lambda fraction, p=place: tick((p + fraction) / len(pair))  # noqa: E731
            found = rehearsals.ncc(ready[name], name, seed, _under(name, kept), told, clients=further)
            state[f"rehearsed/{name}"] = torch.cat([rehearsed[name], found])

    def _split(
        self, able: Mapping[str, Attack], rehearsals: Rehearsals, state: dict[str, Tensor], seed: int, kept: Kept
    ) -> None:
        """Has the best member rehearse other ways to spend its time, and keeps the best one."""
        name = _best(state)
        member, usual = able.get(name), state.get(f"pace/{name}")  # no member where every one is unfit or refused
        if usual is None or not isinstance(member, Paced):
            return
        for shorter, restarts in SPLITS:
            pace = Pace.of(usual).split(shorter, restarts)
            if restarts > 1 and not isinstance(member, GradientMatching):
                continue  # it has one start
            tried = member.paced(pace.steps, pace.restarts).restored(rehearsals.setting, self._state(name, state))
            best = state[f"rehearsed/{name}"]
            found = rehearsals.ncc(
                tried,
                f"{name}-{shorter}-{restarts}",
                seed,
                _under(name, kept),
                lambda fraction: None,
                clients=rehearsals.first,
                best=best,
            )
            if _mean(found) > _mean(best):
                state |= {f"rehearsed/{name}": found, f"pace/{name}": pace.tensor()}

    def _cost(self, member: Attack) -> Cost:
        """That of a member, within its seconds."""
        bounded = self.seconds is not None and isinstance(member, Paced)
        return replace(member.cost, seconds=self.seconds) if bounded else member.cost

    def _state(self, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a member was fitted to; of several that fit the same, what the first of them was."""
        fits = dict(self.members)[name].fits
        sharing = (other for other, member in self.members if fits and member.fits == fits)
        return _own(name, state) or next((own for other in sharing if (own := _own(other, state))), {})

    def _paced(self, name: str, member: Attack, state: Mapping[str, Tensor]) -> Attack:
        """A member with the iterations and restarts that its time allows."""
        pace = state.get(f"pace/{name}")
        if pace is None or not isinstance(member, Paced):
            return member
        how = Pace.of(pace)
        return member.paced(how.steps, how.restarts)

    def restored(self, setting: Setting, state: Mapping[str, Tensor]) -> Fitted:
        """The same members from their states, whose names begin with that of the member."""
        refused = dict(key.removeprefix("refused/").split("/", 1) for key in state if key.startswith("refused/"))
        rehearsed = _own("rehearsed", state)
        if not self.sees:
            return replace(self._floor(setting, state), state=state)
        in_time = partial(self._in_time, setting, state)
        return Fitted(self.needs, partial(self._attack, self.ready(setting, state), in_time, refused, rehearsed), state)

    def ready(self, setting: Setting, state: Mapping[str, Tensor]) -> dict[str, Fitted]:
        """The members that are not refused, each as the suite runs it.

        Args:
            setting: They were fitted to.
            state: What was fitted.
        """
        refused = {key.split("/")[1] for key in state if key.startswith("refused/")}
        return {
            name: self._paced(name, member, state).restored(setting, self._state(name, state))
            for name, member in self._able(setting).items()
            if name not in refused
        }

    def _in_time(
        self, setting: Setting, state: Mapping[str, Tensor], names: Sequence[str], observation: Observation, seed: int
    ) -> dict[str, Fitted]:
        """The searches among these members, which share the seconds of a client: nothing was rehearsed to choose by."""
        searches = {name: own for name in names if isinstance(own := dict(self.members)[name], Paced)}
        found: dict[str, Fitted] = {}
        for name, search in searches.items():
            own, seconds = self._state(name, state), (self.seconds or 0) / len(searches)
            with suppress(NotApplicable, NotGranted):  # which it will say itself when it runs
                pace = pace_within(search, setting, own, observation, seconds, seed)
                found[name] = search.paced(pace.steps, 1).restored(setting, own)
        return found

    def _able(self, setting: Setting) -> dict[str, Attack]:
        return {name: member for name, member in self.members if member.needs <= setting.granted}

    def _floor(self, setting: Setting, state: Mapping[str, Tensor]) -> Fitted:
        members = dict(self.members)
        best = _best(state)
        if best in (*FITTED, *PORTFOLIO):
            return self._paced(best, members[best], state).blind().restored(setting, self._state(best, state))
        plain = setting.public is None or not norm_layers(setting.network.module())
        return members[PLAIN if plain else PROXY].blind().restored(setting, {})

    def _attack(
        self,
        fitted: Mapping[str, Fitted],
        in_time: Callable[[Sequence[str], Observation, int], dict[str, Fitted]],
        refused: Mapping[str, str],
        rehearsed: Mapping[str, Tensor],
        observation: Observation,
        seed: int,
        tick: Tick,
    ) -> Reconstruction:
        """Attacks with the members that apply, in order, until one answers for good.

        Raises:
            NotApplicable: no member applies.
            LeakmapError: a member that applies failed, and no other came to a result.
        """
        assumed = assumed_rule(observation)
        unfit = "a fact that it needs is not granted"
        skipped = {
            name: member.why_not(observation) or refused.get(name, "" if name in fitted else unfit)
            for name, member in self.members
        }
        if not rehearsed:
            skipped |= dict.fromkeys(PORTFOLIO, "it runs where it rehearsed, and nothing was rehearsed")
        order = [name for name, why in skipped.items() if not why]
        if rehearsed:
            order.sort(key=lambda name: (name not in CLOSED_FORMS, -_ncc(rehearsed, name)))
        if not rehearsed and self.seconds is not None:
            fitted = {**fitted, **in_time(order, observation, seed)}
        attempts: dict[str, Attempt] = {name: Attempt(name, note=why) for name, why in skipped.items() if why}
        results: dict[str, Reconstruction] = {}
        lowest = math.inf
        for place, name in enumerate(order):
            if lowest <= SOLVED:
                attempts[name] = Attempt(name, note=f"the update is already explained to {SOLVED:g}")
                continue
            better = [other for other in results if _ncc(rehearsed, other) >= _ncc(rehearsed, name)]
            if rehearsed and better and name not in CLOSED_FORMS and not _always_failed(rehearsed, name):
                attempts[name] = Attempt(name, note=_outdone(name, better[0], rehearsed))
                continue
            started = time.perf_counter()
            try:
                found = fitted[name](observation, seed, lambda f, p=place: tick((p + f) / len(order)))
                distance, term = residuals(observation, assumed.rule, found, seed)
            except NotApplicable as error:
                attempts[name] = Attempt(name, note=str(error))
                continue
            except Exception as error:
                attempts[name] = Attempt(name, note=f"{type(error).__name__}: {error}", failed=True)
                continue
            attempts[name] = Attempt(
                name, found.pictures, found.y, term, time.perf_counter() - started, last=found.last
            )
            results[name] = found
            lowest = min(lowest, distance)
        tick(1.0)
        told = [attempts[name] for name, _ in self.members]
        if not results:
            why = "; ".join(f"{attempt.name}: {attempt.note}" for attempt in told)
            # A failure must not pass for the answer that nothing applies: a floor that gives it counts as measured.
            kind = LeakmapError if any(attempt.failed for attempt in told) else NotApplicable
            raise kind(f"No member of the suite came to a result ({why}).")
        if rehearsed and lowest > SOLVED:
            name = max(results, key=lambda name: _ncc(rehearsed, name))
        else:
            name = min(results, key=lambda name: (math.isnan(attempts[name].term), attempts[name].term))
        best = results[name]
        chosen: dict[str, float] = {}
        for member, ncc in rehearsed.items():
            chosen[f"rehearsed NCC of {member}"] = math.nan if _always_failed(rehearsed, member) else _mean(ncc)
            if lost := int(ncc.isnan().sum()):
                chosen[f"rehearsals that failed of {member}"] = lost
        return replace(
            best,
            objective=attempts[name].term,
            notes={**(best.notes or {}), "suite": self.version, "won": name, **chosen},
            attempts=tuple(told),
            used=assumed.used.union(*(found.used for found in results.values())) | ({"public"} if rehearsed else set()),
        )


def _read_all(state: Mapping[str, Tensor]) -> bool:
    """Whether a member read every rehearsal, so that fitting and rehearsing others could show nothing better."""
    return any(bool(ncc.min() >= READ) for ncc in _own("rehearsed", state).values())


def _open(one: Tensor, other: Tensor) -> bool:
    """Whether the NCC of two members on the same clients leaves open which is better: their mean difference is below
    twice its standard error."""
    apart = (one - other).nan_to_num()
    seen = bool(apart.abs().max() > SAME)
    return seen and len(apart) > 1 and abs(float(apart.mean())) < 2 * float(apart.std()) / math.sqrt(len(apart))


def _best(state: Mapping[str, Tensor]) -> str:
    """The member that rehearsed best; empty if none did."""
    rehearsed = _own("rehearsed", state)
    return max(rehearsed, key=lambda name: _ncc(rehearsed, name), default="")


def _mean(ncc: Tensor) -> float:
    """What a member reached on all clients that it rehearsed on, 0 where it failed."""
    return float(ncc.nan_to_num().mean())


def _ncc(rehearsed: Mapping[str, Tensor], name: str) -> float:
    """What a member rehearsed; 0 where it did not."""
    return _mean(rehearsed[name]) if name in rehearsed else 0.0


def _always_failed(rehearsed: Mapping[str, Tensor], name: str) -> bool:
    """Whether a member rehearsed and failed each time: then it is run on real clients, so that they show why."""
    return name in rehearsed and bool(rehearsed[name].isnan().all())


def _outdone(name: str, better: str, rehearsed: Mapping[str, Tensor]) -> str:
    """Why a member is not run on a client."""
    if name not in rehearsed:
        return f"it did not rehearse, as {better} read the pictures of every rehearsal"
    lost = int(rehearsed[name].isnan().sum())
    failed = f", {lost} of {len(rehearsed[name])} rehearsals failed" if lost else ""
    return f"rehearsed at NCC {_ncc(rehearsed, name):.2f}, below the {_ncc(rehearsed, better):.2f} of {better}{failed}"


def _under(member: str, kept: Kept) -> Kept:
    """Keeps what a member makes under names of its own."""
    return lambda name, make: kept(f"{member}-{name}", make)


def _own(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in state.items() if key.startswith(f"{name}/")}
