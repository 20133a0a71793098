"""What difference does a setting make? Contrasts over the cells of a study, and corrections for many tests.

A study audits many cells, the product of axes. A cell has coordinates, ``axis -> level``, and a value for each of its
clients. Cells are compared only where they agree on every other axis, and client by client: within a seed, a client
holds the same pictures in every cell. The unit that is drawn at random is the client, so a client's differences are
averaged over all compared cells first and the interval is over clients: many cells do not stand in for many clients.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from scipy import stats

from leakmap.errors import BadSetting
from leakmap.scoring.statistics import Interval, mean_interval, paired_p

AxisLevel = str | int | float | bool | None
REPLICATES = ("seed",)
"""Axes that only repeat a cell; their levels are never compared."""


class Placed(Protocol):
    """Anything with coordinates in a study."""

    @property
    def axes(self) -> Mapping[str, AxisLevel]:
        """Axis -> level; an axis that does not apply is absent."""
        ...


C = TypeVar("C", bound=Placed)
Value = Callable[[C], Mapping[Hashable, float]]
"""A cell -> the value of each of its clients, which are known by the same name in every cell of a seed."""


@dataclass(frozen=True)
class Effect:
    """A contrast between cells.

    Args:
        name: What is compared, such as an axis.
        low: The level, or levels, that count negatively.
        high: The level, or levels, that count positively.
        difference: Mean over clients with its 95 % interval (see :func:`mean_interval`).
        p: Two-sided sign-flip test over clients.
        pairs: Sets of cells that agree on everything else, each of which holds every compared level.
        clients: Clients of different pictures; two seeds have different ones. Where groups of different clients are
            compared, those of the smallest group.
        error: Standard error of the difference; NaN where one client shows none.
    """

    name: str
    low: Any
    high: Any
    difference: Interval
    p: float
    pairs: int
    clients: int
    error: float = math.nan


def marginal_effects(cells: Sequence[C], value: Value[C], replicates: Collection[str] = REPLICATES) -> list[Effect]:
    """The mean paired difference for every axis and every pair of its levels.

    Cells are matched on all other axes. Where two levels share no such cells, because an axis applies to one of them
    only, they are matched on the axes that all cells of both levels have, and averaged over the rest. A pair of levels
    that still shares no client is left out.

    Args:
        cells: Of a study; several of the same coordinates are averaged.
        value: Of a cell's clients, such as :func:`leakmap.result.values.rank_score` of its result.
        replicates: Axes that only repeat cells, such as seeds: matched, never compared.

    Returns:
        Effects in the order of the axes and of their levels (numbers by size, others as they come); ``high`` less
        ``low``.
    """
    valued = [(dict(cell.axes), dict(value(cell))) for cell in cells]
    found = []
    for axis, levels in axis_levels(cells).items():
        if axis in replicates:
            continue
        for low, high in itertools.combinations(levels, 2):
            of_both = [(at, values) for at, values in valued if axis in at and at[axis] in (low, high)]
            common = set.intersection(*(set(at) for at, _ in of_both))
            for matched in (None, common):
                effect = _contrast(of_both, [axis], {(low,): -1.0, (high,): 1.0}, replicates, matched)
                if effect is not None:
                    found.append(Effect(axis, low, high, *effect))
                    break
    return found


def interaction(
    cells: Sequence[C],
    value: Value[C],
    levels: Mapping[str, tuple[AxisLevel, AxisLevel]],
    named: Mapping[str, AxisLevel] | None = None,
    replicates: Collection[str] = REPLICATES,
) -> Effect | None:
    """A contrast of a factorial of k axes with two levels each, over all cells that agree on everything else.

    Args:
        cells: Of a study.
        value: Of a cell's clients.
        levels: Axis -> low and high level.
        named: One of the 2^k combinations. Given, the contrast is the mean of that combination less the mean of all
            others. Otherwise it is the k-way interaction: the sum of all combinations, each with the product of its
            signs (low -1, high +1), over 2^(k-1). For k = 1 that is the difference, for k = 2 half the difference of
            the differences.
        replicates: Axes that only repeat cells.

    Returns:
        The contrast, with its interval over clients; None where no client has every combination.

    Raises:
        BadSetting: ``levels`` is empty, or ``named`` is none of its combinations.
    """
    axes = list(levels)
    combinations = list(itertools.product(*levels.values()))
    if not axes or len(set(combinations)) != 2 ** len(axes):
        raise BadSetting(f"An interaction needs axes with two different levels each; got {dict(levels)}.")
    if named is None:
        signs = itertools.product((-1, 1), repeat=len(axes))
        weights = {c: math.prod(s) / 2 ** (len(axes) - 1) for c, s in zip(combinations, signs, strict=True)}
    else:
        chosen = tuple(named.get(axis) for axis in axes)
        if set(named) != set(axes) or chosen not in combinations:
            raise BadSetting(f"{dict(named)} is no combination of {dict(levels)}; name one level of every axis.")
        weights = {c: 1.0 if c == chosen else -1 / (len(combinations) - 1) for c in combinations}
    found = _contrast([(dict(c.axes), dict(value(c))) for c in cells], axes, weights, replicates)
    if found is None:
        return None
    low, high = ([c for c, weight in weights.items() if (weight > 0) == positive] for positive in (False, True))
    return Effect(" × ".join(axes), low, high, *found)


def contrast(
    cells: Sequence[C],
    value: Value[C],
    terms: Sequence[tuple[float, Mapping[str, AxisLevel]]],
    name: str = "",
    replicates: Collection[str] = REPLICATES,
) -> Effect | None:
    """A weighted sum over cells that agree on every axis that is not named.

    Args:
        cells: Of a study.
        value: Of a cell's clients.
        terms: ``(weight, coordinates)`` each, all on the same axes.
        name: Of the effect.
        replicates: Axes that only repeat cells.

    Returns:
        The contrast, with its interval over clients; None where no client has every term.

    Raises:
        BadSetting: there are no terms, or they name different axes or the same cells twice.
    """
    axes = list(terms[0][1]) if terms else []
    weights = {tuple(at.get(axis) for axis in axes): weight for weight, at in terms}
    if not axes or len(weights) < len(terms) or any(set(at) != set(axes) for _, at in terms):
        raise BadSetting(f"A contrast needs terms that name different cells on the same axes; got {list(terms)}.")
    found = _contrast([(dict(c.axes), dict(value(c))) for c in cells], axes, weights, replicates)
    if found is None:
        return None
    low, high = ([c for c, weight in weights.items() if (weight > 0) == positive] for positive in (False, True))
    return Effect(name, low, high, *found)


def _contrast(
    valued: Sequence[tuple[Mapping[str, AxisLevel], Mapping[Hashable, float]]],
    axes: Sequence[str],
    weights: Mapping[tuple[AxisLevel, ...], float],
    replicates: Collection[str],
    matched: Collection[str] | None = None,
) -> tuple[Interval, float, int, int, float] | None:
    """Difference, p, sets of cells, clients and standard error of a weighted sum over levels.

    Cells agree on ``matched``, or on all other axes.
    """
    sets: dict[Hashable, dict[tuple[AxisLevel, ...], dict[Hashable, list[float]]]] = {}
    for at, values in valued:
        if not all(axis in at for axis in axes):
            continue
        combination = tuple(at[axis] for axis in axes)
        if combination not in weights:
            continue
        seed = _seed(at, replicates)
        compared = set(at if matched is None else matched) - set(axes) - set(replicates)
        rest = frozenset((axis, at[axis]) for axis in compared)
        of_set = sets.setdefault((rest, seed), defaultdict(lambda: defaultdict(list)))
        for client, one in values.items():
            of_set[combination][(seed, client)].append(one)
    differences: dict[Hashable, list[float]] = defaultdict(list)
    pairs = 0
    for of_set in sets.values():
        shared = set.intersection(*(set(of_set.get(combination, {})) for combination in weights))
        pairs += bool(shared)
        for client in shared:
            differences[client].append(sum(w * float(np.mean(of_set[c][client])) for c, w in weights.items()))
    if not differences:
        return None
    per_client = [float(np.mean(differences[client])) for client in sorted(differences, key=str)]
    return mean_interval(per_client), two_sided_p(per_client), pairs, len(per_client), standard_error(per_client)


def _seed(at: Mapping[str, AxisLevel], replicates: Collection[str]) -> Hashable:
    """Where a cell stands on the axes that only repeat it: a number of a client means another client elsewhere."""
    return tuple((axis, at[axis]) for axis in sorted(set(replicates) & set(at)))


def unpaired(
    cells: Sequence[C],
    value: Value[C],
    terms: Sequence[tuple[float, Mapping[str, AxisLevel]]],
    name: str = "",
    replicates: Collection[str] = REPLICATES,
) -> Effect | None:
    """A weighted sum over cells that hold different clients: Welch's interval and test.

    A client's values in all cells of a term are averaged first. However small the spread, p is no smaller than a
    permutation test of as many clients could find it.

    Args:
        cells: Of a study.
        value: Of a cell's clients.
        terms: ``(weight, coordinates)`` each.
        name: Of the effect.
        replicates: Axes that only repeat cells, such as seeds: each level has clients of its own.

    Returns:
        The contrast; None where a term has no client. With one client in a group its interval is infinite.

    Source: Welch 1947, "The generalization of 'Student's' problem when several different population variances are
    involved", Biometrika 34.
    """
    means, errors, sizes, found = [], [], [], []
    for weight, at in terms:
        alike = [cell for cell in cells if all(cell.axes.get(axis, math.nan) == level for axis, level in at.items())]
        of_client: dict[Hashable, list[float]] = defaultdict(list)
        for cell in alike:
            for client, one in value(cell).items():
                of_client[(_seed(cell.axes, replicates), client)].append(one)
        if not of_client:
            return None
        group = [float(np.mean(values)) for values in of_client.values()]
        means.append(weight * float(np.mean(group)))
        errors.append(weight * standard_error(group))
        sizes.append(len(group))
        found.append(len(alike))
    low, high = ([tuple(at.values()) for weight, at in terms if (weight > 0) == above] for above in (False, True))
    mean, error = math.fsum(means), math.sqrt(math.fsum(e**2 for e in errors))
    least = _least_p([(weight, size) for (weight, _), size in zip(terms, sizes, strict=True)])
    if not error > 0:
        difference = Interval(mean, *((mean, mean) if error == 0 else (-math.inf, math.inf)))
        p = least if error == 0 and mean else 1.0
        return Effect(name, low, high, difference, p, min(found), min(sizes), error)
    freedom = error**4 / math.fsum(e**4 / (n - 1) for e, n in zip(errors, sizes, strict=True))
    t = stats.t(freedom)
    half = float(t.ppf(0.975)) * error
    p = max(least, 2 * float(t.sf(abs(mean) / error)))
    return Effect(name, low, high, Interval(mean, mean - half, mean + half), p, min(found), min(sizes), error)


def _least_p(groups: Sequence[tuple[float, int]]) -> float:
    """The smallest two-sided p that exchanging clients between groups, or flipping the signs of one, can give.

    Args:
        groups: Weight and number of clients of each.
    """
    clients = sum(size for _, size in groups)
    above = sum(size for weight, size in groups if weight > 0)
    return min(1.0, 2 / (math.comb(clients, above) if 0 < above < clients else 2**clients))


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values; NaN of fewer than two."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def axis_levels(cells: Sequence[Placed]) -> dict[str, list[AxisLevel]]:
    """Axis -> its levels: false before true, numbers by size, others in the order in which they come."""
    found: dict[str, dict[AxisLevel, None]] = {}
    for cell in cells:
        for axis, level in cell.axes.items():
            found.setdefault(axis, {})[level] = None
    return {axis: _ordered(list(levels)) for axis, levels in found.items()}


def _ordered(levels: list[AxisLevel]) -> list[AxisLevel]:
    if all(isinstance(level, (bool, int, float)) for level in levels):
        return sorted(levels, key=lambda level: float(level))  # type: ignore[arg-type]
    return levels


def two_sided_p(differences: Sequence[float]) -> float:
    """Two-sided p-value that a mean difference is not 0: twice the lesser one of the sign-flip tests, at most 1."""
    return min(1.0, 2 * min(paired_p(differences), paired_p([-d for d in differences])))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the same order: below alpha they err anywhere with at most alpha.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.
    """
    corrected, least = [0.0] * len(ps), 0.0
    for place, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = max(least, min(1.0, (len(ps) - place) * ps[i]))
        corrected[i] = least
    return corrected
