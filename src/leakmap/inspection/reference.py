"""The reference map: measured cells that ship with the package, and those nearest to a network at hand."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pydantic import TypeAdapter

from leakmap.errors import UsageError
from leakmap.inspection.traits import Traits
from leakmap.result.result import Result

Features = Mapping[str, float | str]
NEAREST = 3


@dataclass(frozen=True)
class Measured:
    """An audit of the map.

    Args:
        mode: Of the client.
        setting: Data, image size, batch, labels, attack, weights: in words.
        level: The verdict.
        hits: Pictures first in their line-up.
        n: Pictures.
        chance: Share expected without leakage.
        low: Lower end of the 95 % interval of the share.
        high: Upper end.
        gain: PSNR over the best floor, dB; None where it is not finite.
    """

    mode: str
    setting: str
    level: str
    hits: int
    n: int
    chance: float
    low: float
    high: float
    gain: float | None


@dataclass(frozen=True)
class Entry:
    """A network of the map with its audits.

    Args:
        model: Its specification.
        features: What it is compared by, see :func:`features`.
        cells: What was measured.
    """

    model: str
    features: dict[str, float | str]
    cells: tuple[Measured, ...]


@dataclass(frozen=True)
class Reference:
    """The map.

    Args:
        command: What measured it.
        versions: Of what measured it, with the device.
        date: When.
        entries: Its networks.
    """

    command: str
    versions: dict[str, str]
    date: str
    entries: tuple[Entry, ...]


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
    """The nearest measured cells of the shipped map, as lines."""
    reference = shipped()
    if reference is None:
        return []
    own = features(traits)
    lines = ["", *_wrapped(f"Nearest measured networks ({reference.date}; {reference.command}):", "")]
    for entry in nearest(traits, reference):
        apart = [name for name, value in own.items() if entry.features.get(name) != value]
        lines += _wrapped(f"{entry.model}  differs in {', '.join(apart) or 'nothing that is compared'}", "  ")
        for setting in dict.fromkeys(cell.setting for cell in entry.cells):
            lines += _wrapped(setting, "    ")
            lines += [
                f"    {cell.mode:5}  first in {cell.hits} of {cell.n} line-ups (chance {cell.chance:.1%}), {cell.level}"
                for cell in entry.cells
                if cell.setting == setting
            ]
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    """Lines of at most 79 characters, those after the first indented once more."""
    return textwrap.wrap(text, 79, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)


def measured(result: Result) -> Measured:
    """A cell of the map from an audit of which a client finished.

    Raises:
        UsageError: none did.
    """
    plan, found = result.plan, result.line_up.attack
    if found is None:
        raise UsageError(f"No client of this audit finished, so it shows nothing for the map; repeat: {result.command}")
    weights = "random weights" if not (plan.weights or plan.train_epochs) else "trained weights"
    size = plan.image_size
    setting = ", ".join(
        [
            f"{plan.batch_size} picture{'s' * (plan.batch_size > 1)} of {size} px" if size else "own size",
            f"labels {plan.threat.labels}",
            weights,
            ",".join([plan.attack.name, *(f"{name}={value}" for name, value in plan.attack.params.items())]),
        ]
    )
    rate, metric = found.rank_one, result.metrics.get("psnr")
    return Measured(
        plan.rule.mode,
        setting,
        result.verdict.level,
        found.hits,
        found.n,
        found.chance,
        rate.low,
        rate.high,
        metric and metric.gain.value,
    )
