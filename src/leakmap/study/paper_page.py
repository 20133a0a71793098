"""The page of a paper's claims in Markdown: both columns, then every comparison."""

from collections.abc import Sequence

from leakmap.report.markdown import wrapped
from leakmap.report.page import interval, number
from leakmap.result.part import Estimate
from leakmap.study.claims import BESIDE, NAMES, UNITS, Claim
from leakmap.study.judgement import Column, Compared, Judgement
from leakmap.units import duration

COLUMNS = {"search": "attacks that search", "any": "any attack tried here"}
INTRODUCTION = (
    "Each claim is a study file that names its comparisons, its rule and its number of clients before it runs. It is "
    "judged twice: *for attacks that search*, as the paper did, and *for any attack tried here*, where in every cell "
    "the strongest attack speaks. Which attack that is, is chosen on one half of the clients for the other half.",
    "*holds*: every comparison passes. *does not hold*: a comparison is shown to be smaller than what would matter "
    "(0.05 of the line-up score or of NCC, 0.1 of a share, 0.5 dB). *not informative*: nothing leaked more than "
    "chance, there are too few clients, or an interval leaves it open. *power* is how far from its margin the truth "
    "would have to lie, for this number of clients to show it in 80 % of such experiments, by the spread that was "
    "measured.",
    "A comparison is a difference between cells, client by client, with a 95 % interval over clients; n counts "
    "clients. The line-up score is the share of the other candidates that the true picture beats: 0.5 is chance. NCC "
    "is the correlation with the true picture.",
)


def page(judged: Sequence[tuple[Claim, Judgement | None]], *, command: str) -> str:
    """The outcome of every claim in Markdown.

    Args:
        judged: Every claim, and what it came to, if it was run.
        command: The command that repeats it.
    """
    known = [found for _, found in judged if found is not None]
    lines = ["# The paper's claims", "", f"    {command}", ""]
    for paragraph in INTRODUCTION:
        lines += [paragraph, ""]
    lines += [_ran(known, len(judged)), ""]
    heads = [f"{name} | the comparison that decides" for name in COLUMNS.values()]
    lines += [f"| claim | | {' | '.join(heads)} |", "|---|---|---|---|---|---|"]
    for claim, found in judged:
        cells = [part for name in COLUMNS for part in _summary(claim, _column(found, name))]
        lines.append(f"| {claim.id} | {claim.statement} | {' | '.join(cells)} |")
    lines += ["", "The comparison that decides is the first that fails, else the first that is open, else the first."]
    for claim, found in judged:
        lines += _section(claim, found, command)
    return wrapped("\n".join(lines)) + "\n"


def _ran(known: Sequence[Judgement], claims: int) -> str:
    """Versions, number of runs and what they took."""
    if not known:
        return f"None of {claims} claims was run yet."
    told = sorted({", ".join(f"{name} {version}" for name, version in found.versions.items()) for found in known})
    runs, seconds = sum(found.runs for found in known), sum(found.seconds for found in known)
    return (
        f"{len(known)} of {claims} claims were run, with {'; '.join(told)}: {runs:,} runs that took "
        f"{duration(seconds)} one after the other. What several claims share is counted with each of them, and fitting "
        "comes on top."
    )


def _column(found: Judgement | None, name: str) -> Column | None:
    return None if found is None else found.search if name == "search" else found.any


def _summary(claim: Claim, column: Column | None) -> tuple[str, str]:
    """Outcome, and the comparison that decides."""
    if column is None:
        return "**not run**", "–"
    decides = column.deciding
    if decides is None or decides.effect is None:
        return f"**{column.outcome}**", "–"
    told = f"{decides.name}: {_effect(claim, decides)}, n = {decides.clients}"
    return f"**{column.outcome}**", told if column.outcome == "holds" else f"{told}, {_power(claim, decides)}"


def _section(claim: Claim, found: Judgement | None, command: str) -> list[str]:
    outcome = "not run" if found is None else f"{found.search.outcome}; for any attack {found.any.outcome}"
    lines = ["", f"## {claim.id}: {outcome}", "", claim.statement, "", f"Source: {claim.source}."]
    lines += ["", f"Expected: {claim.expected}."]
    lines += ["", f"Clients: {claim.clients}"] if claim.clients else []
    lines += ["", claim.note] if claim.note else []
    lines += ["", f"    {command} --claim {claim.id}"]
    if found is None:
        return lines
    lines += [f"\nWhat is missing of {label}: {_plain(why)}" for label, why in found.left_out.items()]
    for name, title in COLUMNS.items():
        column = found.search if name == "search" else found.any
        lines += ["", f"For {title}: **{column.outcome}**. {column.why}"]
        if column.compared:
            lines += ["", *_table(claim, column, who=name == "any")]
    return lines


def _table(claim: Claim, column: Column, *, who: bool) -> list[str]:
    beside = [f"{NAMES[name]} [95 %]" for name in BESIDE]
    heads = ["comparison", "decides [95 %]", "p", *beside, "n", "power", *(["speaks"] if who else []), ""]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for one in column.compared:
        others = [_estimate(name, one.beside.get(name)) for name in BESIDE]
        spoke = [", ".join(f"{label} {count}" for label, count in one.spoke.items())] if who else []
        row = [one.name, _effect(claim, one), f"{one.p:.2g}", *others, str(one.clients), _power(claim, one), *spoke]
        lines.append(f"| {' | '.join([*row, one.says])} |")
    return lines


def _effect(claim: Claim, one: Compared) -> str:
    value = _value(claim, one)
    return f"{NAMES[value]} {_estimate(value, one.effect)}"


def _estimate(value: str, found: Estimate | None) -> str:
    unit = f" {UNITS[value]}" if value in UNITS else ""
    return "–" if found is None else f"{interval(found)}{unit}"


def _power(claim: Claim, one: Compared) -> str:
    if one.detectable is None:
        return "no power"
    value = _value(claim, one)
    unit = f" {UNITS[value]}" if value in UNITS else ""
    return f"power {number(one.detectable, 2)}{unit}"


def _value(claim: Claim, one: Compared) -> str:
    return claim.value_of(next(contrast for contrast in claim.contrasts if contrast.name == one.name))


def _plain(text: str) -> str:
    """Text from a file, in which nothing is Markdown."""
    return " ".join(text.split()).translate(str.maketrans(dict.fromkeys("|<>`*[]", "'")))
