"""What a study answers: which of its axes make a difference, and how bad it gets."""

from collections.abc import Sequence
from dataclasses import dataclass

from leakmap.report import summary, told
from leakmap.report.pooling import Axis, Cell, level_text
from leakmap.scoring.effects import Effect, holm
from leakmap.scoring.verdict import LEVELS

ALPHA = 0.05
"""Below which a difference, corrected for all comparisons of the study, counts as clear of chance."""


@dataclass(frozen=True)
class Answer:
    """The top of a study's report.

    Args:
        sentence: Which axes make a difference.
        worst: What the worst audit found, in sentences.
        level: Of that audit.
    """

    sentence: str
    worst: str
    level: str


def answer(cells: Sequence[Cell], axes: Sequence[Axis], ranks: Sequence[Effect], gains: Sequence[Effect]) -> Answer:
    """The answer of a study.

    Args:
        cells: Its audits, at least one.
        axes: Those that vary.
        ranks: Effects on the line-up score.
        gains: Effects on PSNR over the best floor.
    """
    worst = max(cells, key=_badness)
    found = sum(cell.result.verdict.level in ("partial", "visual", "exact") for cell in cells)
    where = ", ".join(f"{axis.short} {level_text(worst.axes[axis.name])}" for axis in axes if axis.name in worst.axes)
    counted = f"In {found} of {told.many(len(cells), 'audit')} pictures were recovered or picked out." if found else (
        f"In none of {told.many(len(cells), 'audit')} was a picture recovered or picked out."
    )  # fmt: skip
    told_worst = f"The worst{f', {where}' if where else ''}: {summary.answer(worst.result)}"
    return Answer(_compared(axes, ranks, gains), f"{counted} {told_worst}", worst.result.verdict.level)


def _badness(cell: Cell) -> tuple[int, float]:
    own = cell.result.line_up.attack
    return LEVELS.index(cell.result.verdict.level), own.rank_one.value if own else -1.0


def _compared(axes: Sequence[Axis], ranks: Sequence[Effect], gains: Sequence[Effect]) -> str:
    """Which axes make a difference, the largest first, by the line-up score or else by PSNR."""
    corrected = holm([effect.p for effect in (*ranks, *gains)])
    clear = [e for e, p in zip((*ranks, *gains), corrected, strict=True) if p < ALPHA]
    # By the line-up score first: it is in the same unit for every axis, and PSNR may rise without anybody picked out.
    clear.sort(key=lambda e: (not any(e is own for own in ranks), -abs(e.difference.value)))
    names = {axis.name: axis.short for axis in axes}
    best = {e.name: e for e in reversed(clear)}
    leading = [best[name] for name in dict.fromkeys(e.name for e in clear)]
    others = [names[n] for n in dict.fromkeys(e.name for e in (*ranks, *gains)) if n not in best and n in names]
    if not ranks and not gains:
        return "Nothing can be compared: no two audits differ in one setting only."
    if not leading:
        return f"No difference is clear of chance: {', '.join(others)}."
    first, *rest = (f"{names.get(e.name, e.name)} ({_told(e)})" for e in leading)
    sentence = f"What makes the largest difference: {first}"
    sentence += f"; then {', '.join(rest)}." if rest else "."
    return sentence + (f" Not clear of chance: {', '.join(others)}." if others else "")


def _told(effect: Effect) -> str:
    more, less = (effect.high, effect.low) if effect.difference.value > 0 else (effect.low, effect.high)
    return f"{level_text(more)} leaks more than {level_text(less)}"
