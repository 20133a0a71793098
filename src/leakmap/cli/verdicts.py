"""A result as a person reads it in a terminal of 80 columns: imported once there is one."""

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from leakmap.cli.terminal import COLOURS
from leakmap.plan.tuned import Tuned
from leakmap.report import told
from leakmap.report.page import metric_name
from leakmap.result.method import SuiteResult
from leakmap.result.result import Result

LINE_UPS = {
    "attack": "this update",
    "any_pose": "any pose",
    "swapped": "swapped",
    "deranged": "other clients",
    "control": "control",
    "objects": "its objects",
    "swapped_objects": "swapped objects",
}


def describe(result: Result, console: Console) -> None:
    """Prints verdict, exposed clients and pictures, line-ups, what leaks, metrics beside their floors, and flags."""
    verdict, headline = result.verdict, told.headline(result)
    colour = "yellow" if told.too_few(result) else COLOURS[verdict.level]
    console.print(f"[reverse {colour}] {verdict.level} [/] {escape(headline)}", highlight=False)
    beneath = [verdict.statement] if verdict.statement != headline else []
    beneath += [verdict.worst, verdict.typical, told.counts_with_intervals(result), *verdict.reasons]
    for sentence in filter(None, beneath):
        console.print(Padding(escape(sentence), (0, 0, 0, 2)), highlight=False)
    console.print(Padding(f"[dim]why {verdict.level}[/] {told.rule(result)}", (0, 0, 0, 2)), highlight=False)
    if result.line_up.gallery is not None:
        console.print(_line_up(result, candidates(*result.line_up.gallery)))
        if result.bands:
            console.print(Padding(f"[dim]bands[/] {_bands(result)}", (0, 0, 0, 2)), highlight=False)
        console.print(_metrics(result))
        if result.suite:
            _suite(result.suite, console)
        able = ", ".join(result.closed_forms.qualify) or "none qualifies; the report says why"
        console.print(Padding(f"[dim]closed forms[/] {able}", (0, 0, 0, 2)), highlight=False)
        console.print(Padding(f"[dim]labels[/] {escape(result.labels.statement)}", (0, 0, 0, 2)), highlight=False)
    console.print(Padding(f"[dim]settings[/] {escape(result.settings.statement)}", (0, 0, 0, 2)), highlight=False)
    if result.defence:
        console.print(Padding(f"[dim]defence[/] {escape(result.defence.statement)}", (0, 0, 0, 2)), highlight=False)
    if result.ceiling:
        console.print(Padding(f"[dim]ceiling[/] {escape(result.ceiling.statement)}", (0, 0, 0, 2)), highlight=False)
    for name, text in result.flags.items():
        console.print(Padding(f"[yellow]{name}[/] {escape(text)}", (0, 0, 0, 2)), highlight=False)


def _suite(suite: SuiteResult, console: Console) -> None:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in (f"suite {suite.version}", "rehearsed NCC", "won", "median term", "first", "PSNR"):
        found.add_column(heading)
    for member in suite.members:
        if member.ran or member.rehearsed is not None:
            own = _told(member.rehearsed, ".2f"), str(member.won)
            first = f"{member.first} of {member.pictures}" if member.ran else "–"
            found.add_row(member.name, *own, _told(member.term, ".2g"), first, _told(member.values.get("psnr"), ".1f"))
    console.print(found)
    if left := [member.name for member in suite.members if not member.ran and member.rehearsed is None]:
        console.print(Padding(f"[dim]did not apply[/] {', '.join(left)}", (0, 0, 0, 2)), highlight=False)


def _line_up(result: Result, size: str) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", title=None)
    for heading in ("line-up", "first", "share [95 %]", "chance", f"median of {size}", "p"):
        found.add_column(heading)
    for key, row in told.line_ups(result).items():
        rate = row.rank_one
        found.add_row(
            LINE_UPS[key],
            f"{row.hits} of {row.n}",
            f"{rate.value:.0%} [{rate.low:.0%}, {rate.high:.0%}]",
            f"{row.chance:.1%}",
            f"{row.median_rank:g}",
            f"{row.p:.2g}",
        )
    return found


def _bands(result: Result) -> str:
    hits = ", ".join(f"{band} {one.hits} of {one.n}" for band, one in told.bands(result).items())
    return f"{result.bands.statement if result.bands else ''} First by {hits}."


def candidates(low: int, high: int) -> str:
    """How many candidates a line-up has, as text."""
    return str(low) if low == high else f"{low}–{high}"


def _metrics(result: Result) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("metric", "mean", "best floor", "gain over it [95 %]"):
        found.add_column(heading)
    for name, row in result.metrics.items():
        floor = f"{_told(row.floors[row.best_floor], '.3g')} ({row.best_floor})"
        low, high = row.gain.low, row.gain.high
        interval = "one client" if low is None else f"{low:+.3g}, {_told(high, '+.3g')}"
        gain = f"{_told(row.gain.value, '+.3g')} [{interval}]"
        found.add_row(metric_name(name), _told(row.value.value, ".3g"), floor, gain)
    return found


def _told(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def describe_tuned(tuned: Tuned, console: Console) -> None:
    """Prints where the settings of each attack come from, and those that were searched."""
    colour = "blue" if tuned.column == "rehearsal-tuned" else "dark_orange"
    for name, attack in tuned.attacks.items():
        console.print(f"[reverse {colour}] {name} [/]", highlight=False)
        console.print(Padding(str(tuned.origin(name)), (0, 0, 0, 2)), highlight=False)
        found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("  setting", "default", "tuned"):
            found.add_column(heading)
        first = attack.tried[0].settings
        for key, value in first.items():
            if any(one.settings[key] != value for one in attack.tried):
                found.add_row(f"  {key}", str(value), str(attack.settings[key]))
        console.print(found)
        stopped, failed = sum(one.stopped for one in attack.tried), sum(len(one.failures) for one in attack.tried)
        console.print(
            f"  stopped early: {stopped} of {len(attack.tried)}, failed rehearsals: {failed}", highlight=False
        )
