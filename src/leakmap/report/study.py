"""The report of a study: one self-contained HTML file, its figures as files beside it."""

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from leakmap.errors import UsageError
from leakmap.report import charts, study_charts, told
from leakmap.report.page import FLOOR_NAMES, floor, interval, metric_name, number, percent, today, write_page
from leakmap.report.pictures import chosen, names_of, sheet, told_chosen
from leakmap.report.pooling import (
    ABSENT,
    TOP,
    Arrangement,
    Axis,
    Cell,
    above_floor,
    arranged,
    axes_of,
    drawn_with,
    finished,
    ladder,
    level_text,
    place,
    pooled,
)
from leakmap.report.study_answer import answer
from leakmap.result.evidence import LineUpResult
from leakmap.result.result import Result
from leakmap.result.values import gain_over_best_floor, rank_score
from leakmap.scoring.effects import Effect, holm, marginal_effects
from leakmap.scoring.verdict import LEVELS

EXPOSED_ROWS = 16
"""Exposed pictures of an audit that its gallery shows at most; all of them stand in the audit's own report."""
SIDE = 96
"""Largest side of a picture in a gallery, in pixels."""
PIXELS = 24_000_000
"""Of all pictures of a study together: with more of them, each is made smaller."""
LOSSLESS_BYTES = 9_000_000
"""Of all pictures together, up to which they are stored without loss."""

FIGURES = {
    "heat_map": "Share of pictures ranked first in every combination of settings",
    "effects": "Difference that every axis makes, with 95 % intervals",
    "ladder": "Share of pictures ranked first against what the server is granted",
}
"""What each figure shows, for those who do not see it."""

__all__ = ["Cell", "write_study"]


def write_study(
    path: Path | str, title: str, cells: Sequence[Cell], *, study: str, command: str, figures: Path | None = None
) -> Path:
    """Writes the report of a study under a temporary name and renames it; returns its path.

    The page needs no network. Everything but choosing rows and columns and the galleries can be read without
    JavaScript. Pictures are at most :data:`SIDE` pixels wide; many of them are made smaller and stored with loss, so
    that 2,000 runs stay below 15 MB.

    Args:
        path: The HTML file.
        title: Heading.
        cells: Every audit, in the order of the study.
        study: The study file, resolved: shown as it is.
        command: The command line that repeats the study.
        figures: Folder for ``heat_map``, ``effects`` and ``ladder`` as SVG and PNG; made if it does not exist. A figure
            with nothing to compare is not written.

    Raises:
        UsageError: there is no cell.
    """
    if not cells:
        raise UsageError("A report of a study needs at least one audited cell; got none. Run the study first.")
    axes = axes_of(cells)
    arrangement = arranged(axes)
    replicates = [axis.name for axis in axes if axis.repeats]
    ranks = marginal_effects(cells, lambda cell: rank_score(cell.result), replicates)
    gains = marginal_effects(cells, lambda cell: gain_over_best_floor(cell.result), replicates)
    climbed = ladder(cells, axes)
    drawn = {
        "heat_map": study_charts.heat_map(cells, arrangement),
        "effects": study_charts.effects(ranks, gains),
        "ladder": study_charts.ladder_chart(climbed),
    }
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            if figure is not None:
                charts.save(figure, figures, name)
    galleries, kept = _galleries(cells)
    script = files("leakmap.report").joinpath("study.js").read_text(encoding="utf-8")
    return write_page(
        Path(path),
        "study.html",
        title=title,
        study=study,
        command=command,
        svg={
            name: charts.inline(figure, FIGURES[name]) if figure is not None else "" for name, figure in drawn.items()
        },
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_embedded(_data(cells, axes, arrangement)),
        galleries=galleries,
        kept=kept,
        effects=_effect_rows(ranks, gains),
        ladder=climbed,
        date=today(),
        found=answer(cells, [axis for axis in axes if len(axis.levels) > 1], ranks, gains),
        **_overview(cells, axes),
    )


def _overview(cells: Sequence[Cell], axes: Sequence[Axis]) -> dict[str, Any]:
    """What the sections outside the map say."""
    results = [cell.result for cell in cells]
    varying = [axis for axis in axes if len(axis.levels) > 1]
    levels = Counter(result.verdict.level for result in results)
    versions = Counter(
        ", ".join(f"{name} {version}" for name, version in result.versions.items()) or "none recorded"
        for result in results
    )
    return {
        "axes": varying,
        "constant": [(axis.name, axis.texts[0]) for axis in axes if len(axis.levels) == 1],
        "absent": ABSENT,
        "levels": [(level, levels[level]) for level in LEVELS if levels[level]],
        "audits": [
            {
                "at": [level_text(cell.axes.get(axis.name, ABSENT)) for axis in varying],
                "result": cell.result,
                "tile": pooled([cell]),
                "exposed": told.counts(cell.result).removesuffix(" exposed"),
                "few": told.too_few(cell.result),
            }
            for cell in cells
        ],
        "clients": sum(len(finished(cell)) for cell in cells),
        "seconds": sum(result.seconds_of_runs for result in results),
        "failures": [(_title(cell, varying), failure) for cell in cells for failure in cell.result.failures],
        "unfinished": [(_title(cell, varying), n) for cell in cells if (n := cell.result.unfinished)],
        "versions": versions.most_common(),
    }


def _title(cell: Cell, axes: Sequence[Axis]) -> str:
    return ", ".join(f"{a.short} {level_text(cell.axes[a.name])}" for a in axes if a.name in cell.axes) or "the cell"


def _effect_rows(ranks: Sequence[Effect], gains: Sequence[Effect]) -> list[dict[str, Any]]:
    """One row for each pair of levels; p-values are corrected for all rows and both scores together."""
    corrected = holm([effect.p for effect in (*ranks, *gains)])
    rows: dict[Any, dict[str, Any]] = {}
    for score, found, ps in (("ranks", ranks, corrected), ("gains", gains, corrected[len(ranks) :])):
        for effect, p in zip(found, ps, strict=False):
            row = rows.setdefault((effect.name, effect.low, effect.high), {"ranks": None, "gains": None})
            row |= {"axis": effect.name, "low": level_text(effect.low), "high": level_text(effect.high)}
            text = f"{effect.difference.value:+.3g}"
            if math.isfinite(effect.difference.low):
                text += f" [{effect.difference.low:+.3g}, {effect.difference.high:+.3g}]"
            row[score] = {"text": text, "p": p, "pairs": effect.pairs, "clients": effect.clients}
    return list(rows.values())


def _galleries(cells: Sequence[Cell]) -> tuple[list[str], str]:
    """The pictures of every cell as one image in base64, empty where there are none, and how they are kept."""
    tables = []
    for cell in cells:
        shown = chosen(cell.result, cell.rows, EXPOSED_ROWS) if cell.rows else []
        tables.append([[one.picture(name) for name in names_of(shown)] for one in shown])
    pictures = [picture for table in tables for row in table for picture in row]
    if not pictures:
        return [""] * len(cells), "No pictures are kept."
    side = max(16, min(SIDE, math.isqrt(PIXELS // len(pictures))))
    images, how = _sheets(tables, side, lossless=True, most=LOSSLESS_BYTES), "without loss"
    if not images:
        images, how = _sheets(tables, side, lossless=False), "with slight loss (WebP, quality 85)"
    kept = f"Pictures in the galleries are kept at no more than {side} pixels a side, {how}."
    return [base64.b64encode(image).decode() for image in images], kept


def _sheets(tables: Sequence[Any], side: int, *, lossless: bool, most: float = math.inf) -> list[bytes]:
    """Every table of pictures as one image; nothing, where they come to more bytes than ``most``."""
    images: list[bytes] = []
    size = 0
    for table in tables:
        images.append(sheet(table, side, lossless) if table else b"")
        size += len(images[-1])
        if size > most:
            return []
    return images


def _data(cells: Sequence[Cell], axes: Sequence[Axis], arrangement: Arrangement) -> dict[str, Any]:
    """What the map and the panels are made of."""
    varying = [axis for axis in axes if len(axis.levels) > 1]
    roles = dict.fromkeys(arrangement.rows, "rows") | dict.fromkeys(arrangement.columns, "columns")
    return {
        "axes": [
            {"name": axis.name, "short": axis.short, "levels": axis.texts, "role": roles.get(axis, "pooled")}
            for axis in varying
        ],
        "top": TOP,
        "deep": study_charts.DEEP,
        "audits": [_audit(cell, varying) for cell in cells],
    }


def _audit(cell: Cell, axes: Sequence[Axis]) -> dict[str, Any]:
    result, tile = cell.result, pooled([cell])
    return {
        "at": place(cell, axes),
        "hits": tile.hits,
        "n": tile.n,
        "seed": drawn_with(cell),
        "clients": finished(cell),
        "chance": tile.chance if tile.n else None,
        "level": result.verdict.level,
        "above": above_floor(result),
        "few": told.too_few(result),
        "headline": told.headline(result),
        "said": _said(result),
        "reasons": [*result.verdict.reasons, *result.flags.values()],
        "tables": [table for table in (_line_up_table(result), _band_table(result), _floor_table(result)) if table],
        "facts": [
            f"Attacker of kind {result.knowledge.attacker} by what is granted, "
            f"{result.knowledge.attacker_used} by what the attack used. Labels {result.labels.statement}. "
            f"Settings of the attack: {result.settings.statement}.",
            *([f"Defence: {result.defence.statement}."] if result.defence else []),
            f"Runs took {number(result.seconds_of_runs)} s. {len(result.failures)} failed, "
            f"{result.unfinished} unfinished.",
        ],
        "command": result.command,
        "gallery": _gallery(cell),
    }


def _said(result: Result) -> list[str]:
    """What stands under the headline of an audit."""
    verdict = result.verdict
    statement = [verdict.statement] if verdict.statement != told.headline(result) else []
    leaks = result.bands.statement if result.bands else ""
    sentences = (*statement, verdict.worst, verdict.typical, told.counts_with_intervals(result), leaks)
    return [*(sentence for sentence in sentences if sentence), f"Why {verdict.level}: {told.rule(result)}."]


def _gallery(cell: Cell) -> dict[str, Any] | None:
    """What the image of an audit's pictures shows, and where."""
    shown = chosen(cell.result, cell.rows, EXPOSED_ROWS) if cell.rows else []
    if not shown:
        return None
    names = names_of(shown)
    pictures = [one.picture(name) for one in shown for name in names]
    return {
        "names": names,
        "clients": [one.client + 1 for one in shown],
        "captions": [one.caption for one in shown],
        "missing": [at for at, picture in enumerate(pictures) if picture is None],
        "told": told_chosen(cell.result, shown, sum(len(row["original"]) for row in cell.rows)),
        "side": min(96, max(64, cell.rows[0]["original"].shape[-1])),
    }


def _line_up_table(result: Result) -> dict[str, Any] | None:
    rows = [[told.LINE_UP_NAMES[key], *_line_up_row(found)] for key, found in told.line_ups(result).items()]
    head = ["line-up", "ranked first", "share [95 %]", "chance", "median rank", "rank-sum p"]
    return {"head": head, "rows": rows} if rows else None


def _band_table(result: Result) -> dict[str, Any] | None:
    rows = [[f"{band} alone", *_line_up_row(found)] for band, found in told.bands(result).items()]
    head = ["what leaks", "ranked first", "share [95 %]", "chance", "median rank", "rank-sum p"]
    return {"head": head, "rows": rows} if rows else None


def _line_up_row(found: LineUpResult) -> list[str]:
    first = found.rank_one
    return [
        f"{found.hits} of {found.n}",
        f"{percent(first.value)} [{percent(first.low)}, {percent(first.high)}]",
        percent(found.chance),
        number(found.median_rank),
        number(found.p, 2),
    ]


def _floor_table(result: Result) -> dict[str, Any] | None:
    rows = []
    for name, metric in result.metrics.items():
        floors = (floor(metric.floors, one) for one in FLOOR_NAMES)
        rows.append([metric_name(name), interval(metric.value), interval(metric.gain), *floors])
    head = ["metric", "mean [95 %]", "gain over the best floor [95 %]", *FLOOR_NAMES.values()]
    return {"head": head, "rows": rows} if rows else None


def _embedded(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
