"""Claims: what a study should show, written into its file before it runs, and what it did show.

A claim is a list of contrasts between cells, each a weighted sum whose interval is over clients: a client holds the
same pictures in every cell, so cells are compared client by client. The rule says what all contrasts must be.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leakmap.errors import BadSetting
from leakmap.report.study import Cell as Concluded
from leakmap.scoring.effects import Effect, Level, contrast, gain_over_best_floor, holm, rank_score
from leakmap.scoring.statistics import rank_sum_p
from leakmap.scoring.verdict import RANK_SUM_ALPHA

Outcome = Literal["holds", "does not hold", "not informative", "not run"]
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
        margin: In place of the claim's.
    """

    name: str
    terms: list[tuple[float, dict[str, Level]]] = Field(min_length=1)
    value: str | None = None
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
        rule: ``above``: every contrast lies above the margin (95 % intervals, and Holm over the contrasts); ``below``:
            every contrast lies below it.
        margin: In the unit of the value.
        contrasts: What is compared.
        note: What differs from the source at this scale.
    """

    id: str
    statement: str
    source: str
    expected: str
    value: str = "psnr"
    rule: Literal["above", "below"] = "above"
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
        p: Holm-corrected over the contrasts of the claim.
        passes: Whether the rule holds for it.
    """

    contrast: Contrast
    effect: Effect | None
    ranks: Effect | None
    p: float
    passes: bool


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


def read_claim(content: Mapping[str, Any], axes: Mapping[str, Sequence[Level]]) -> Claim:
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
    shown = []
    for one in claim.contrasts:
        value = VALUES[one.value or claim.value]
        effect = contrast(cells, lambda cell, value=value: value(cell.result), one.terms, one.name)
        ranks = contrast(cells, lambda cell: rank_score(cell.result), one.terms, one.name)
        shown.append((one, effect, ranks))
    known = [effect for _, effect, _ in shown if effect is not None]
    if len(known) < len(shown):
        lost = next(one.name for one, effect, _ in shown if effect is None)
        return Judged(claim, "not run", f"No client has finished in every cell of {lost!r}.", ())
    corrected = holm([effect.p for effect in known])
    results = tuple(
        Shown(one, effect, ranks, p, _passes(claim, one, effect, p))
        for (one, _, ranks), effect, p in zip(shown, known, corrected, strict=True)
    )
    named = [cell for cell in cells if any(_at(cell, at) for one in claim.contrasts for w, at in one.terms if w > 0)]
    fewest = min(effect.clients for effect in known)
    if fewest < FEWEST:
        return Judged(claim, "not informative", f"{fewest} clients are too few for a test.", results)
    if claim.rule == "below" and not _controls_found(named):
        return Judged(claim, "not informative", "The planted control, known to leak, was not found.", results)
    if all(one.passes for one in results):
        return Judged(claim, "holds", f"{len(results)} of {len(results)} comparisons pass.", results)
    if claim.rule == "above" and not _above_chance(named):
        why = "No compared client leaks more than chance, so there was nothing to compare."
        return Judged(claim, "not informative", why, results)
    passed = sum(one.passes for one in results)
    return Judged(claim, "does not hold", f"{passed} of {len(results)} comparisons pass.", results)


def _passes(claim: Claim, one: Contrast, effect: Effect, p: float) -> bool:
    margin = claim.margin if one.margin is None else one.margin
    if claim.rule == "below":
        return effect.difference.high < margin
    sure = p < ALPHA if len(claim.contrasts) > 1 and margin == 0 else True
    return effect.difference.low > margin and sure


def _at(cell: Concluded, at: Mapping[str, Level]) -> bool:
    return all(axis in cell.axes and cell.axes[axis] == level for axis, level in at.items())


def _above_chance(cells: Sequence[Concluded]) -> bool:
    """Whether the line-ups of any of these cells tell the truth from the distractors, corrected for their number."""
    ps = []
    for cell in cells:
        clients = [client for client in cell.result["clients"] if "ranks" in client]
        if clients:
            ps.append(rank_sum_p([c["ranks"] for c in clients], [c["galleries"] for c in clients]))
    return any(p < RANK_SUM_ALPHA for p in holm(ps))


def _controls_found(cells: Sequence[Concluded]) -> bool:
    found = [cell.result["line_up"]["control"] for cell in cells]
    return bool(found) and all(one is not None and one["p"] < RANK_SUM_ALPHA for one in found)


def _score(result: Mapping[str, Any], metric: str) -> dict[Hashable, float]:
    return {c["client"]: _mean(c["scores"][metric]) for c in result["clients"] if "scores" in c}


def _first(result: Mapping[str, Any]) -> dict[Hashable, float]:
    return {c["client"]: _mean([float(rank == 1) for rank in c["ranks"]]) for c in result["clients"] if "ranks" in c}


def _gain_over_prior(result: Mapping[str, Any]) -> dict[Hashable, float]:
    return {
        c["client"]: _mean(c["scores"]["psnr"]) - _mean(c["floors"]["psnr"]["prior_only"])
        for c in result["clients"]
        if "scores" in c
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


VALUES = {
    "psnr": lambda result: _score(result, "psnr"),
    "ssim": lambda result: _score(result, "ssim"),
    "rank": rank_score,
    "first": _first,
    "gain": gain_over_best_floor,
    "gain_over_prior": _gain_over_prior,
}
UNITS = {"psnr": "dB", "gain": "dB", "gain_over_prior": "dB"}
