"""A terminal of 80 columns: what prints into it, progress, and what is said before a long run."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from leakmap.cli.parsing import quiet
from leakmap.errors import plain
from leakmap.units import duration, size

if TYPE_CHECKING:
    from leakmap.auditing.estimate import Expected, Fitting

COLOURS = {
    "inconclusive": "bright_black",
    "none_found": "blue",
    "statistical": "yellow",
    "partial": "dark_orange",
    "visual": "red",
    "exact": "bold red",
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


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A bar with the remaining time on a terminal, else a line at every tenth: on stderr, as all that is printed."""
    console = Terminal(stderr=True)
    shown = nullcontext(_unsaid) if quiet() else _bar(console) if console.is_terminal else _lines(console)
    with results_apart(), shown as told:
        yield told


def _unsaid(what: str, fraction: float) -> None:
    """Progress that nobody wants to hear of."""


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


def foretell(expected: "Expected") -> None:
    """Says on stderr what is about to be run and how long that may take; above the bar, if one is shown."""
    if expected.without and not quiet():
        sys.stderr.write(f"No search of the suite will run, only what needs no labels: {plain(expected.without)}\n")
    if expected.fitting:
        foretell_fit(expected.fitting)
    what = f"{many(expected.clients, 'client')}, {many(expected.runs, 'run')}"
    foretell_time(what, expected.seconds, expected.processes, at_most=expected.at_most)


def foretell_time(what: str, seconds: float | None, processes: int | None, *, at_most: bool = False) -> None:
    """Says on stderr how long something may take.

    Args:
        what: Is about to be run.
        seconds: Until all is finished; None where that cannot be told. Of a cluster, the computing in all.
        processes: That share it; 0 is this one, None is a cluster's.
        at_most: Whether less may do.
    """
    if quiet():
        return
    about = ""
    if seconds is not None:
        about = f": {'at most ' if at_most else ''}about {duration(seconds)}"
        if processes is None:
            about += " of computing on the cluster"
        elif processes:
            about += f" with {many(processes, 'process', 'processes')}"
    sys.stderr.write(f"{what}{about}; Ctrl-C keeps what is finished.\n")


def foretell_fit(fitting: "Fitting") -> None:
    """Says on stderr what is fitted before any client is attacked, how long that may take and what it holds."""
    if quiet():
        return
    several = f" for {fitting.fits} settings" if fitting.fits > 1 else ""
    takes = f"{'at most ' if fitting.at_most else ''}about {duration(fitting.seconds)}"
    held = f"{size(fitting.memory)} of memory for what is read of them"
    sys.stderr.write(f"Fitted first to {fitting.clients:,} simulated clients{several}: {takes}, {held}.\n")


def many(count: int, one: str, more: str = "") -> str:
    """A number of things in words, such as ``1 run`` and ``2 runs``."""
    return f"{count} {one if count == 1 else more or f'{one}s'}"
