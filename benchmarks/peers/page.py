"""What came out, in markdown."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.markdown import table
from benchmarks.peers.contestants import EXACT, FROZEN, LOOP, STEP
from benchmarks.peers.measures import BY_PSNR, BY_TERM, DECIBELS, PAIRS, SHORT, entries
from benchmarks.peers.works import WORKS, Work

SAME_TERM, SAME_GRADIENT = 1e-4, 0.999
ROUNDING = 1e-6
"""Of one minus a cosine near one, in float32."""
FASTER, SLACK = 5.0, 1.05
MOMENTS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
MEMORY_WORK = "resnet18-8"
Parts = Mapping[str, Any]
"""``part-device-work[-client]`` -> what was measured."""


def _measured(parts: Parts, part: str) -> list[tuple[Work, str, Any]]:
    """Works with their titles and what was measured, on the CPU first."""
    found = []
    for device, suffix in (("cpu", ""), ("cuda", " (GPU)")):
        for work in WORKS:
            if (key := f"{part}-{device}-{work.name}") in parts:
                found.append((work, work.title + suffix, parts[key]))
    return found


def _grid(measured: list[tuple[Work, str, Any]], key: str, cell: Callable[[Any, str], str]) -> list[str]:
    """A table of contestants against works."""
    everyone = dict.fromkeys(name for *_, found in measured for name in _names(found, key))
    rows = [[name, *(cell(found, name) for *_, found in measured)] for name in everyone]
    return table(["", *(title for _, title, _ in measured)], rows)


def _names(found: Any, key: str) -> Iterable[str]:
    if key in ("evaluate", "iterate"):
        return dict.fromkeys(name for turn in found["rounds"] for name in turn[key])
    return found[key]


def _ratio(found: Any, do: str, name: str, base: str) -> float:
    """Median over rounds of the ratio to an evaluation of ``base`` in the same round."""
    ratios = [
        turn[do][name]["seconds"] / turn["evaluate"][base]["seconds"]
        for turn in found["rounds"]
        if name in turn[do] and base in turn["evaluate"]
    ]
    return statistics.median(ratios) if ratios else math.nan


def _cost(do: str) -> Callable[[Any, str], str]:
    def cell(found: Any, name: str) -> str:
        seconds = [turn[do][name]["seconds"] for turn in found["rounds"] if name in turn[do]]
        if not seconds:
            return "–"
        return f"{_ratio(found, do, name, STEP):.2f} ({1000 * statistics.median(seconds):.3g} ms)"

    return cell


def _judged(value: float, limit: float) -> list[str]:
    if math.isnan(value):
        return ["–", f"{limit:g}", "–"]
    return [f"{value:.2f}", f"{limit:g}", "yes" if value <= limit else "**no**"]


def _agreement(found: Any, name: str) -> str:
    answer = found["answers"].get(name)
    if answer is None:
        return "–"
    far = answer["difference"] > SAME_TERM + ROUNDING / answer["match"]
    good = not far and answer["cosine"] >= SAME_GRADIENT
    return f"{answer['difference']:.0e}, {answer['cosine']:.5f}{'' if good else ' **!**'}"


def costs(parts: Parts) -> list[str]:
    """Evaluations and iterations."""
    measured = _measured(parts, "speed")
    if not measured:
        return []
    rows = []
    for work, title, found in measured:
        frozen, exact = (_ratio(found, "evaluate", name, LOOP) for name in (FROZEN, EXACT))
        rows.append([title, *_judged(frozen, work.frozen), *_judged(exact, work.exact)])
    return [
        "## One evaluation of the matching term and its gradient",
        "",
        f"In plain training steps: medians of {len(measured[0][2]['rounds'])} interleaved rounds of the ratio within a "
        "round; in brackets the median time. Cosine distance alone, no total variation and no optimiser. leakmap auto "
        "checks itself against double backward in every 100th evaluation, of which rounds hold few.",
        "",
        *_grid(measured, "evaluate", _cost("evaluate")),
        "Ratios to the hand-written loop, beside what they should be at most:",
        "",
        *table(["", "frozen / loop", "at most", "", "exact / loop", "at most", ""], rows),
        "All evaluate the same: relative difference of the matching term from that of the hand-written loop, and "
        f"cosine between the gradients. Marked: terms apart by more than {SAME_TERM:g} of it and {ROUNDING:g} (what "
        f"float32 loses where a cosine is near 1), or gradients with a cosine below {SAME_GRADIENT}.",
        "",
        *_grid(measured, "answers", _agreement),
        "## One iteration of a whole attack",
        "",
        "Likewise, with all that an attack does besides: total variation, signed Adam, the box, the best iterate.",
        "",
        *_grid(measured, "iterate", _cost("iterate")),
    ]


def memories(parts: Parts) -> list[str]:
    """Growth of memory."""
    measured = _measured(parts, "memory")
    if not measured:
        return []

    def cell(found: Any, name: str) -> str:
        held = found["bytes"].get(name)
        return "–" if held is None else f"{held['peak'] / 2**20:.0f} ({held['built'] / 2**20:.0f})"

    lines = [
        "## Memory",
        "",
        "MiB by which a process grows over the client's file and all imports, each contestant in a process of its own: "
        "the peak within 3 evaluations; in brackets what is held before the first. Freed pages are returned at once.",
        "",
        *_grid(measured, "bytes", cell),
    ]
    for work, title, found in measured:
        held = found["bytes"]
        if work.name == MEMORY_WORK and FROZEN in held and LOOP in held:
            over = {name: held[name]["peak"] - held[name]["built"] for name in (FROZEN, LOOP)}
            first = "yes" if over[FROZEN] < over[LOOP] else "**no**"
            whole = "yes" if held[FROZEN]["peak"] < held[LOOP]["peak"] else "**no**"
            lines += [
                f"{title}, does frozen grow less than the hand-written loop? Over what it holds before the first "
                f"evaluation: {first}. All in all: {whole}.",
                "",
            ]
    return lines


def moments(parts: Parts) -> list[str]:
    """What is reached when."""
    lines: list[str] = []
    for device, suffix in (("cpu", ""), ("cuda", " (GPU)")):
        for work in (BY_PSNR, BY_TERM):
            start = f"time-{device}-{work.name}-"
            clients = [found["runs"] for name, found in parts.items() if name.startswith(start)]
            known = [entry.title for entry in entries(work)]
            if ran := [name for name in known if clients and all(name in runs for runs in clients)]:
                lines += [f"### {work.title}{suffix}", "", *_course(clients, ran, work)]
                lines += _contest(clients, [[known[i] for i in pair] for pair in PAIRS], work)
    return ["## Against time", "", *lines] if lines else []


def _course(clients: list[Any], ran: list[str], work: Work) -> list[str]:
    last = max(run["seconds"] for runs in clients for run in runs.values())
    rows = [
        [f"after {moment:.3g} s", *(_median_at([runs[name] for runs in clients], moment, work) for name in ran)]
        for moment in [*(m for m in MOMENTS if m < last), last]
    ]
    made = (f"{statistics.median(runs[name]['iterations'] for runs in clients):.0f}" for name in ran)
    what, stop = "lowest matching term so far", "where it was below all of leakmap's"
    if work is BY_PSNR:
        what, stop = "PSNR in dB", f"at {DECIBELS:g} dB"
    return [
        f"Median {what}, pictures: {len(clients)}. A run that has ended keeps what it had; one of breaching "
        f"was ended {stop}, or when its time was up.",
        "",
        *table(["", *ran], [*rows, ["iterations made", *made]]),
    ]


def _median_at(runs: list[Any], moment: float, work: Work) -> str:
    points = [[point for point in run["points"] if point[0] <= moment] for run in runs]
    if not all(points):
        return "–"
    values = (of[-1][1] if work is BY_PSNR else min(point[2] for point in of) for of in points)
    return f"{statistics.median(values):.3g}"


def _contest(clients: list[Any], pairs: list[list[str]], work: Work) -> list[str]:
    rows = []
    for ours, theirs in pairs:
        if all(ours in runs and theirs in runs for runs in clients):
            rows.append([ours, theirs, *_times([_reached(runs[ours], runs[theirs], work) for runs in clients])])
    steps, lr = SHORT[work.name]
    goal = f"{DECIBELS:g} dB"
    if work is BY_TERM:
        goal = f"the same matching term, of each picture the lowest that both reach and {SLACK - 1:.0%} more"
    return [
        f"Seconds to {goal}: medians. ≥: at least half of the runs ended before. The short search has {steps} "
        f"iterations and a first step of {lr:g}, chosen on pictures that this page does not use.",
        "",
        *table(["", "against", "seconds", "against seconds", "times faster", f"at least {FASTER:g}"], rows),
    ]


Reached = tuple[float, bool]
"""Seconds to the goal; or the seconds of a run that ended before, and False."""


def _reached(ours: Any, theirs: Any, work: Work) -> tuple[Reached, Reached]:
    goal = SLACK * max(min(point[2] for point in run["points"]) for run in (ours, theirs))

    def first(run: Any) -> Reached:
        for seconds, psnr, term in run["points"]:
            if psnr >= DECIBELS if work is BY_PSNR else term <= goal:
                return seconds, True
        return run["seconds"], False

    return first(ours), first(theirs)


def _times(found: list[tuple[Reached, Reached]]) -> list[str]:
    """Median seconds of both, the median of how many times faster, the verdict; where ours fails, 0 times."""
    cells = []
    unsure = []
    for side in zip(*found, strict=True):
        unsure.append(sum(not sure for _, sure in side) * 2 >= len(side))
        cells.append(f"{'≥ ' if unsure[-1] else ''}{statistics.median(seconds for seconds, _ in side):.3g}")
    times = statistics.median(theirs / max(ours, 1e-9) if sure else 0.0 for (ours, sure), (theirs, _) in found)
    shown = "–" if unsure[0] else f"{'≥ ' if unsure[1] else ''}{times:.1f}"
    return [*cells, shown, "yes" if times >= FASTER else "**no**"]
