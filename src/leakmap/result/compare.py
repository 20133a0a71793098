"""Two audits side by side, client by client: what one setting changed, and whether chance explains it."""

import math
from collections.abc import Callable, Hashable, Mapping
from functools import partial

from leakmap.errors import BadSetting, check_type
from leakmap.models.network import IN_MEMORY
from leakmap.plan.written import settings, values_of
from leakmap.result.part import Part
from leakmap.result.result import Result
from leakmap.result.values import exposed_any, first_ranks, mean_score, rank_score
from leakmap.scoring.effects import holm, two_sided_p
from leakmap.scoring.statistics import Interval, clopper_pearson, mean_interval

LEVEL = 0.05
"""A difference is beyond chance where its p-value, corrected for the number of rows, is below."""
_WHO = ("data", "image_size", "batch_size", "seed", "classes", "target")
"""Settings of a plan that decide which pictures the clients hold, and what they are labelled with."""


class Difference(Part):
    """One quantity of two audits.

    Args:
        name: What is compared.
        first: Mean over the compared clients in the first audit.
        second: The same in the second.
        difference: Second less first, mean over clients.
        low: Lower end of its 95 % interval; null where one client shows nothing about others.
        high: Upper end; null likewise.
        p: Two-sided sign-flip test over clients, corrected for the number of rows (Holm).
        beyond_chance: Whether p is below 0.05.
    """

    name: str
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p: float
    beyond_chance: bool


class Comparison(Part):
    """Two audits of the same clients.

    Args:
        levels: Of the two verdicts.
        clients: Clients that are compared: those that finished in both.
        settings: Setting -> what it is in either audit, where they differ.
        rows: The quantities.
        notes: What limits the comparison, in sentences.
    """

    levels: tuple[str, str]
    clients: int
    settings: dict[str, tuple[str, str]]
    rows: tuple[Difference, ...]
    notes: tuple[str, ...]

    def markdown(self, first: str = "first", second: str = "second") -> str:
        """The comparison as Markdown, to be copied.

        Args:
            first: Heading of the first audit.
            second: Heading of the second.
        """
        head = ("", first, second, "difference [95 %]", "p", "beyond chance")
        lines = [_line(head), "|" + "---|" * len(head), _line(("verdict", *self.levels, "", "", ""))]
        lines += [_line((f"`{key}`", f"`{one}`", f"`{two}`", "", "", "")) for key, (one, two) in self.settings.items()]
        lines += [_line(cells(row)) for row in self.rows]
        return "\n".join([*lines, "", f"{self.clients} clients, compared one by one.", *self.notes]) + "\n"


def cells(row: Difference) -> tuple[str, ...]:
    """A row as text: name, both values, the difference with its interval, p, and whether it is beyond chance."""
    ends = "one client" if row.low is None or row.high is None else f"{row.low:+.3g}, {row.high:+.3g}"
    told = f"{row.difference:+.3g} [{ends}]"
    return row.name, f"{row.first:.3g}", f"{row.second:.3g}", told, f"{row.p:.2g}", "yes" if row.beyond_chance else "no"


def compare(first: Result, second: Result) -> Comparison:
    """Compares two audits of the same clients, client by client: second less first.

    A client holds the same pictures in audits of the same data and seed, so what its pictures are like cancels. The
    interval is over clients, see :func:`leakmap.scoring.statistics.mean_interval`. That of a share is the difference of
    two exact intervals, of the clients that rise and of those that fall.

    Args:
        first: As :func:`leakmap.read_result` reads it.
        second: The other one.

    Raises:
        BadSetting: they have different clients, or none finished in both.
        UsageError: one is no result.
    """
    for result in (first, second):
        check_type(result, Result, "What is compared", "a leakmap.Result, as leakmap.read_result reads")
    _refuse_others(first, second)
    valued = [(name, share, value(first), value(second)) for name, share, value in _quantities(first, second)]
    valued = [(name, share, a, b) for name, share, a, b in valued if a.keys() & b.keys()]
    if not valued:
        raise BadSetting("No client finished in both audits, so nothing can be compared; run their commands again.")
    rows = []
    pairs = [[(a[key], b[key]) for key in sorted(a.keys() & b.keys(), key=str)] for _, _, a, b in valued]
    corrected = holm([two_sided_p([b - a for a, b in both]) for both in pairs])
    for (name, share, _, _), both, p in zip(valued, pairs, corrected, strict=True):
        found = _interval([b - a for a, b in both], share)
        low, high = (found.low, found.high) if len(both) > 1 else (None, None)
        means = [sum(values) / len(both) for values in zip(*both, strict=True)]
        told = {"name": name, "first": means[0], "second": means[1], "difference": found.value}
        rows.append(Difference(**told, low=low, high=high, p=p, beyond_chance=p < LEVEL))
    shared = max(map(len, pairs))
    return Comparison(
        levels=(first.verdict.level, second.verdict.level),
        clients=shared,
        settings=_differing(first, second),
        rows=tuple(rows),
        notes=tuple(_notes(first, second, shared, len(rows))),
    )


Values = Mapping[Hashable, float]


def _quantities(first: Result, second: Result) -> list[tuple[str, bool, Callable[[Result], Values]]]:
    """Name, whether it is a share, and the value of each client."""
    metrics = [name for name in first.metrics if name in second.metrics]
    return [
        ("exposed clients", True, exposed_any),
        ("first in line-up", True, first_ranks),
        ("line-up score", False, rank_score),
        *((name, False, partial(mean_score, metric=name)) for name in metrics),
    ]


def _interval(differences: list[float], share: bool) -> Interval:
    """Of a mean difference; that of a share knows what no client showed, as where none is exposed in either audit."""
    if not share:
        return mean_interval(differences)
    n = len(differences)
    ends = []
    for sign in (1, -1):
        # Rounded outwards to whole clients. Half of the error for each direction, so that both together keep 95 %.
        gone = math.fsum(max(0.0, sign * one) for one in differences)
        ends.append(
            (
                clopper_pearson(math.floor(gone + 1e-9), n, 0.975).low,
                clopper_pearson(math.ceil(gone - 1e-9), n, 0.975).high,
            )
        )
    (least_up, most_up), (least_down, most_down) = ends
    return Interval(math.fsum(differences) / n, least_up - most_down, most_up - least_down)


def _differing(first: Result, second: Result) -> dict[str, tuple[str, str]]:
    one, other = values_of(first.plan), values_of(second.plan)
    paths = [entry.path for entry in settings() if entry.path != "captured"]
    return {path: (str(one[path]), str(other[path])) for path in paths if str(one[path]) != str(other[path])}


def _refuse_others(first: Result, second: Result) -> None:
    """Refuses clients that hold other pictures: a difference would be theirs."""
    one, other = first.plan, second.plan
    differ = [name for name in _WHO if getattr(one, name) != getattr(other, name)]
    truths = [(plan.captured.truths, plan.captured.others) if plan.captured else None for plan in (one, other)]
    if truths[0] != truths[1]:
        differ.append("truth")
    if differ:
        told = "; ".join(f"{name}: {getattr(one, name, '…')} and {getattr(other, name, '…')}" for name in differ)
        raise BadSetting(
            f"These audits have different clients ({told}), so that a difference may be that of their pictures; "
            "repeat one of them with the other's data, size and seed."
        )
    held = [{client.client: client.classes for client in result.finished} for result in (first, second)]
    if any(held[0][key] != held[1][key] for key in held[0].keys() & held[1].keys()):
        raise BadSetting(
            "These audits have different clients: what their pictures are labelled with is not the same, so the data "
            "has changed in between; repeat the older one."
        )


def _notes(first: Result, second: Result, shared: int, rows: int) -> list[str]:
    found = []
    counts = [len(result.clients) for result in (first, second)]
    if shared < max(counts):
        found.append(f"Of {counts[0]} and {counts[1]} clients {shared} finished in both; the others are left out.")
    if first.settings.column != second.settings.column:
        found.append(
            f"The settings of the attacks are {first.settings.column} and {second.settings.column}: a difference may "
            "be that of the tuning."
        )
    if first.line_up.gallery != second.line_up.gallery:
        found.append("The line-ups have different numbers of candidates, which changes how often chance is first.")
    if IN_MEMORY in (first.plan.data, second.plan.data):
        found.append("The pictures were in memory: that they are the same ones is taken on trust.")
    # The sign-flip test over n clients has no p-value below 2 / 2^n; Holm multiplies the least by the number of rows.
    if rows * 2 / 2**shared >= LEVEL:
        found.append(f"{shared} clients are too few for any difference to be beyond chance.")
    for name, result in (("first", first), ("second", second)):
        if result.verdict.level == "inconclusive":
            found.append(f"The {name} audit is inconclusive: what limits it limits the comparison.")
    return found


def _line(words: tuple[str, ...]) -> str:
    return f"| {' | '.join(words)} |"
