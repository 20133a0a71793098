"""The page of the map, and its heat map."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist, median

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from benchmarks import atlas_cells as cells
from benchmarks.atlas_cells import BASE_WORDS, BASES, CELLS, Cell
from benchmarks.atlas_reference import COMMAND, client_in_words, reference_of
from benchmarks.cases import Entry
from benchmarks.clients import FEW, above_chance, chance_p, told_p
from benchmarks.markdown import ranged, table
from leakmap.inspection.reference import Effect
from leakmap.report.charts import INK, STYLE
from leakmap.scoring.bands import BANDS

PAGE = Path("docs/results/atlas.md")
PICTURE = Path("docs/images/atlas.svg")
GROUPS = {
    "inference": "Around one client in inference mode",
    "training": "Around one client in training mode that keeps its buffers",
    "returned": "Around one client in training mode that returns its buffers",
    "crossed": "Several things at once",
    "production": "Clients as they are in production",
    "named": "Named networks",
}
KINDS: Mapping[str, Callable[[Cell], bool]] = {
    "all": lambda cell: True,
    "one picture, inference mode": lambda cell: cell.count == 1 and cell.rule.mode == "eval",
    "one picture, training mode, buffers kept": lambda cell: (
        cell.count == 1 and cell.rule.mode == "train" and not cell.buffers
    ),
    "one picture, training mode, buffers returned": lambda cell: cell.count == 1 and cell.buffers,
    "2 to 8 pictures, buffers kept or none": lambda cell: 2 <= cell.count <= 8 and not cell.buffers,
    "2 to 8 pictures, buffers returned": lambda cell: 2 <= cell.count <= 8 and cell.buffers,
    "16 pictures or more, buffers kept or none": lambda cell: cell.count >= 16 and not cell.buffers,
    "16 pictures or more, buffers returned": lambda cell: cell.count >= 16 and cell.buffers,
    "16 pictures or more, buffers returned, the last batch of one picture": lambda cell: cell.buffers and cell.partial,
}
"""Rows of the first table, which may overlap."""
COLOURS = "cividis"
COLUMNS = {"inference": "inference", "training": "training,\nbuffers kept", "returned": "training,\nreturned"}
Grid = Sequence[tuple[str, Mapping[str, Entry]]]
"""Rows of a heat map: label, and cells by column."""


def speaking(entry: Entry) -> Entry | None:
    """The figures of the attack that speaks."""
    return entry["attacks"][entry["speaks"]] if entry["speaks"] else None


def leaks(entry: Entry) -> bool:
    """Whether any attack reads more than chance, by the rank sum of its clients, corrected for the attacks tried.

    Any, not the one that speaks: a search has few clients to show it by.
    """
    return above_chance(list(entry["attacks"].values()))


def page(about: str, found: Mapping[str, Entry]) -> str:
    """The page.

    Args:
        about: How the cells are measured.
        found: Cells that are.
    """
    reference = reference_of(found)
    some = list(found.values())
    lines = [
        "# Which clients give their pictures away",
        "",
        f"    {COMMAND}     # {sum(entry['seconds'] for entry in some) / 3600:.1f} hours of one core",
        "",
        *_answer(found, reference.effects),
        "![What is read of each kind of client](../images/atlas.svg)",
        "",
        "*Colour: mean relative rank of the true picture, 0 where it is always first (dark) and .5 by chance; number: "
        "share of pictures that are first, in per cent, with a star where a search of few clients speaks; a dash: not "
        "above chance.*",
        "",
        *about.strip().split("\n"),
        "",
        *(cells.__doc__ or "").split("\n\n", 1)[1].strip().split("\n"),
        "",
        f"More than chance means p below 5 %, corrected (Holm) for the attacks tried on the cell: of {FEW} clients or "
        "more that of Student's t over their mean relative ranks, of fewer that of the exact rank sum. "
        f"Of 100 clients with one picture, a relative rank of {_seen(100):.2f} is told from chance four times in five, "
        f"of 6 clients one of {_seen(6):.2f}; of clients with many pictures, whose means vary less, one closer to .5. "
        "Intervals are 95 %; of shares exact over pictures. *Floor* is the mean public picture of the class, which "
        "needs no client. Where a closed form has no answer, a grey picture stands for it. A search attacks few "
        "clients: where it speaks, the fitted attack's figures over all of them stand in the last columns. Within a "
        "batch, reconstructions are matched to the pictures one to one, which "
        "lifts their NCC above the floor's.",
        "",
        f"{len(found)} of {len(CELLS)} cells. {some[0]['versions']}.",
        "",
    ]
    lines += _counts(found)
    lines += _effects(reference.effects)
    for group, title in GROUPS.items():
        rows = [(CELLS[key], entry) for key, entry in found.items() if CELLS[key].group == group]
        if rows:
            lines += [f"## {title}", "", *table(HEAD, [_row(cell, entry) for cell, entry in rows])]
    return "\n".join(lines)


HEAD = (
    "network",
    "client",
    "speaks",
    "clients",
    "first",
    "chance",
    "relative rank",
    "p",
    "NCC",
    "floor",
    "PSNR, dB",
    "floor",
    *BANDS,
    "fitted: relative rank",
    "search: relative rank",
)


def _row(cell: Cell, entry: Entry) -> list[str]:
    trained = {"random": "", "brief": ", 5 epochs", "full": ", trained"}[cell.weights]
    start = [f"`{cell.network}`{trained}", client_in_words(cell)]
    one = speaking(entry)
    if one is None:
        return [*start, "nothing applies", *[""] * (len(HEAD) - 3)]
    whole, mean = one["whole"], entry["class_mean"]
    return [
        *start,
        entry["speaks"].partition(",")[0],
        f"{one['clients']}, {none} without an answer" if (none := one.get("unanswered")) else str(one["clients"]),
        ranged(whole["first"], ".0%"),
        f"{whole['chance']:.1%}",
        ranged(whole["relative"], ".2f"),
        told_p(chance_p(one)),
        ranged(one["ncc"], ".2f"),
        f"{mean['ncc'][0]:.2f}",
        f"{one['psnr'][0]:.1f}",
        f"{mean['psnr'][0]:.1f}",
        *(ranged(one[band]["first"], ".0%") for band in BANDS),
        *(_relative(entry, names) for names in (("learned_inverse", "last_batch"), ("inverting", "even_steps"))),
    ]


def _relative(entry: Entry, names: tuple[str, ...]) -> str:
    """The relative rank by the first attack of these names."""
    own = [one for name, one in entry["attacks"].items() if name.startswith(names)]
    return f"{ranged(own[0]['whole']['relative'], '.2f')}, {own[0]['clients']} clients" if own else ""


def _seen(clients: int) -> float:
    """The mean relative rank that clients of one picture show at 5 % with a power of 80 %."""
    normal = NormalDist()
    return 0.5 - (normal.inv_cdf(0.95) + normal.inv_cdf(0.8)) * math.sqrt(1 / 12 / clients)


def _answer(found: Mapping[str, Entry], effects: Sequence[Effect]) -> list[str]:
    """The answer to the title, in sentences that follow from the figures."""
    leaking = sum(map(leaks, found.values()))
    lines = [
        f"**More than chance is read of {leaking} of {len(found)} kinds of client.** What a change does depends on",
        "the client that is changed. Fitted inverses and closed forms alone, which attack a hundred clients or more,",
        "are compared here: where a search speaks in the rows below, more may be read.",
        "",
    ]
    for client in BASE_WORDS.values():
        told: dict[str, dict[str, list[str]]] = {"less": {}, "more": {}, "as much": {}}
        for effect in effects:
            if effect.client == client:
                told[effect.change].setdefault(effect.trait, []).append(effect.value)
        lists = {
            change: ", ".join(f"{trait} ({'; '.join(values)})" for trait, values in of.items())
            for change, of in told.items()
        }
        if any(lists.values()):
            words = {"less": "less is read with", "more": "more with", "as much": "no difference is shown by"}
            lines.append(f"- *{client}*: {'; '.join(f'{words[c]} {one}' for c, one in lists.items() if one)}.")
    return [*lines, ""]


def _counts(found: Mapping[str, Entry]) -> list[str]:
    """Of how many kinds of client more than chance is read, by what clients hold and return."""
    rows = []
    for words, chosen in KINDS.items():
        own = [entry for key, entry in found.items() if chosen(CELLS[key])]
        if own:
            # Where nothing applies nothing is read: chance.
            ranks = [one["whole"]["relative"][0] if (one := speaking(entry)) else 0.5 for entry in own]
            read = sum(map(leaks, own))
            rows.append((words, len(own), read, f"{read / len(own):.0%}", f"{median(ranks):.2f}"))
    return [
        "## Of whom more than chance is read",
        "",
        *table(("clients", "kinds", "more than chance", "share", "median relative rank"), rows),
        "The last row is a part of the one before it.",
        "",
    ]


def _effects(effects: Sequence[Effect]) -> list[str]:
    if not effects:
        return []
    rows: dict[tuple[str, str], dict[str, Effect]] = {}
    for effect in effects:
        rows.setdefault((effect.trait, effect.value), {})[effect.client] = effect
    clients = list(BASE_WORDS.values())
    shown = [
        (trait, f"`{value}`", *(_change(own[client]) if client in own else "" for client in clients))
        for (trait, value), own in rows.items()
    ]
    return [
        "## What single changes do",
        "",
        "Relative rank after the change, by the attack that rehearsed best among those without a search, and whether "
        "less, more or as much is read: where the intervals before and after overlap, no difference is shown.",
        "",
        *table(("change", "to", *clients), shown),
    ]


def _change(effect: Effect) -> str:
    return f"{ranged(effect.after, '.2f')}: {effect.change}"


def heat_map(found: Mapping[str, Entry]) -> Figure:
    """Changes by base client, production clients, and named networks by mode."""
    around: dict[str, dict[str, Entry]] = {}
    for key, cell in CELLS.items():
        if cell.group in BASES and key in found:
            around.setdefault(f"{cell.varied}: {cell.value}" if cell.varied else "base", {})[cell.group] = found[key]
    crowd: dict[str, dict[str, Entry]] = {}
    named: dict[str, dict[str, Entry]] = {}
    for key, cell in CELLS.items():
        if key in found and cell.group == "production":
            crowd.setdefault(cell.varied, {})[cell.weights] = found[key]
        if key in found and cell.group == "named":
            named.setdefault(cell.value.partition(",")[0], {})[cell.varied] = found[key]
    panels = [
        (
            around,
            COLUMNS,
            "one client, one change",
        ),
        (crowd, {"brief": "small ResNet", "full": "ResNet-20"}, "production"),
        (named, {"inference": "inference", "returned": "training, returned"}, "named networks"),
    ]
    tall = max(1, len(around), len(crowd) + len(named) + 4)
    with matplotlib.rc_context(STYLE | {"font.size": 7}):
        figure = Figure(figsize=(10, 0.19 * tall + 1), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1.05, 1))
        heights = (max(1, len(crowd)), max(1, len(named)))
        upper, lower = right.subplots(2, 1, height_ratios=heights)
        for axes, (rows, columns, title) in zip((left.subplots(), upper, lower), panels, strict=True):
            _panel(axes, list(rows.items()), columns, title)
        scale = ScalarMappable(Normalize(0, 0.5), COLOURS)
        right.colorbar(scale, ax=lower, location="bottom", shrink=0.6, label="relative rank: 0 first, .5 chance")
    return figure


def _panel(axes: Axes, rows: Grid, columns: Mapping[str, str], title: str) -> None:
    """One grid of cells."""
    axes.set_title(title, loc="left", fontsize=8)
    values = [[_value(row.get(column)) for column in columns] for _, row in rows]
    if values:
        axes.imshow(values, cmap=COLOURS, vmin=0, vmax=0.5, aspect="auto")
    axes.set_xticks(range(len(columns)), list(columns.values()))
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for line, (_, row) in enumerate(rows):
        for place, column in enumerate(columns):
            if (entry := row.get(column)) and (one := speaking(entry)):
                shown = _first(one) if leaks(entry) else "–"
                ink = "white" if one["whole"]["relative"][0] < 0.25 else INK
                axes.text(place, line, shown, ha="center", va="center", color=ink, fontsize=6.5)


def _first(one: Entry) -> str:
    """The share of pictures that are first, with a star where few clients were attacked."""
    return f"{100 * one['whole']['first'][0]:.0f}{'*' if one['clients'] < FEW else ''}"


def _value(entry: Entry | None) -> float:
    one = None if entry is None else speaking(entry)
    return float("nan") if one is None else one["whole"]["relative"][0]
