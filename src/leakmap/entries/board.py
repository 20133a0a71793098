"""The board: every entry in a table of its threat model, as a page of the documentation."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from leakmap.entries import board_chart
from leakmap.entries.entry import Board, Claimed, Entry, read_entries
from leakmap.evidence.evidence import Quantity
from leakmap.files import write_text
from leakmap.report import charts
from leakmap.report.markdown import wrapped

HEADINGS: dict[Board, str] = {
    "inference": "Gradients in inference mode",
    "training": "Gradients in training mode",
    "FedAvg": "Weights after local training (FedAvg)",
    "defended": "Clients with a defence",
    "detection": "Detectors",
}
_TITLE = "# The board"
_HEAD = """\
Every row is an [entry](entries.md): one audited client, with the reconstructions that its figures come from. `leakmap
entry check` scores them again. This page is made by `leakmap entry board` from the files in `entries/`; nothing in it
is typed by hand. Shares and means have 95 % intervals over clients. *By chance* is the share of first ranks without any
leak. A row says what this attack found on these clients, and nothing about clients that are not in it.
"""
_SHOWN = "![Share of pictures that are first in their line-up, an entry a line, beside chance]"
_COLUMNS = (
    *("entry", "client", "attack", "clients", "first in line-up", "by chance", "exposed clients", "PSNR, dB", "level"),
    *("stated by others", "when and by whom"),
)


_PLAIN = str.maketrans("[]|", "()/")
"""What would end a link or a cell of a table."""


def write_board(folder: Path, page: Path) -> list[Path]:
    """Writes the board to a file and, beside it, ``images/board.svg``; returns the paths of both.

    Args:
        folder: The folder with the entries.
        page: The Markdown file.
    """
    entries = read_entries(folder)
    drawn = board_chart.figure([entry for _, entry in entries], HEADINGS)
    plot = Path("images/board.svg")
    (page.parent / plot).parent.mkdir(parents=True, exist_ok=True)
    where = Path(os.path.relpath(folder, page.parent)).as_posix()
    write_text(page, board_page(entries, where, plot.as_posix() if drawn else ""))
    return [page, charts.write(drawn, page.parent / plot)] if drawn else [page]


def board_page(entries: Sequence[tuple[str, Entry]], where: str, plot: str = "") -> str:
    """The board as a Markdown page.

    Args:
        entries: Each with its name.
        where: Folder of the entries, as the page links to it.
        plot: The figure, as the page links to it.
    """
    parts = [_TITLE, "", *([f"{_SHOWN}({plot})", ""] if plot else []), _HEAD]
    for board in get_args(Board):
        rows = [_row(name, entry, where) for name, entry in entries if entry.board == board]
        parts.append(f"## {HEADINGS[board]}\n")
        parts.append("\n".join([_line(_COLUMNS), "|" + "---|" * len(_COLUMNS), *rows]) if rows else "No entry yet.")
        parts.append("")
    return wrapped("\n".join(parts).rstrip() + "\n")


def _row(name: str, entry: Entry, where: str) -> str:
    figures = [entry.figure(key) for key in ("line_up_attack", "exposed_clients", "psnr")]
    line_up, exposed, psnr = figures
    return _line(
        (
            f"[{entry.title.translate(_PLAIN)}]({where}/{name}.json)",
            _client(entry),
            _attack(entry),
            str(entry.plan.victims),
            _share(line_up),
            f"{line_up.reference:.1%}" if line_up and line_up.reference is not None else "–",
            _share(exposed),
            _mean(psnr),
            entry.level,
            "; ".join(_claim(entry, one) for one in entry.claimed) or "–",
            f"{entry.where.finished[:10]}, leakmap {entry.where.leakmap}{f', {entry.by}' if entry.by else ''}",
        )
    )


def _client(entry: Entry) -> str:
    plan, rule = entry.plan, entry.plan.rule
    weights = "weights from a file" if plan.weights else "untrained"
    weights = f"{plan.train_epochs} epochs of training" if plan.train_epochs else weights
    told = [
        f"`{plan.model}`",
        weights,
        "training mode" if rule.mode == "train" else "inference mode",
        f"{plan.data.partition(':')[0]}, B={plan.batch_size}",
    ]
    if rule.share == "delta":
        told.append(f"{rule.steps(plan.batch_size)} local steps")
    if rule.defence != "none":
        told.append(f"`{rule.defence}`")
    return ", ".join(told)


def _attack(entry: Entry) -> str:
    labels = {"known": "labels granted", "counts": "classes granted", "unknown": "labels not granted"}
    suite = f" (suite {entry.suite})" if entry.suite else ""
    return f"`{entry.plan.attack}`{suite}, {labels[entry.plan.threat.labels]}"


def _share(found: Quantity | None) -> str:
    if found is None or found.value is None:
        return "–"
    return f"{found.counted}{_interval(found, '.0%')}"


def _mean(found: Quantity | None) -> str:
    return "–" if found is None or found.value is None else f"{found.value:.1f}{_interval(found, '.1f')}"


def _interval(found: Quantity, form: str) -> str:
    return "" if found.low is None or found.high is None else f" [{found.low:{form}}, {found.high:{form}}]"


def _claim(entry: Entry, claim: Claimed) -> str:
    """A figure that others stated, and whether the measured interval holds it."""
    found = entry.figure(claim.key)
    inside = ""
    if found is not None and found.low is not None and found.high is not None:
        place = "below" if found.high < claim.value else "above" if found.low > claim.value else "in line with it"
        inside = f" (measured: {place})"
    return f"{found.label if found else claim.key} {claim.value:g}, {claim.source}{inside}"


def _line(words: Sequence[str]) -> str:
    return f"| {' | '.join(word.replace('|', '/') for word in words)} |"
