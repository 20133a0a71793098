"""The reference map: measured clients that ship with the package, and those nearest to a network at hand."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from pydantic import TypeAdapter

from leakmap.inspection.traits import Traits

Features = Mapping[str, float | str]
ABOVE_CHANCE = 0.05
"""Rank-sum p below which more than chance was read."""
Bounds = tuple[float, float, float]
"""A value and its 95 % interval."""
Change = Literal["less", "more", "as much"]
NEAREST, SHOWN = 3, 4
"""Networks that are shown, and clients of each."""


@dataclass(frozen=True)
class Measured:
    """One kind of client of a network, by the attack that rehearsed best on public pictures.

    Args:
        mode: Of the client.
        client: What it does and sends: in words.
        attack: Which attack speaks.
        clients: How many it attacked.
        first: Share of pictures that are first among those of their class.
        chance: That share without leakage.
        relative: Mean relative rank: 0 for first, .5 by chance.
        p: Of the ranks by chance.
        ncc: Mean normalized cross-correlation with the true pictures.
        floor: That of the mean public picture of the class.
        bands: First shares by colour, layout or detail alone.
    """

    mode: str
    client: str
    attack: str
    clients: int
    first: Bounds
    chance: float
    relative: Bounds
    p: float
    ncc: Bounds
    floor: float
    bands: Mapping[str, Bounds]

    @property
    def above_chance(self) -> bool:
        """Whether chance alone seldom gives such ranks."""
        return self.p < ABOVE_CHANCE


@dataclass(frozen=True)
class Entry:
    """A network of the map with its clients.

    Args:
        model: Its specification, and how it was trained.
        features: What it is compared by, see :func:`features`.
        cells: What was measured.
    """

    model: str
    features: dict[str, float | str]
    cells: tuple[Measured, ...]


@dataclass(frozen=True)
class Effect:
    """What one change does to what is read of a client, with everything else the same.

    Args:
        trait: What is changed.
        value: To what.
        client: Of whom: in words.
        before: Relative rank of the base client.
        after: Of the changed one.
    """

    trait: str
    value: str
    client: str
    before: Bounds
    after: Bounds

    @property
    def change(self) -> Change:
        """By the two intervals: what overlaps shows no difference."""
        if self.after[1] > self.before[2]:
            return "less"
        return "more" if self.after[2] < self.before[1] else "as much"


@dataclass(frozen=True)
class Reference:
    """The map.

    Args:
        command: What measured it.
        versions: Of what measured it.
        date: When.
        entries: Its networks.
        effects: What single changes did.
    """

    command: str
    versions: str
    date: str
    entries: tuple[Entry, ...]
    effects: tuple[Effect, ...]

    def of(self, trait: str) -> list[Effect]:
        """What changes of one trait did."""
        return [effect for effect in self.effects if effect.trait == trait]


def features(traits: Traits) -> dict[str, float | str]:
    """What networks are compared by: sizes as logarithms to base 2, so that 1 apart is a factor of 2."""
    return {
        "depth": round(math.log2(traits.depth), 3),
        "width": round(math.log2(max(1, traits.stages[0].high)), 3) if traits.stages else 0.0,
        "stride": round(math.log2(traits.total_stride or 1), 3),
        "skips": "yes" if traits.skips else "no",
        "placement": traits.placement,
        "norm": traits.norms[0].kind if traits.norms else "none",
        "attention": "yes" if traits.attention else "no",
        "zero head": "yes" if traits.zero_head else "no",
        "tiny scales": "yes" if traits.tiny_scales else "no",
    }


def distance(left: Features, right: Features) -> float:
    """Sum over features: the difference of sizes, and 2 for each other trait that differs."""
    total = 0.0
    for name, value in left.items():
        other = right.get(name)
        both = isinstance(value, (int, float)) and isinstance(other, (int, float))
        total += abs(float(value) - float(other)) if both else 2.0 * (value != other)  # type: ignore[arg-type]
    return total


def nearest(traits: Traits, reference: Reference, count: int = NEAREST) -> list[Entry]:
    """The networks of the map with the most similar traits."""
    own = features(traits)
    return sorted(reference.entries, key=lambda entry: distance(own, entry.features))[:count]


@cache
def shipped() -> Reference | None:
    """The map that ships with the package; None where this copy has none."""
    file = files("leakmap.inspection").joinpath("reference.json")
    if not file.is_file():
        return None
    return TypeAdapter(Reference).validate_json(file.read_bytes())


def notes(traits: Traits) -> list[str]:
    """The nearest measured networks of the shipped map, as lines."""
    reference = shipped()
    if reference is None:
        return []
    own = features(traits)
    lines = ["", *_wrapped(f"Nearest measured networks ({reference.date}; {reference.command}):", "")]
    for entry in nearest(traits, reference):
        apart = [name for name, value in own.items() if entry.features.get(name) != value]
        lines += _wrapped(f"{entry.model}  differs in {', '.join(apart) or 'nothing that is compared'}", "  ")
        for cell in entry.cells[:SHOWN]:
            lines += _wrapped(f"{cell.client}: {told(cell)}", "    ")
        if len(entry.cells) > SHOWN:
            lines += _wrapped(f"{len(entry.cells) - SHOWN} more clients: docs/results/atlas.md", "    ")
    return lines


def told(cell: Measured) -> str:
    """What was read of a client, in a sentence."""
    value, low, high = cell.first
    start = (
        f"{cell.attack} puts {value:.0%} [{low:.0%}, {high:.0%}] of the pictures first (chance {cell.chance:.0%}), "
        f"relative rank {cell.relative[0]:.2f} [{cell.relative[1]:.2f}, {cell.relative[2]:.2f}]"
    )
    bands = [name for name, (_, least, _) in cell.bands.items() if least > cell.chance]
    if not cell.above_chance:
        return f"{start}: nothing above chance by {cell.clients} clients"
    return f"{start}; above chance by {', '.join(bands)}" if bands else f"{start}; above chance, no band alone"


def words_of(effects: Sequence[Effect]) -> str:
    """What changes did, client by client, in one sentence without its full stop; empty without any."""
    told: dict[str, list[str]] = {}
    for effect in sorted(effects, key=lambda effect: effect.change != "less"):
        if effect.change != "as much":
            values = f"{effect.before[0]:.2f} -> {effect.after[0]:.2f}"
            told.setdefault(effect.client, []).append(f"{effect.change} is read with {effect.value} ({values})")
    found = [f"in {client}, {', '.join(changes)}" for client, changes in told.items()]
    rest = [effect.value for effect in effects if effect.change == "as much"]
    if rest:
        how = "comparisons show" if len(rest) > 1 else "comparison shows"
        which = "other " if found else ""
        found.append(f"{len(rest)} {which}{how} no difference ({', '.join(dict.fromkeys(rest))})")
    return "; ".join(found)


def helps(effects: Iterable[Effect]) -> list[str]:
    """The changes after which less is read of some client and more of none."""
    found: dict[str, set[Change]] = {}
    for effect in effects:
        found.setdefault(effect.value, set()).add(effect.change)
    return [value for value, changes in found.items() if "less" in changes and "more" not in changes]


def raises(effects: Iterable[Effect]) -> bool:
    """Whether after some change more is read of some client, and after none less of any."""
    changes = {effect.change for effect in effects}
    return "more" in changes and "less" not in changes


def _wrapped(text: str, indent: str) -> list[str]:
    """Lines of at most 79 characters, those after the first indented once more."""
    return textwrap.wrap(text, 79, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)
