"""The report: one self-contained HTML file, from results and pictures alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from leakmap.report import ceiling_chart, charts, told
from leakmap.report.page import write_page
from leakmap.report.pictures import chosen, names_of, told_chosen, uris
from leakmap.result.result import Result


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


def write(path: Path, sections: Sequence[Section], title: str = "leakmap audit", introduction: str = "") -> Path:
    """Writes a report under a temporary name and renames it; returns its path."""
    return write_page(
        path,
        "template.html",
        title=title,
        introduction=introduction,
        sections=[_view(section) for section in sections],
    )


def _view(section: Section) -> dict[str, Any]:
    result = section.result
    mode = "training" if result.plan.rule.mode == "train" else "inference"
    shown = chosen(result, section.rows)
    names = names_of(shown)
    drawn = iter(uris([one.picture(name) for one in shown for name in names]))
    line_ups = told.line_ups(result)
    control = f"planted control ({result.control_model})"
    return {
        "title": section.title or f"{result.plan.model}, {mode} mode",
        "result": result,
        "headline": told.headline(result),
        "too_few": told.too_few(result),
        "counts": told.counts(result),
        "counts_with_intervals": told.counts_with_intervals(result),
        "rule": told.rule(result),
        "copies": told.copies(result),
        "names": names,
        "pictures": [{"shown": one, "uris": [next(drawn) for _ in names]} for one in shown],
        "told_chosen": told_chosen(result, shown, sum(len(row["original"]) for row in section.rows)),
        "line_ups": {(told.LINE_UP_NAMES | {"control": control})[key]: one for key, one in line_ups.items()},
        "bands": told.bands(result),
        "others": _others(result),
        "granted": asdict(result.knowledge.granted),
        "line_up_chart": charts.line_up(result),
        "curve_chart": charts.curves(result),
        "ceiling_chart": ceiling_chart.of_result(result),
    }


def _others(result: Result) -> str:
    low, high = result.line_up.gallery or (1, 1)
    return str(low - 1) if low == high else f"{low - 1} to {high - 1}"
