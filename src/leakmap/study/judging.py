"""Judging a claim by concluded cells, once by the search of its study and once by whichever attack is strongest.

Which attack speaks for a cell is not chosen on the clients that it then speaks for: on the clients of even number the
one speaks that has the highest mean on those of odd number, and the other way round (cross-fitting). Taking the better
attack of each client would count luck as strength.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from scipy import stats

from leakmap.report.study import Cell
from leakmap.result.part import Estimate
from leakmap.result.result import Result
from leakmap.scoring.effects import AxisLevel, Effect, contrast, holm, unpaired
from leakmap.scoring.equivalence import equivalent_mean
from leakmap.scoring.power import detectable_margin, detectable_mean, detectable_share
from leakmap.scoring.statistics import Interval, share_of_cases
from leakmap.scoring.verdict import RANK_SUM_ALPHA
from leakmap.study.claims import BESIDE, MATTERS, SEARCH, SHARES, VALUES, Claim, Contrast, Rule, stands
from leakmap.study.judgement import Column, Compared, Outcome, Says

ALPHA = 0.05
FEWEST = 6
"""Clients below which no sign-flip test can say anything at 5 %, two-sided."""

ByAttack = Mapping[str, Sequence[Cell]]
"""Label of an attack -> the cells that it was run on."""


@dataclass(frozen=True)
class Spoken:
    """A cell, and which attack speaks for each of its clients.

    Args:
        axes: Where it stands.
        results: Attack -> what it came to.
        speaker: Client -> attack.
    """

    axes: Mapping[str, AxisLevel]
    results: Mapping[str, Result]
    speaker: Mapping[Hashable, str]

    def value(self, name: str) -> dict[Hashable, float]:
        """Client -> a value by the attack that speaks for it."""
        of_attack = {label: VALUES[name](self.results[label]) for label in set(self.speaker.values())}
        return {
            client: of_attack[label][client] for client, label in self.speaker.items() if client in of_attack[label]
        }

    @property
    def heard(self) -> list[Result]:
        """Of the attacks that speak for any client."""
        return [self.results[label] for label in self.results if label in set(self.speaker.values())]


def judge_claim(claim: Claim, cells: ByAttack) -> tuple[Column, Column]:
    """What concluded cells say about a claim: for attacks that search, and for any attack.

    Args:
        claim: The claim.
        cells: Concluded cells of :data:`SEARCH`, and of every attack that was tried besides.
    """
    own = {SEARCH: cells.get(SEARCH, ())}
    return _judged(claim, own), _judged(claim, {**own, **cells})


def _judged(claim: Claim, cells: ByAttack) -> Column:
    named = [
        cell for cell in cells[SEARCH] if any(stands(cell.axes, at) for one in claim.contrasts for _, at in one.terms)
    ]
    if not named or any(cell.result.unfinished for cell in named):
        return Column(outcome="not run", why="Runs of its cells are missing.", compared=())
    chosen = {one.name: _spoken(claim, one, cells) for one in claim.contrasts}
    effects = [_effect(claim, one, chosen[one.name]) for one in claim.contrasts]
    lost = sum(len(cell.result.failures) for cell in named)
    failed = f" {lost} runs failed; their clients are left out." if lost else ""
    found = [(one, effect) for one, effect in zip(claim.contrasts, effects, strict=True) if effect is not None]
    if len(found) < len(effects):
        without = next(one.name for one, effect in zip(claim.contrasts, effects, strict=True) if effect is None)
        return Column(outcome="not run", why=f"No client has every cell of '{without}'.{failed}", compared=())
    said: list[Says] = [_says(claim, one, effect) for one, effect in found]
    outcome, why = _outcome(claim, chosen, [effect.clients for _, effect in found], said)
    figures = tuple(
        _compared(claim, one, effect, chosen[one.name], says) for (one, effect), says in zip(found, said, strict=True)
    )
    return Column(outcome=outcome, why=why + failed, compared=figures)


def _spoken(claim: Claim, one: Contrast, cells: ByAttack) -> list[Spoken]:
    """The cells of a contrast, each with who speaks for its clients."""
    places: dict[frozenset[tuple[str, AxisLevel]], dict[str, Result]] = {}
    for label, of_attack in cells.items():
        for cell in of_attack:
            if (label == SEARCH or not one.of_searching) and any(stands(cell.axes, at) for _, at in one.terms):
                places.setdefault(frozenset(cell.axes.items()), {})[label] = cell.result
    value = VALUES[claim.value_of(one)]
    return [
        Spoken(dict(place), results, speakers({label: value(result) for label, result in results.items()}))
        for place, results in places.items()
    ]


def speakers(values: Mapping[str, Mapping[Hashable, float]]) -> dict[Hashable, str]:
    """Client -> the attack that speaks for it, chosen on the other half of the clients.

    Args:
        values: Attack -> client, by its number -> value; the highest mean over the clients that all attacks have is the
            strongest. Of equal ones the first speaks.
    """
    values = {label: own for label, own in values.items() if own}
    if not values:
        return {}
    shared = set.intersection(*(set(own) for own in values.values()))
    found: dict[Hashable, str] = {}
    for half in (0, 1):
        others = [client for client in shared if _half(client) != half]
        best = max(values, key=lambda label: math.fsum(values[label][client] for client in others))
        found |= {client: best for client in values[best] if _half(client) == half}
    return found


def _half(client: Hashable) -> int:
    assert isinstance(client, int)
    return client % 2


def _effect(claim: Claim, one: Contrast, cells: Sequence[Spoken]) -> Effect | None:
    """The contrast; its test is against the margin, or against 0 where the weights of its terms sum to 0."""
    name, margin = claim.value_of(one), claim.margin_of(one)
    whole = _contrast(one, cells, name)
    if whole is None:
        return None
    if _is_share(claim, one):
        return _exact(whole, margin)
    total = math.fsum(weight for weight, _ in one.terms)
    if not margin or not total:
        return whole
    tested = _contrast(one, cells, name, margin / total)
    return whole if tested is None else replace(whole, p=tested.p)


def _contrast(one: Contrast, cells: Sequence[Spoken], name: str, less: float = 0.0) -> Effect | None:
    def value(cell: Spoken) -> dict[Hashable, float]:
        return {client: found - less for client, found in cell.value(name).items()}

    return (contrast if one.paired else unpaired)(cells, value, one.terms, one.name)


def _is_share(claim: Claim, one: Contrast) -> bool:
    return claim.value_of(one) in SHARES and len(one.terms) == 1 and one.terms[0][0] == 1


def _exact(effect: Effect, margin: float) -> Effect:
    """With the exact interval of a share, at the effective size of one picture for each client."""
    n, parts = effect.clients, 10**6
    hits = round(effect.difference.value * n * parts)
    interval = share_of_cases(hits, n * parts, n)
    least, most = hits // parts, -(-hits // parts)
    tails = stats.binom.sf(least - 1, n, margin), stats.binom.cdf(most, n, margin)
    return replace(effect, difference=interval, p=min(1.0, 2 * float(min(tails))))


def _says(claim: Claim, one: Contrast, effect: Effect) -> Says:
    margin, matters, found = claim.margin_of(one), MATTERS[claim.value_of(one)], effect.difference
    rule = claim.rule_of(one)
    if rule == "within":
        if found.low > margin or found.high < -margin:
            return "fails"
        small = equivalent_mean(found.value, effect.error, effect.clients, margin)
        return "passes" if small.equivalent else "open"
    if rule == "below":
        return "passes" if found.high < margin else "fails" if found.low > margin else "open"
    if found.low > margin and effect.p < ALPHA:
        return "passes"
    return "fails" if found.high < margin + matters else "open"


def _detectable(claim: Claim, one: Contrast, effect: Effect) -> float:
    rule = claim.rule_of(one)
    if _is_share(claim, one):
        return detectable_share(effect.clients, claim.margin_of(one), rule == "above")
    return (detectable_margin if rule == "within" else detectable_mean)(effect.error, effect.clients)


def _compared(claim: Claim, one: Contrast, effect: Effect, cells: Sequence[Spoken], says: Says) -> Compared:
    others = {name: _contrast(one, cells, name) for name in BESIDE}
    spoke = Counter(label for cell in cells for label in cell.speaker.values())
    return Compared(
        name=one.name,
        effect=_estimate(effect.difference),
        p=effect.p,
        clients=effect.clients,
        detectable=_detectable(claim, one, effect),
        beside={name: _estimate(other.difference) for name, other in others.items() if other is not None},
        spoke=dict(sorted(spoke.items())),
        says=says,
    )


def _estimate(interval: Interval) -> Estimate:
    return Estimate.model_validate(interval)


def _outcome(
    claim: Claim, chosen: Mapping[str, Sequence[Spoken]], clients: Sequence[int], said: Sequence[Says]
) -> tuple[Outcome, str]:
    if (fewest := min(clients)) < FEWEST:
        return "not informative", f"{fewest} clients are too few for a test."
    of_rule = partial(_of_rule, claim, chosen)
    if (low := of_rule(("below", "within"))) and (reason := _resists_for_another_reason(low)):
        return "not informative", reason
    high = of_rule(("above",))
    hinted = any("known_pixels" in result.flags for cell in high for result in cell.heard)
    if high and not hinted and not _above_chance(high):
        return "not informative", "No compared client leaks more than chance, so there is nothing to compare."
    if "fails" in said:
        return "does not hold", f"{said.count('fails')} of {len(said)} comparisons fail."
    if "open" in said:
        return "not informative", f"{said.count('open')} of {len(said)} intervals leave it open."
    return "holds", "Every comparison passes."


def _of_rule(claim: Claim, chosen: Mapping[str, Sequence[Spoken]], rules: Sequence[Rule]) -> list[Spoken]:
    """The cells of contrasts with one of these rules; of ``above`` those that should leak more."""
    return [
        cell
        for one in claim.contrasts
        if claim.rule_of(one) in rules
        for cell in chosen[one.name]
        if any((weight > 0 or "above" not in rules) and stands(cell.axes, at) for weight, at in one.terms)
    ]


def _resists_for_another_reason(cells: Sequence[Spoken]) -> str:
    """Why resistance of these cells would be no evidence; empty if it is."""
    for cell in cells:
        if any({"degenerate_update", "saturated"} & set(result.flags) for result in cell.heard):
            return f"The update of {_place(cell)} hardly depends on the picture: resisting shows nothing."
    controls = [result.line_up.control for cell in cells for result in cell.heard]
    if any(one is None or not one.above_chance for one in controls):
        return "The planted control, known to leak, was not found."
    return ""


def _place(cell: Spoken) -> str:
    return ", ".join(f"{axis}={level}" for axis, level in sorted(cell.axes.items()))


def _above_chance(cells: Sequence[Spoken]) -> bool:
    """Whether the line-ups of any of these cells tell the truth from the distractors, corrected for their number."""
    results = [result for cell in cells for result in cell.heard]
    ps = [found.p for result in results if (found := result.line_up.attack) is not None]
    return any(p < RANK_SUM_ALPHA["plain"] for p in holm(ps))
