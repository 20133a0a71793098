"""The report: one self-contained HTML file, from results and pictures alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from leakmap.report import ceiling_chart, charts, summary, told
from leakmap.report.page import today, write_page
from leakmap.report.pictures import SMOOTH_SIDE, TOLD, Shown, chosen, names_of, told_chosen, uris
from leakmap.result.result import Result

WORST, LARGE_ROWS, OPEN_ROWS = 3, 3, 7
"""Pictures beside the answer, exposed ones that are shown large, and rows of pictures that are not folded."""


@dataclass(frozen=True)
class Section:
    """One audit in a report.

    Args:
        result: Of the audit.
        rows: Named pictures of each finished client.
        title: Heading; by default the model and the mode.
    """

    result: Result
    rows: Sequence[Mapping[str, Tensor]]
    title: str = ""


def write(
    path: Path, sections: Sequence[Section], title: str = "leakmap audit", introduction: str = "", date: str = ""
) -> Path:
    """Writes a report under a temporary name and renames it; returns its path.

    Args:
        path: The HTML file.
        sections: Audits, of which several get an overview.
        title: Heading of the page.
        introduction: A sentence or two beneath it.
        date: Of the report; empty for today.
    """
    return write_page(
        path,
        "template.html",
        title=title,
        introduction=introduction,
        date=date or today(),
        sections=[_view(section) for section in sections],
    )


def _view(section: Section) -> dict[str, Any]:
    result = section.result
    mode = "training" if result.plan.rule.mode == "train" else "inference"
    shown = chosen(result, section.rows)
    rows = _picture_rows(result, shown)
    line_ups = told.line_ups(result)
    control = f"planted control ({result.control_model})"
    has, lacks = summary.known(result)
    return {
        "title": section.title or f"{result.plan.model}, {mode} mode",
        "result": result,
        "answer": summary.answer(result),
        "subject": summary.subject(result),
        "ladder": summary.ladder(result),
        "tallies": summary.tallies(result),
        "has": has,
        "lacks": lacks,
        "limits": summary.limits(result),
        "steps": summary.steps(result),
        "too_few": told.too_few(result),
        "counts_with_intervals": told.counts_with_intervals(result),
        "rule": told.rule(result),
        "copies": told.copies(result),
        "rows": rows[:OPEN_ROWS],
        "folded": rows[OPEN_ROWS:],
        "worst": rows[:WORST],
        "told_chosen": told_chosen(result, shown, sum(len(row["original"]) for row in section.rows)),
        "line_ups": {(told.LINE_UP_NAMES | {"control": control})[key]: one for key, one in line_ups.items()},
        "bands": {f"{band} alone": one for band, one in told.bands(result).items()},
        "others": _others(result),
        "granted": asdict(result.knowledge.granted),
        "line_up_chart": charts.line_up(result),
        "curve_chart": charts.curves(result),
        "ceiling_chart": ceiling_chart.of_result(result),
    }


def _picture_rows(result: Result, shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """The pictures of a report, with their captions; the first exposed ones are large."""
    names = names_of(shown)
    drawn = iter(uris([one.picture(name) for one in shown for name in names]))
    several = result.plan.batch_size > 1
    found = []
    for place, one in enumerate(shown):
        who = f"Client {one.client + 1}" + (f", picture {one.place + 1}" if several else "")
        found.append(
            {
                "who": who,
                "caption": f"{who}: {one.caption}.",
                "exposed": one.exposed,
                "size": "large" if one.exposed and place < LARGE_ROWS else "small",
                "pixelated": max(one.row["original"].shape[-2:]) < SMOOTH_SIDE,
                "shots": [{"uri": next(drawn), "told": TOLD[name]} for name in names],
            }
        )
    return found


def _others(result: Result) -> str:
    low, high = result.line_up.gallery or (1, 1)
    return str(low - 1) if low == high else f"{low - 1} to {high - 1}"
