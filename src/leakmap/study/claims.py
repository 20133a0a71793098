"""Claims: what a study should show, written into its file before it runs, and what it did show.

A claim is a list of contrasts between cells, each a weighted sum whose interval is over clients: a client holds the
same pictures in every cell, so cells are compared client by client. The rule says what all contrasts must be.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leakmap.errors import BadSetting
from leakmap.report.study import Cell as Concluded
from leakmap.result.result import Result
from leakmap.result.values import first_ranks, gain_over_best_floor, gain_over_floor, mean_score, rank_score
from leakmap.scoring.effects import AxisLevel, Effect, contrast, holm
from leakmap.scoring.verdict import RANK_SUM_ALPHA

Outcome = Literal["holds", "does not hold", "not informative", "not run"]
Rule = Literal["above", "below"]
ALPHA = 0.05
FEWEST = 6
"""Clients below which no sign-flip test can say anything at 5 %, two-sided."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Contrast(_Strict):
    """A comparison of cells.

    Args:
        name: What is compared, in words.
        terms: ``[weight, {axis = value, …}]`` each; all of them name the same axes.
        value: In place of the claim's.
        rule: In place of the claim's.
        margin: In place of the claim's.
    """

    name: str
    terms: list[tuple[float, dict[str, AxisLevel]]] = Field(min_length=1)
    value: str | None = None
    rule: Rule | None = None
    margin: float | None = None


class Claim(_Strict):
    """What a study should show.

    Args:
        id: Short name.
        statement: The claim in plain words.
        source: Who claims it, and where.
        expected: The direction, and the rule in words.
        value: Of a client: ``psnr``, ``ssim``, ``rank`` (share of the line-up that the true picture beats), ``first``
            (share of first ranks), ``gain`` (PSNR over the best floor), ``gain_over_prior`` (PSNR over the same search
            without the update).
        rule: ``above``: every contrast lies above the margin (95 % interval, and a sign-flip test at 5 %); ``below``:
            every contrast lies below it. All must pass, so no single one needs a correction.
        margin: In the unit of the value.
        contrasts: What is compared.
        note: What differs from the source at this scale.
    """

    id: str
    statement: str
    source: str
    expected: str
    value: str = "psnr"
    rule: Rule = "above"
    margin: float = 0.0
    contrasts: list[Contrast] = Field(min_length=1)
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """What a contrast came to.

    Args:
        contrast: What was compared.
        effect: Of the claim's value; None where no client has every cell.
        ranks: The same of the line-up, beside it.
        says: ``passes``; ``fails``: shown to be less than what would matter; ``open``: the interval allows both.
    """

    contrast: Contrast
    effect: Effect | None
    ranks: Effect | None
    says: Literal["passes", "fails", "open"]


@dataclass(frozen=True)
class Judged:
    """What became of a claim.

    Args:
        claim: What was claimed.
        outcome: ``holds``, ``does not hold``, ``not informative`` or ``not run``.
        why: The outcome in a sentence.
        shown: Every contrast.
    """

    claim: Claim
    outcome: Outcome
    why: str
    shown: tuple[Shown, ...]


def read_claim(content: Mapping[str, Any], axes: Mapping[str, Sequence[AxisLevel]]) -> Claim:
    """The claim of a study.

    Args:
        content: The table ``[claim]``.
        axes: Of the study.

    Raises:
        BadSetting: something is missing or unknown, or a contrast names cells that the study does not have.
    """
    try:
        claim = Claim.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadSetting(f"[claim] {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    for one in claim.contrasts:
        if (one.value or claim.value) not in VALUES:
            raise BadSetting(f"The value of a claim is one of {', '.join(VALUES)}; got {one.value or claim.value!r}.")
        for _, at in one.terms:
            if set(at) != set(one.terms[0][1]):
                raise BadSetting(f"The terms of {one.name!r} name different axes; give each of them all.")
            for axis, level in at.items():
                if level not in axes.get(axis, ()):
                    raise BadSetting(f"{one.name!r} compares {axis} = {level!r}, which the study does not have.")
    return claim


def judge_claim(claim: Claim, cells: Sequence[Concluded]) -> Judged:
    """What concluded cells say about a claim."""
    named = [cell for cell in cells if any(_at(cell, at) for one in claim.contrasts for _, at in one.terms)]
    if not named or any(cell.result.unfinished for cell in named):
        return Judged(claim, "not run", "Runs of its cells are missing.", ())
    shown = []
    for one in claim.contrasts:
        effect = _effect(claim, one, cells)
        ranks = contrast(cells, lambda cell: rank_score(cell.result), one.terms, one.name)
        shown.append(Shown(one, effect, ranks, _says(claim, one, effect)))
    lost = sum(len(cell.result.failures) for cell in named)
    failed = f" {lost} runs failed; their clients are left out." if lost else ""
    if without := [one.contrast.name for one in shown if one.effect is None]:
        return Judged(claim, "not run", f"No client has every cell of {without[0]!r}.{failed}", ())
    outcome, why = _outcome(claim, shown, named)
    return Judged(claim, outcome, why + failed, tuple(shown))


def _outcome(claim: Claim, shown: Sequence[Shown], named: Sequence[Concluded]) -> tuple[Outcome, str]:
    said = [one.says for one in shown]
    fewest = min(one.effect.clients for one in shown if one.effect is not None)
    if fewest < FEWEST:
        return "not informative", f"{fewest} clients are too few for a test."
    low = [c for c in named if any(_at(c, at) for one in _of_rule(claim, "below") for _, at in one.terms)]
    if low and (reason := _resists_for_another_reason(low)):
        return "not informative", reason
    high = [c for c in named if any(_at(c, at) for one in _of_rule(claim, "above") for w, at in one.terms if w > 0)]
    hinted = any("known_pixels" in cell.result.flags for cell in high)
    if high and not hinted and not _above_chance(high):
        return "not informative", "No compared client leaks more than chance, so there is nothing to compare."
    if "fails" in said:
        return "does not hold", f"{said.count('fails')} of {len(said)} comparisons fail."
    if "open" in said:
        return "not informative", f"{said.count('open')} of {len(said)} intervals leave it open."
    return "holds", "Every comparison passes."


def _effect(claim: Claim, one: Contrast, cells: Sequence[Concluded]) -> Effect | None:
    """The contrast; its test is against the margin."""
    value, margin = VALUES[one.value or claim.value], _margin(claim, one)
    whole = contrast(cells, lambda cell: value(cell.result), one.terms, one.name)
    total = math.fsum(weight for weight, _ in one.terms)
    if whole is None or not margin or not total:
        return whole

    def over(cell: Concluded) -> dict[Hashable, float]:
        return {client: found - margin / total for client, found in value(cell.result).items()}

    tested = contrast(cells, over, one.terms, one.name)
    return whole if tested is None else replace(whole, p=tested.p)


def _of_rule(claim: Claim, rule: Rule) -> list[Contrast]:
    return [one for one in claim.contrasts if (one.rule or claim.rule) == rule]


def _margin(claim: Claim, one: Contrast) -> float:
    return claim.margin if one.margin is None else one.margin


def _says(claim: Claim, one: Contrast, effect: Effect | None) -> Literal["passes", "fails", "open"]:
    if effect is None:
        return "open"
    margin, matters, found = _margin(claim, one), MATTERS[one.value or claim.value], effect.difference
    if (one.rule or claim.rule) == "below":
        return "passes" if found.high < margin else "fails" if found.low > margin else "open"
    if found.low > margin and effect.p < ALPHA:
        return "passes"
    return "fails" if found.high < margin + matters else "open"


def _resists_for_another_reason(cells: Sequence[Concluded]) -> str:
    """Why resistance of these cells would be no evidence; empty if it is."""
    flagged = [cell for cell in cells if {"degenerate_update", "saturated"} & set(cell.result.flags)]
    if flagged:
        return f"The update of {_place(flagged[0])} hardly depends on the picture: resisting shows nothing."
    found = [cell.result.line_up.control for cell in cells]
    if any(one is None or not one.above_chance for one in found):
        return "The planted control, known to leak, was not found."
    return ""


def _place(cell: Concluded) -> str:
    return ", ".join(f"{axis}={level}" for axis, level in cell.axes.items())


def _at(cell: Concluded, at: Mapping[str, AxisLevel]) -> bool:
    return all(axis in cell.axes and cell.axes[axis] == level for axis, level in at.items())


def _above_chance(cells: Sequence[Concluded]) -> bool:
    """Whether the line-ups of any of these cells tell the truth from the distractors, corrected for their number."""
    ps = [found.p for cell in cells if (found := cell.result.line_up.attack) is not None]
    return any(p < RANK_SUM_ALPHA["plain"] for p in holm(ps))


VALUES: dict[str, Callable[[Result], dict[Hashable, float]]] = {
    "psnr": lambda result: mean_score(result, "psnr"),
    "ssim": lambda result: mean_score(result, "ssim"),
    "rank": rank_score,
    "first": first_ranks,
    "gain": gain_over_best_floor,
    "gain_over_prior": lambda result: gain_over_floor(result, "psnr", "prior_only"),
}
MATTERS = {"psnr": 0.5, "ssim": 0.05, "rank": 0.05, "first": 0.1, "gain": 0.5, "gain_over_prior": 0.5}
"""The smallest difference of each value that would matter."""
UNITS = {"psnr": "dB", "gain": "dB", "gain_over_prior": "dB"}
