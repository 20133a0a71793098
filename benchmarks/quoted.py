"""The paper, every figure of which is quoted from a page of docs/results, and so from the command at the head of it.

    python -m benchmarks.quoted     # seconds

Reads benchmarks/paper.txt, writes docs/paper/index.md and its figure. In the text ``{{page | row | column}}`` stands
for a cell of docs/results/page.md, without its interval; ``{{page | row | column | whole}}`` for the whole cell. A row
is found by its first cell, or its first ones joined by `` / ``; of two columns of one name, ``name 2`` is the second.
"""

import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from leakmap.files import write_text
from leakmap.report.charts import GREY, INK, STYLE
from leakmap.report.markdown import wrapped

TEXT, PAPER, RESULTS = Path("benchmarks/paper.txt"), Path("docs/paper/index.md"), Path("docs/results")
FIGURE = PAPER.with_name("missed.svg")
MISSED = (
    ("trained ResNet-20, returned buffers", "ResNet-20, trained: buffers"),
    ("trained ResNet-20 in inference mode, gradient", "the same, inference mode: gradient"),
    ("trained ResNet-20, gradient only", "the same, training mode: gradient"),
    ("untrained small ResNet, gradient only", "small ResNet: gradient"),
    ("chest X-rays, trained small ResNet, returned buffers", "X-rays: buffers"),
    ("chest X-rays, gradient only", "X-rays: gradient"),
    ("chest X-rays, GroupNorm instead, gradient", "X-rays, GroupNorm: gradient"),
)
"""Rows of the figure, by their titles on the page of fitted inverses, and their names in it."""


def tables_of(page: str) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the head first."""
    found: list[list[list[str]]] = [[]]
    for line in page.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[rows[0], *rows[2:]] for rows in found if len(rows) > 2]


def cell_of(page: str, row: str, column: str) -> str:
    """A cell.

    Args:
        page: Name of a page of docs/results.
        row: Its first cell, or first cells joined by `` / ``.
        column: Its head.

    Raises:
        KeyError: no table of the page has it, or several rows of a table do.
    """
    name, _, number = column.rpartition(" ")
    name, number = (name, int(number)) if number.isdigit() and name else (column, 1)
    leading = bare(row).split(" / ")
    for head, *rows in tables_of((RESULTS / f"{page}.md").read_text(encoding="utf-8")):
        places = [place for place, title in enumerate(head) if title == name]
        own = [cells for cells in rows if [bare(cell) for cell in cells[: len(leading)]] == leading]
        if len(own) == 1 and len(places) >= number:
            return own[0][places[number - 1]]
    raise KeyError(f"{page}.md has no single row {row!r} with a column {column!r}.")


def bare(cell: str) -> str:
    """A cell without marks."""
    return cell.replace("*", "").replace("`", "")


def quoted(text: str) -> str:
    """The text with every quotation replaced by its cell."""

    def found(match: re.Match[str]) -> str:
        page, row, column, *whole = [" ".join(part.split()) for part in match[1].split("|")]
        cell = cell_of(page, row, column)
        return cell if whole else cell.partition(" [")[0]

    text = re.sub(r"\{\{(.+?)\}\}", found, text, flags=re.S)
    # A quotation changes the length of a line: lines of prose that follow one another are one paragraph again.
    return wrapped(re.sub(r"(?m)(?<=\S)\n(?!\n|[|#!>]|- |    |\Z)(?<!\|\n) *", " ", text))


def missed() -> Figure:
    """NCC of a search and of a fitted inverse on clients of the same kind, with the class mean that needs no client."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(7.2, 0.8 + 0.36 * len(MISSED)), layout="constrained")
        axes = drawn.subplots()
        kinds = (("NCC of the search", "search", GREY, -0.18), ("NCC of the inverse, all victims", "fitted", INK, 0))
        for y, (row, _) in enumerate(MISSED):
            for column, name, colour, shift in kinds:
                value, low, high = (float(x) for x in re.findall(r"-?[\d.]+", cell_of("learned", row, column)))
                axes.errorbar(
                    [value],
                    [y + shift],
                    xerr=[[value - low], [high - value]],
                    fmt="o",
                    color=colour,
                    markersize=5,
                    linewidth=1.6,
                    capsize=2,
                    label=name if y == 0 else None,
                )
            mean = float(cell_of("learned", row, "class mean 2"))
            axes.plot([mean], [y], "|", color=INK, markersize=12, label="class mean" if y == 0 else None)
        axes.set_yticks(range(len(MISSED)), [name for _, name in MISSED])
        axes.invert_yaxis()
        axes.set_xlabel("NCC with the client's picture")
        drawn.legend(loc="outside upper center", ncols=3, frameon=False)
    return drawn


def main() -> None:
    """The command."""
    with matplotlib.rc_context({"svg.hashsalt": "leakmap"}):
        missed().savefig(FIGURE, metadata={"Date": None})
    write_text(PAPER, quoted(TEXT.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
