"""The settings that a rehearsal froze, as data and as a file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from leakmap.attacker.attacks.strongest import MEMBERS, member_specs
from leakmap.errors import BadSetting
from leakmap.files import read_typed
from leakmap.plan.plan import Column, Plan, Scalar, Tuning
from leakmap.registry.spec import Spec

Objective = Literal["ncc", "ssim", "psnr"]

_STRICT = ConfigDict(extra="forbid", strict=True)
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Text = Annotated[str, Field(max_length=4096)]
_Facts = Annotated[dict[_Text, _Text | int | _Number | bool | None], Field(max_length=256)]


@dataclass(frozen=True)
class Try:
    """One choice of settings and how it fared.

    Args:
        settings: All of them: the tuned, the fixed and those left at their defaults.
        scores: Of its rehearsals, client after client.
        stopped: Whether the other clients were left out, as it lay below the median.
        failures: What failed rehearsals said.
    """

    settings: _Facts
    scores: Annotated[tuple[_Number, ...], Field(min_length=1)]
    stopped: bool = False
    failures: tuple[_Text, ...] = ()

    __pydantic_config__ = _STRICT

    @property
    def score(self) -> float:
        """The mean."""
        return fmean(self.scores)


@dataclass(frozen=True)
class TunedAttack:
    """The frozen settings of one attack.

    Args:
        settings: The best of ``tried``.
        score: Its score.
        default: Score of the default, which is the first of ``tried``.
        tried: Every choice, in order.
    """

    settings: _Facts
    score: _Number
    default: _Number
    tried: tuple[Try, ...]

    __pydantic_config__ = _STRICT

    def frozen(self, name: str, typed: Mapping[str, Any], file: Path | str) -> dict[str, Scalar]:
        """All settings, for an audit.

        Args:
            name: Of the attack.
            typed: What the user typed, which must be what was fixed while tuning.
            file: Where these settings were read, for messages.

        Raises:
            BadSetting: the user typed something else, or the file names code that the user did not type.
        """
        if other := [f"{key}={value}" for key, value in typed.items() if self.settings.get(key) != value]:
            raise BadSetting(f"{file} was not tuned with {name}: {', '.join(other)}; leave it out, or tune with it.")
        for key, value in self.settings.items():
            if key not in typed and isinstance(value, str) and not re.fullmatch(r"[\w-]*", value):
                raise BadSetting(
                    f"{file} has {key}={value!r}, which may name code; leakmap does not run code that a file names: "
                    "type it in --attack."
                )
        return dict(self.settings)


@dataclass(frozen=True)
class Tuned:
    """The content of ``tuned.json``.

    Args:
        column: ``rehearsal-tuned``, or ``oracle-tuned``.
        objective: What was maximised.
        budget: Settings tried of each attack.
        clients: Clients that each was rehearsed on.
        attacks: Attack -> its frozen settings.
        facts: Of the rehearsed client, see :func:`leakmap.auditing.prepare.facts`.
        pictures: SHA-256 of every picture that was rehearsed on.
        versions: Of leakmap, Python, torch and optuna, and the device.
    """

    column: Column
    objective: Objective
    budget: Annotated[int, Field(ge=1)]
    clients: Annotated[int, Field(ge=1)]
    attacks: Annotated[dict[_Text, TunedAttack], Field(min_length=1, max_length=256)]
    facts: _Facts
    pictures: Annotated[tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...], Field(min_length=1)]
    versions: dict[_Text, _Text] = field(default_factory=dict)
    schema: Literal[1] = 1

    __pydantic_config__ = _STRICT

    def applied_to(self, plan: Plan, file: Path | str = "tuned.json") -> Plan:
        """The same audit with the frozen settings of its attack.

        Args:
            plan: Its attack's own settings, if any, must be those that were fixed while tuning.
            file: Where these settings were read, for messages and for the command that repeats the audit.

        Raises:
            BadSetting: the attack was not tuned, or with other settings fixed.
        """
        name, typed = plan.attack.name, plan.attack.params
        if name in MEMBERS:
            return self._applied_to_suite(plan, file)
        found = self.attacks.get(name)
        if found is None:
            raise BadSetting(f"{file} has settings for {', '.join(self.attacks)}; got the attack {name!r}.")
        return replace(plan, attack=Spec(name, found.frozen(name, typed, file)), tuned=self.origin(name, file=file))

    def _applied_to_suite(self, plan: Plan, file: Path | str) -> Plan:
        """Every tuned member with its frozen settings."""
        typed = {member.name: member.params for member in member_specs(plan.attack)}
        chosen = dict(plan.attack.params)
        for name, found in self.attacks.items():
            frozen = found.frozen(name, typed.get(name, {}), file)
            chosen |= {f"{name}.{key}": value for key, value in frozen.items()}
        return replace(plan, attack=Spec(plan.attack.name, chosen), tuned=self.origin(*self.attacks, file=file))

    def origin(self, *names: str, file: Path | str = "tuned.json") -> Tuning:
        """What a plan remembers of where the settings of these attacks come from; of several, the mean scores."""
        found = [self.attacks[name] for name in names]
        default, score = fmean(one.default for one in found), fmean(one.score for one in found)
        shared = (str(file), self.column, self.budget, self.clients, self.objective)
        return Tuning(*shared, default, score, self.facts, self.pictures, len(found))


def read_tuned(path: Path) -> Tuned:
    """Reads what :func:`leakmap.auditing.tune.tune` wrote; nothing in the file is run.

    Args:
        path: The file, ``tuned.json`` of a tuning's folder.

    Raises:
        StoreError: there is no such file, or it is not a sound one.
    """
    return read_typed(path, Tuned, "tuned settings of leakmap")
