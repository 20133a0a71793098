"""The page of ``benchmarks.strength``."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import interval, measured_with, table
from benchmarks.peers.contestants import BREACHING_IG, BREACHING_MODERN, LEAKPRO_IG, LEAKPRO_RUNNING
from leakmap.scoring.statistics import mean_interval

SUITE, TRIED = "strongest", "tried-"
PUBLIC, CHOICES = 2400, 300
"""Training pictures that are public; test pictures on which settings were chosen. Victims are later test pictures, and
the other candidates of a line-up later training pictures."""
COPY = 0.9
"""NCC with a victim from which on a picture is neither public nor in a line-up."""


def values(entry: Mapping[str, Any], who: str, what: str) -> list[float]:
    """Of a contestant on every client; of ranks the mean natural logarithm, negated, so that more is better."""
    if what == "ranks":
        return [-math.fsum(map(math.log, each["ranks"])) / len(each["ranks"]) for each in entry["reached"][who]]
    return [each[what] for each in entry["reached"][who]]


SCORES = {"ncc": ("NCC", ".3f"), "ranks": ("log rank", ".2f"), "psnr": ("PSNR, dB", ".1f")}
PEERS = (BREACHING_IG, BREACHING_MODERN, LEAKPRO_IG, LEAKPRO_RUNNING)


def beside(entry: Mapping[str, Any]) -> dict[str, tuple[str, list[float]]]:
    """For each score the best peer by its mean over the clients that it is compared on, and the suite less it."""
    found: dict[str, tuple[str, list[float]]] = {}
    taking_part = [name for name in PEERS if name in entry["reached"]]
    for what in SCORES if taking_part else ():
        best = max(taking_part, key=lambda name: math.fsum(values(entry, name, what)))
        pairs = zip(values(entry, SUITE, what), values(entry, best, what), strict=True)
        found[what] = best, [own - other for own, other in pairs]
    return found


def page(how: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown.

    Args:
        how: What the command does.
        found: Entries by case.
    """
    cases = {name: entry for name, entry in found.items() if not name.startswith(TRIED)}
    compared = {name: beside(entry) for name, entry in cases.items()}
    above = {
        name: [mean_interval(gains).high >= 0 for _, gains in scores.values()] for name, scores in compared.items()
    }
    lines = [
        "# The search beside the peers",
        "",
        "    python -m benchmarks.strength --data DIR --leakpro DIR --page     # hours",
        "",
        *how.strip().split("\n"),
        "",
        f"**The suite less the best peer is 0 or more, or its interval reaches 0, in NCC, log rank and PSNR: "
        f"{', '.join(name for name, good in above.items() if all(good)) or 'no case'}. "
        f"Not in all three: {', '.join(name for name, good in above.items() if not all(good)) or 'no case'}.** "
        "The column of seconds says what each contestant took: iterations were timed on a machine with other work.",
        "",
        measured_with(cases.values()),
        "",
        "## The suite less the best peer",
        "",
        "Means over clients with 95 % intervals, paired by client; bold where they leave out 0. Of each score the best "
        "peer is chosen by the same clients that it is compared on, which favours the peer. Log rank is the mean "
        "natural logarithm of the rank among 100 pictures of the class, here negated: more is better.",
        "",
        *table(
            ("case", "clients", *(title for title, _ in SCORES.values()), "best peers"),
            [
                (
                    name,
                    len(next(iter(entry["reached"].values()))),
                    *(interval(compared[name][what][1], f"+{form}", marked=True) for what, (_, form) in SCORES.items()),
                    ", ".join(dict.fromkeys(compared[name][what][0] for what in SCORES)),
                )
                for name, entry in cases.items()
                if compared[name]
            ],
        ),
    ]
    for name, entry in cases.items():
        lines += _section(name, entry)
    lines += _choices(found, cases)
    return "\n".join(lines)


def _answered(entry: Mapping[str, Any]) -> str:
    """Which members of the suite answered."""
    won = entry.get("won", [])
    told = ", ".join(f"{who} for {won.count(who)}" for who in dict.fromkeys(won))
    return f"Answered by {told} of {len(won)} clients." if won else ""


def _section(name: str, entry: Mapping[str, Any]) -> list[str]:
    # A rehearsal that failed is on record as none, and counts as 0.
    rehearsed = {who: math.fsum(one or 0 for one in ncc) / len(ncc) for who, ncc in entry["rehearsed"].items()}
    paces = entry["paces"]
    fit = ", ".join(f"{who} {steps} x {restarts}" for who, (steps, restarts) in paces.items())
    failed = [f"{where}: {why}." for where, why in entry.get("failures", {}).items()]
    missing = [f"{who}: {why}." for who, why in entry.get("missing", {}).items()]
    return [
        f"## {name}: {entry['title']}",
        "",
        f"`{entry['options']}`: {entry['seconds']:g} seconds of a core for each client; fitting and rehearsing took "
        f"{entry['fitting']:.0f} seconds beforehand. Iterations and restarts that fit: {fit or 'none were needed'}. "
        f"{_answered(entry)}",
        "",
        *table(
            ("contestant", "PSNR, dB", "median", "NCC", "log rank", "ranks", "term", "seconds", "rehearsed NCC"),
            [
                (
                    who,
                    interval(values(entry, who, "psnr"), ".1f"),
                    f"{_median(values(entry, who, 'psnr')):.1f}",
                    interval(values(entry, who, "ncc"), ".3f"),
                    interval([-value for value in values(entry, who, "ranks")], ".2f"),
                    " ".join(f"{r:g}" for each in runs for r in each["ranks"]),
                    f"{math.fsum(values(entry, who, 'term')) / len(runs):.4f}",
                    f"{_median(values(entry, who, 'seconds')):.1f}",
                    f"{rehearsed[who]:.3f}" if who in rehearsed else "",
                )
                for who, runs in entry["reached"].items()
            ],
        ),
        *([f"Failed, and counted as a grey picture: {' '.join(failed)}", ""] if failed else []),
        *([f"Not measured: {' '.join(missing)}", ""] if missing else []),
    ]


def _choices(found: Mapping[str, Mapping[str, Any]], cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "## Choices and victims",
        "",
        f"Settings were chosen on the first {CHOICES} test pictures of the pack; victims are later ones. Public "
        f"pictures are the first {PUBLIC} training pictures; of trained networks, which were trained on these, the "
        f"first {CHOICES} test pictures. Candidates of line-ups are later training pictures. None of either has an NCC "
        f"of {COPY} or more with a victim. Victims, by their number among the test pictures:",
        "",
        *(
            f"- {name}: {' '.join(str(i) for row in entry['test pictures'] for i in row)}"
            for name, entry in cases.items()
        ),
        "",
    ]
    for name, entry in found.items():
        if name.startswith(TRIED):
            lines += [f"Tried in {name.removeprefix(TRIED)}, on pictures for choices:", ""]
            rows = [
                (
                    f"`{spec}`",
                    interval(values(entry, spec, "ncc"), ".3f"),
                    interval(values(entry, spec, "psnr"), ".1f"),
                    interval([-value for value in values(entry, spec, "ranks")], ".2f"),
                    f"{math.fsum(values(entry, spec, 'term')) / len(runs):.4f}",
                )
                for spec, runs in entry["reached"].items()
            ]
            lines += table(("setting", "NCC", "PSNR, dB", "log rank", "term"), rows)
    return lines


def _median(of: Sequence[float | None]) -> float:
    """Of the values that there are: the seconds of a failure are none."""
    return statistics.median([value for value in of if value is not None] or [math.nan])
