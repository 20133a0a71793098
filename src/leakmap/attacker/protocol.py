"""What an attack is: two phases, a floor, a price.

An attack is first fitted to a :class:`~leakmap.attacker.setting.Setting`, before any client answers; what comes out is
called with the Observation of one client after the other. A search or a closed form has nothing to fit and says so in
its class body::

    fits = ""
    fit_cost = free_to_fit
    fit = nothing_to_fit
    restored = nothing_to_restore
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.attacker.setting import Setting
from leakmap.errors import BadSetting
from leakmap.observation.observation import Observation


@dataclass(frozen=True)
class Cost:
    """What an attack takes on one client, once it is fitted.

    Args:
        evaluations: Of the matching term and its gradient, in one iteration of one restart; for L-BFGS the most there
            can be.
        iterations: Of each restart; 0 is a closed form.
        restarts: Independent starts.
        members: Of a suite, what its attacks cost; its own numbers are then 0.
        seconds: Of a core, which it keeps to in place of its iterations; None: it takes as long as these.
    """

    evaluations: int = 0
    iterations: int = 0
    restarts: int = 1
    members: tuple["Cost", ...] = ()
    seconds: float | None = None

    @property
    def parts(self) -> tuple["Cost", ...]:
        """Of every attack that runs: the members, or this one."""
        return self.members or (self,)

    @property
    def total(self) -> int:
        """Evaluations in all."""
        own = self.evaluations * self.iterations * self.restarts
        return own + sum(member.total for member in self.members)

    def __str__(self) -> str:
        if self.members:
            return "its members'"
        return f"{self.evaluations * self.restarts} x {self.iterations:,}" if self.iterations else "closed form"


CLOSED_FORM = Cost()


@dataclass(frozen=True)
class FitCost:
    """What fitting an attack takes, before any client answers.

    Args:
        clients: That are simulated.
        memory: Bytes held at most at once, of what is read of all of them and of what they held.
        operations: Floating-point operations of what is fitted to them.
        rehearsed: What is run on simulated clients, as often as its cost stands here.
    """

    clients: int = 0
    memory: int = 0
    operations: int = 0
    rehearsed: tuple[Cost, ...] = ()

    def __add__(self, then: "FitCost") -> "FitCost":
        """One after the other."""
        return FitCost(
            self.clients + then.clients,
            max(self.memory, then.memory),
            self.operations + then.operations,
            self.rehearsed + then.rehearsed,
        )


Kept = Callable[[str, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]
"""``kept(name, make)``: what was made under this name before an interruption, else what ``make()`` returns."""


def nothing_kept(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Makes everything anew."""
    return make()


@dataclass(frozen=True, eq=False)
class Fitted:
    """An attack that is ready for clients.

    Args:
        needs: The facts of an Observation that it cannot do without.
        reconstruct: ``reconstruct(observation, seed, tick)``; all randomness comes from ``seed``.
        state: All that was fitted, from which the attack restores it; empty where nothing was.
    """

    needs: frozenset[str]
    reconstruct: Callable[[Observation, int, Tick], Reconstruction]
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, observation: Observation, seed: int, tick: Tick) -> Reconstruction:
        """Attacks one client."""
        return self.reconstruct(observation, seed, tick)


class Attack(Protocol):
    """Turns Observations into Reconstructions, in two phases."""

    @property
    def needs(self) -> frozenset[str]:
        """The facts of an Observation that it cannot do without."""
        ...

    @property
    def leaky_model(self) -> str:
        """An architecture known to leak to this kind of attack: the planted positive control of an audit."""
        ...

    @property
    def cost(self) -> Cost:
        """What it takes on one client."""
        ...

    @property
    def fits(self) -> str:
        """What is fitted, with every setting that decides it; empty where there is nothing to fit.

        Attacks that say the same, as an attack and its floor may, share what is fitted to the same setting.
        """
        ...

    def blind(self) -> "Attack":
        """Its floor: the same attack without all that came from the client."""
        ...

    def why_not(self, observation: Observation) -> str:
        """Why it does not apply, or adds nothing to a plainer attack; empty if it does or if only trying will show."""
        ...

    def fit_cost(self, setting: Setting) -> FitCost:
        """What :meth:`fit` takes, known before it allocates or simulates anything.

        Raises:
            NotGranted: the setting lacks a needed fact.
            NotApplicable: a precondition does not hold.
        """
        ...

    def fit(self, setting: Setting, seed: int, tick: Tick, kept: Kept) -> Fitted:
        """Fits, before any client answers; all randomness comes from ``seed``, and ``kept`` keeps parts of long work.

        Raises:
            NotGranted: the setting lacks a needed fact.
            NotApplicable: a precondition does not hold.
        """
        ...

    def restored(self, setting: Setting, state: Mapping[str, Tensor]) -> Fitted:
        """What :meth:`fit` returned for the same setting, from its state."""
        ...


class _Ready(Protocol):
    """An attack that can be called as it is."""

    @property
    def needs(self) -> frozenset[str]: ...

    def __call__(self, observation: Observation, seed: int, tick: Tick) -> Reconstruction: ...


def free_to_fit(attack: _Ready, setting: Setting) -> FitCost:
    """The price of a first phase that there is none of."""
    return FitCost()


def nothing_to_fit(attack: _Ready, setting: Setting, seed: int, tick: Tick, kept: Kept) -> Fitted:
    """The first phase of an attack that has none."""
    return Fitted(attack.needs, attack)


def nothing_to_restore(attack: _Ready, setting: Setting, state: Mapping[str, Tensor]) -> Fitted:
    """Restores an attack that was never fitted."""
    return Fitted(attack.needs, attack)


def trying_shows(attack: Attack, observation: Observation) -> str:
    """Of an attack that says for itself, while it runs, that it does not apply."""
    return ""


_MEMBERS = tuple(name for name in vars(Attack) if not name.startswith("_"))


def checked(attack: Attack) -> Attack:
    """The attack, if it has all that an attack must have.

    Raises:
        BadSetting: it lacks something, such as a floor of its own.
    """
    if lacking := [name for name in _MEMBERS if not hasattr(attack, name)]:
        floor = " Without a floor of its own, nothing that it finds could be judged." if "blind" in lacking else ""
        raise BadSetting(
            f"The attack {type(attack).__name__} has no {', '.join(lacking)}; an attack has {', '.join(_MEMBERS)}, "
            f"see leakmap.attacker.protocol.Attack.{floor}"
        )
    return attack
