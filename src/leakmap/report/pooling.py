"""The cells of a study laid out as a table: axes, which of them are rows and columns, and audits pooled in a tile."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from leakmap.errors import plain
from leakmap.result.method import Knowledge
from leakmap.result.result import Result
from leakmap.scoring.effects import AxisLevel, axis_levels
from leakmap.scoring.metrics import ALWAYS
from leakmap.scoring.statistics import Interval, share_of_cases

ABSENT = "does not apply"
MOST_COLUMNS, MOST_ROWS = 16, 64
"""Of the arrangement that is shown first; whoever reads can choose more."""
TOP = 100
"""Times chance at which the colour ends."""


@dataclass(frozen=True)
class Cell:
    """One audit of a study.

    Args:
        axes: Its coordinates; an axis that does not apply to it is absent.
        result: Of the audit.
        rows: For each finished client, named pictures ``(N, C, H, W)`` in [0, 1]: the original first, then the
            reconstruction and the floors. Empty shows no pictures.
    """

    axes: Mapping[str, AxisLevel]
    result: Result
    rows: Sequence[Mapping[str, Tensor]] = ()


@dataclass(frozen=True)
class Axis:
    """An axis of a study.

    Args:
        name: In full, such as ``model.preact``.
        short: Its last part, where no other axis ends in the same.
        levels: In their order; :data:`ABSENT` last, where some cells lack the axis.
    """

    name: str
    short: str
    levels: tuple[AxisLevel, ...]

    @property
    def repeats(self) -> bool:
        """Whether it only repeats cells."""
        return repeats(self.name)

    @property
    def texts(self) -> list[str]:
        """Its levels for readers."""
        return [level_text(level) for level in self.levels]


def repeats(axis: str) -> bool:
    """Whether an axis of this name only repeats cells, with other pictures and other random weights."""
    return axis.rsplit(".", 1)[-1] in ("seed", "repeat", "replicate")


def drawn_with(cell: Cell) -> str:
    """The seed of a cell, for readers: within one, a client of the same number holds the same pictures."""
    return ", ".join(f"{axis} {level_text(level)}" for axis, level in sorted(cell.axes.items()) if repeats(axis))


def level_text(level: AxisLevel) -> str:
    """A level for readers."""
    if isinstance(level, bool):
        return "yes" if level else "no"
    return "none" if level is None else f"{level:g}" if isinstance(level, float) else plain(str(level))


def axes_of(cells: Sequence[Cell]) -> list[Axis]:
    """The axes of a study, those with one level included."""
    found = axis_levels(cells)
    endings = Counter(name.rsplit(".", 1)[-1] for name in found)
    return [
        Axis(
            name,
            name.rsplit(".", 1)[-1] if endings[name.rsplit(".", 1)[-1]] == 1 else name,
            (*levels, ABSENT) if any(name not in cell.axes for cell in cells) else tuple(levels),
        )
        for name, levels in found.items()
    ]


@dataclass(frozen=True)
class Arrangement:
    """Which axes of a study are the rows and the columns of a table; audits that differ in others are pooled."""

    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    pooled: tuple[Axis, ...] = ()


def arranged(axes: Sequence[Axis]) -> Arrangement:
    """Axes of the model as rows, all others as columns while there is room, seeds pooled.

    Without an axis of the model that varies, the first one that varies is the rows.
    """
    varying = [axis for axis in axes if len(axis.levels) > 1]
    compared = [axis for axis in varying if not axis.repeats]
    of_model = [axis for axis in compared if axis.name.split(".")[0] in ("model", "weights", "architecture")]
    rows = _fitting(of_model or compared[:1], MOST_ROWS)
    others = [axis for axis in compared if axis not in (of_model or compared[:1])]
    first = ("client.mode", "mode", "threat", "attack")
    others.sort(key=lambda axis: next((i for i, name in enumerate(first) if axis.name.startswith(name)), len(first)))
    columns = _fitting(others, MOST_COLUMNS)
    return Arrangement(rows, columns, tuple(axis for axis in varying if axis not in (*rows, *columns)))


def _fitting(axes: Sequence[Axis], most: int) -> tuple[Axis, ...]:
    found: list[Axis] = []
    for axis in axes:
        if math.prod(len(a.levels) for a in (*found, axis)) <= most or not found:
            found.append(axis)
    return tuple(found)


@dataclass(frozen=True)
class Tile:
    """One or several audits, pooled.

    Args:
        cells: Which.
        hits: Pictures ranked first.
        n: Pictures.
        clients: Different ones that finished: a client counts once however many audits it is in, because the same
            pictures tell the same thing again.
        chance: Share of first ranks expected without leakage.
        first: Share of first ranks with its exact interval at the effective size ``clients``; None without a picture.
    """

    cells: tuple[Cell, ...]
    hits: int
    n: int
    clients: int
    chance: float
    first: Interval | None

    @property
    def inconclusive(self) -> bool:
        """Whether at least half of the audits are."""
        return 2 * sum(c.result.verdict.level == "inconclusive" for c in self.cells) >= len(self.cells)

    @property
    def above_floor(self) -> bool:
        """Whether in one of the audits a metric lies above every floor."""
        return any(above_floor(cell.result) for cell in self.cells)

    @property
    def depth(self) -> float:
        """Place on the colour scale: 0 at chance or below, 1 at :data:`TOP` times chance, logarithmic in between."""
        if self.first is None or not self.hits:
            return 0.0
        return min(1.0, max(0.0, math.log(self.first.value / self.chance) / math.log(TOP)))


def above_floor(result: Result) -> bool:
    """Whether a metric of every audit lies above every floor; PSNR in and around boxes would only be further tries."""
    return any(result.metrics[name].above_every_floor for name in ALWAYS if name in result.metrics)


def pooled(cells: Sequence[Cell]) -> Tile:
    """Pools audits: hits and pictures are added, chance is their mean weighted by pictures."""
    found = [line_up for cell in cells if (line_up := cell.result.line_up.attack)]
    hits, n = sum(line_up.hits for line_up in found), sum(line_up.n for line_up in found)
    clients = len({(drawn_with(cell), client) for cell in cells for client in finished(cell)})
    chance = sum(line_up.chance * line_up.n for line_up in found) / n if n else math.nan
    return Tile(tuple(cells), hits, n, clients, chance, share_of_cases(hits, n, clients) if n else None)


def finished(cell: Cell) -> list[int]:
    """The clients of an audit that have all of their runs."""
    return [client.client for client in cell.result.finished]


Place = tuple[int, ...]


def tiles(cells: Sequence[Cell], arrangement: Arrangement) -> tuple[list[Place], list[Place], dict[Any, Tile]]:
    """Rows and columns that hold a cell, each as the places of its levels, and the tile of each pair.

    Args:
        cells: Of a study.
        arrangement: Of its axes.
    """
    found: dict[tuple[Place, Place], list[Cell]] = {}
    for cell in cells:
        key = place(cell, arrangement.rows), place(cell, arrangement.columns)
        found.setdefault(key, []).append(cell)
    rows, columns = (sorted(set(places)) for places in zip(*found, strict=True))
    return rows, columns, {key: pooled(of_tile) for key, of_tile in found.items()}


def place(cell: Cell, axes: Sequence[Axis]) -> Place:
    """Where a cell lies on some axes, as the numbers of its levels."""
    return tuple(axis.levels.index(cell.axes.get(axis.name, ABSENT)) for axis in axes)


@dataclass(frozen=True)
class Rung:
    """What a server is granted, and what follows.

    Args:
        attacker: The nearest attacker's letter.
        granted: In words, most telling first.
        tiles: Line -> the pooled audits.
    """

    attacker: str
    granted: tuple[str, ...]
    tiles: Mapping[str, Tile]


@dataclass(frozen=True)
class Ladder:
    """Leakage against what the server is granted.

    Args:
        rungs: From the least granted.
        matched: Whether every rung holds the same cells but for the threat model; audits outside are left out then.
        audits: How many are in it.
    """

    rungs: tuple[Rung, ...]
    matched: bool
    audits: int


def ladder(cells: Sequence[Cell], axes: Sequence[Axis]) -> Ladder:
    """Orders audits by what was granted; one line for each mode of the client."""
    by_grant: dict[Any, dict[Any, list[Cell]]] = {}
    others = [axis for axis in axes if not axis.name.startswith("threat")]
    for cell in cells:
        rest = place(cell, others)
        by_grant.setdefault(_order(cell), {}).setdefault(rest, []).append(cell)
    common = set.intersection(*(set(of_rung) for of_rung in by_grant.values()))
    rungs, audits = [], 0
    for order in sorted(by_grant):
        of_rung = by_grant[order]
        kept = list(itertools.chain(*(of for rest, of in of_rung.items() if rest in common or not common)))
        audits += len(kept)
        lines: dict[str, list[Cell]] = {}
        for cell in kept:
            lines.setdefault(MODES[cell.result.plan.rule.mode], []).append(cell)
        knowledge = kept[0].result.knowledge
        found = {line: pooled(lines[line]) for line in sorted(lines)}
        rungs.append(Rung(knowledge.attacker, _granted(knowledge), found))
    return Ladder(tuple(rungs), bool(common), audits)


MODES = {"train": "training mode", "eval": "inference mode"}
LABELS = {"unknown": 0, "counts": 1, "known": 2}


def _order(cell: Cell) -> tuple[Any, ...]:
    granted = cell.result.knowledge.granted
    letter = cell.result.knowledge.attacker.rstrip("+")
    others = (granted.public, granted.rule, granted.count, granted.buffers, granted.known_pixels)
    return letter, LABELS[granted.labels], *others


def _granted(knowledge: Knowledge) -> tuple[str, ...]:
    granted = knowledge.granted
    labels = {"known": "labels", "counts": "label counts", "unknown": ""}[granted.labels]
    public = knowledge.public if granted.public else ""
    named = [("number of pictures", granted.count), ("local rule", granted.rule)]
    known_pixels = f"{granted.known_pixels:.3g} of the true pixels" if granted.known_pixels else ""
    buffers = "buffers" if granted.buffers else ""
    return tuple(
        told for told in (*(name for name, given in named if given), public, buffers, labels, known_pixels) if told
    )
