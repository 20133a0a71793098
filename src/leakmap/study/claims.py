"""Claims: what a study should show, written into its file before it runs.

A claim is a list of contrasts between cells, each a weighted sum whose interval is over clients. It is judged twice: by
the attack of the study, a search, and by whichever attack is the strongest in each cell. See
:mod:`leakmap.study.judging`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from leakmap.errors import BadSetting
from leakmap.registry.spec import Spec
from leakmap.result.result import Result
from leakmap.result.values import (
    exposed_share,
    first_ranks,
    gain_over_best_floor,
    gain_over_floor,
    mean_score,
    rank_score,
)
from leakmap.scoring.effects import AxisLevel
from leakmap.scoring.verdict import JUDGED

Rule = Literal["above", "below", "within"]
SEARCH = "search"
"""What the attack of the study is called beside others that are tried."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\n\r|<>`\\]*$")]
"""What stands in a table of the page."""
Id = Annotated[str, StringConstraints(pattern=r"^[A-Z][0-9]{1,3}$")]


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
        paired: Whether a client holds the same pictures in every cell, so that cells are compared client by client;
            else by Welch's interval.
        of_searching: Whether it compares ways of searching: then the search speaks in both columns.
    """

    name: Name
    terms: list[tuple[float, dict[str, AxisLevel]]] = Field(min_length=1)
    value: str | None = None
    rule: Rule | None = None
    margin: float | None = None
    paired: bool = True
    of_searching: bool = False


class Tried(_Strict):
    """An attack that is tried on the cells of a claim besides the search of the study.

    Args:
        label: What it is called.
        attack: Its specification.
        at: ``{axis = value, …}``: only on cells that stand there; empty: on all that are compared.
        victims: Clients, where they are more than those of the search, the first of which are the same.
    """

    label: Name
    attack: str
    at: dict[str, AxisLevel] = Field(default_factory=dict)
    victims: int | None = Field(None, ge=1, le=10_000)


class Claim(_Strict):
    """What a study should show.

    Args:
        id: Short name, a letter and a number.
        statement: The claim in plain words.
        source: Who claims it, and where.
        expected: The direction, and the rule in words.
        clients: How many there are and why: the calculation of power that was made before anything ran.
        value: Of a client: ``rank`` (share of the line-up that the true picture beats), ``over_chance`` (the same less
            0.5), ``first`` (share of first ranks), ``exposed`` (share of pictures that are recovered and recognisable),
            ``ncc``, ``psnr``, ``ssim``, ``gain`` (PSNR over the best floor), ``gain_over_prior`` and ``ncc_over_prior``
            (over the same attack without the update).
        rule: ``above``: every contrast lies above the margin (95 % interval, and a test at 5 %); ``below``: every
            contrast lies below it; ``within``: every contrast is shown to be no further from 0 (two one-sided tests at
            5 %). All must pass, so no single one needs a correction.
        margin: In the unit of the value.
        contrasts: What is compared.
        tried: Attacks besides the search of the study.
        note: What differs from the source at this scale.
    """

    id: Id
    statement: str
    source: str
    expected: str
    clients: str = ""
    value: str = "psnr"
    rule: Rule = "above"
    margin: float = 0.0
    contrasts: list[Contrast] = Field(min_length=1)
    tried: list[Tried] = Field(default_factory=list, max_length=16)
    note: str = ""

    def value_of(self, one: Contrast) -> str:
        """Name of the value that a contrast compares."""
        return one.value or self.value

    def rule_of(self, one: Contrast) -> Rule:
        """The rule of a contrast."""
        return one.rule or self.rule

    def margin_of(self, one: Contrast) -> float:
        """The margin of a contrast."""
        return self.margin if one.margin is None else one.margin

    @property
    def deciding(self) -> dict[str, Any]:
        """All that decides what is run and how it is judged; words are left out."""
        return {**self.model_dump(exclude={"statement", "source", "expected", "clients", "note"}), "judged": JUDGED}


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
        if claim.value_of(one) not in VALUES:
            raise BadSetting(f"The value of a claim is one of {', '.join(VALUES)}; got {claim.value_of(one)!r}.")
        for _, at in one.terms:
            if set(at) != set(one.terms[0][1]):
                raise BadSetting(f"The terms of {one.name!r} name different axes; give each of them all.")
            _check_place(repr(one.name), at, axes)
    labels = [SEARCH, *(tried.label for tried in claim.tried)]
    if len(set(labels)) < len(labels):
        raise BadSetting(f"Every attack that is tried has a label of its own, none of them {SEARCH!r}; got {labels}.")
    for tried in claim.tried:
        _check_place(f"{tried.label!r}, which is tried,", tried.at, axes)
        Spec.parse(tried.attack)
    return claim


def _check_place(what: str, at: Mapping[str, AxisLevel], axes: Mapping[str, Sequence[AxisLevel]]) -> None:
    for axis, level in at.items():
        if level not in axes.get(axis, ()):
            raise BadSetting(f"{what} names {axis} = {level!r}, which the study does not have.")


def stands(axes: Mapping[str, AxisLevel], at: Mapping[str, AxisLevel]) -> bool:
    """Whether a cell stands at a place; axes that the place does not name may have any value."""
    return all(axis in axes and axes[axis] == level for axis, level in at.items())


VALUES: dict[str, Callable[[Result], dict[Hashable, float]]] = {
    "rank": rank_score,
    "over_chance": lambda result: {client: value - 0.5 for client, value in rank_score(result).items()},
    "first": first_ranks,
    "exposed": exposed_share,
    "ncc": lambda result: mean_score(result, "ncc") if "ncc" in result.metrics else {},
    "psnr": lambda result: mean_score(result, "psnr"),
    "ssim": lambda result: mean_score(result, "ssim"),
    "gain": gain_over_best_floor,
    "gain_over_prior": lambda result: gain_over_floor(result, "psnr", "prior_only"),
    "ncc_over_prior": lambda result: gain_over_floor(result, "ncc", "prior_only") if "ncc" in result.metrics else {},
}
SHARES = ("first", "exposed")
"""Values that are shares of pictures: of one cell they have an exact interval."""
BESIDE = ("rank", "ncc", "psnr")
"""Values that are told of every comparison, whichever decides."""
MATTERS = dict.fromkeys(VALUES, 0.05) | dict.fromkeys(SHARES, 0.1) | dict.fromkeys(("psnr", "gain"), 0.5)
MATTERS["gain_over_prior"] = 0.5
"""The smallest difference of each value that would matter."""
NAMES = {
    "rank": "line-up score",
    "over_chance": "line-up score over chance",
    "first": "share of first ranks",
    "exposed": "share of exposed pictures",
    "ncc": "NCC",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "gain": "PSNR over the best floor",
    "gain_over_prior": "PSNR over the same attack without the update",
    "ncc_over_prior": "NCC over the same attack without the update",
}
UNITS = {"psnr": "dB", "gain": "dB", "gain_over_prior": "dB"}
