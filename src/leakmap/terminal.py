"""A result as a person reads it in a terminal of 80 columns."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

COLOURS = {
    "inconclusive": "bright_black",
    "none_found": "blue",
    "statistical": "yellow",
    "partial": "dark_orange",
    "visual": "red",
    "exact": "bold red",
}


def describe(result: Mapping[str, Any], console: Console) -> None:
    """Prints verdict, line-up, likeness beside its floors, and flags."""
    verdict = result["verdict"]
    colour = COLOURS[verdict["level"]]
    console.print(f"[reverse {colour}] {verdict['level']} [/] {escape(verdict['statement'])}", highlight=False)
    for reason in verdict["reasons"]:
        console.print(Padding(escape(reason), (0, 0, 0, 2)), highlight=False)
    if result["line_up"]["attack"]:
        console.print(_line_up(result))
        console.print(_metrics(result))
    for name, text in result["flags"].items():
        console.print(Padding(f"[yellow]{name}[/] {escape(text)}", (0, 0, 0, 2)), highlight=False)


def _line_up(result: Mapping[str, Any]) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", title=None)
    for heading in ("line-up", "first", "share [95 %]", "chance", f"median of {candidates(result)}", "p"):
        found.add_column(heading)
    for name, key in (("this update", "attack"), ("swapped", "swapped"), ("control", "control")):
        row = result["line_up"][key]
        if row:
            rate = row["rank_one"]
            found.add_row(
                name,
                f"{row['hits']} of {row['n']}",
                f"{rate['value']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}]",
                f"{row['chance']:.1%}",
                f"{row['median_rank']:g}",
                f"{row['p']:.2g}",
            )
    return found


def candidates(result: Mapping[str, Any]) -> str:
    """How many candidates a line-up has, as text."""
    low, high = result["line_up"]["gallery"]
    return str(low) if low == high else f"{low}–{high}"


def _metrics(result: Mapping[str, Any]) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("likeness", "mean", "best floor", "gain over it [95 %]"):
        found.add_column(heading)
    for name, row in result["metrics"].items():
        floor = f"{row['floors'][row['best_floor']]:.3g} ({row['best_floor']})"
        low, high = row["gain"]["low"], row["gain"]["high"]
        interval = "one client" if low is None else f"{low:+.3g}, {high:+.3g}"
        found.add_row(name.upper(), f"{row['value']['value']:.3g}", floor, f"{row['gain']['value']:+.3g} [{interval}]")
    return found
