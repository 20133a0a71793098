"""Results and progress as a person reads them in a terminal of 80 columns."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from leakmap.auditing.estimate import Expected, Fitting
from leakmap.errors import plain
from leakmap.plan.tuned import Tuned
from leakmap.report import told
from leakmap.report.page import metric_name
from leakmap.result.method import SuiteResult
from leakmap.result.result import Result

COLOURS = {
    "inconclusive": "bright_black",
    "none_found": "blue",
    "statistical": "yellow",
    "partial": "dark_orange",
    "visual": "red",
    "exact": "bold red",
}
LINE_UPS = {
    "attack": "this update",
    "any_pose": "any pose",
    "swapped": "swapped",
    "deranged": "other clients",
    "control": "control",
    "objects": "its objects",
    "swapped_objects": "swapped objects",
}


class Terminal(Console):
    """A console that writes out what does not print in any text that it is given: names are others'."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Every text passes here, also in tables and lists."""
        return super().render_str(plain(text), **how)


@contextmanager
def results_apart() -> Iterator[None]:
    """Lets all that is printed meanwhile, by a user's own code above all, go to stderr: stdout is for the result."""
    with redirect_stdout(sys.stderr), ExitStack() as back:
        with suppress(OSError):  # a stream that is closed already
            kept = os.dup(1)
            back.callback(os.close, kept)
            os.dup2(2, 1)  # worker processes and libraries write there without asking Python
            back.callback(os.dup2, kept, 1)
        yield


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


def gated(result: Result, gate: str, reached: bool) -> str:
    """What the gate found, in one line.

    Args:
        result: Of the audit.
        gate: Its level.
        reached: Whether the verdict is at this level or above.
    """
    level, counts = result.verdict.level, told.counts(result)
    answer = level if level == "inconclusive" else f"{'reached' if reached else 'not reached'} ({level})"
    return f"gate {gate}: {answer}" + (f": {counts}" if counts else "")


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


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A bar with the remaining time on a terminal, else a line at every tenth: on stderr, as all that is printed."""
    console = Terminal(stderr=True)
    with results_apart(), _bar(console) if console.is_terminal else _lines(console) as told:
        yield told


@contextmanager
def _lines(console: Console) -> Iterator[Any]:
    said: set[tuple[str, int]] = set()

    def line(what: str, fraction: float) -> None:
        step = (re.sub(r"\d+", "", what), int(fraction * 10))
        if step not in said:
            said.add(step)
            console.print(f"{fraction:4.0%} {escape(what)}", soft_wrap=True)

    yield line


@contextmanager
def _bar(console: Console) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console, transient=True, expand=True, speed_estimate_period=120) as bar:
        task = bar.add_task("starting", total=1.0)
        phase = ""

        def moved(what: str, fraction: float) -> None:
            nonlocal phase
            if (now := re.sub(r"\d+", "", what)) != phase:
                # What is left is told from the pace of what is being done, not from that of what came before.
                bar.reset(task, description=escape(plain(what)))
                phase = now
            bar.update(task, description=escape(plain(what)), completed=fraction)

        yield moved


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def foretell(expected: Expected) -> None:
    """Says on stderr what is about to be run and how long that may take; above the bar, if one is shown."""
    clients, runs = _many(expected.clients, "client"), _many(expected.runs, "run")
    about = ""
    if expected.seconds is not None:
        about = f": {'at most ' if expected.at_most else ''}about {duration(expected.seconds)}"
        if expected.processes is None:
            about += " of computing on the cluster"
        elif expected.processes:
            about += f" with {_many(expected.processes, 'process', 'processes')}"
    if expected.fitting:
        foretell_fit(expected.fitting)
    sys.stderr.write(f"{clients}, {runs}{about}; Ctrl-C keeps what is finished.\n")


def foretell_fit(fitting: Fitting) -> None:
    """Says on stderr what is fitted before any client is attacked, how long that may take and what it holds."""
    several = f" for {fitting.fits} settings" if fitting.fits > 1 else ""
    takes = f"{'at most ' if fitting.at_most else ''}about {duration(fitting.seconds)}"
    held = f"{size(fitting.memory)} of memory for what is read of them"
    sys.stderr.write(f"Fitted first to {fitting.clients:,} simulated clients{several}: {takes}, {held}.\n")


def size(count: int) -> str:
    """Bytes as a person says them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or f'{one}s'}"
