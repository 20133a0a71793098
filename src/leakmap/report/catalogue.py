"""Every algorithm there is, read off the registries: what `leakmap list` prints, and a page of the documentation."""

import inspect
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from leakmap.attacker.attacks import attacks
from leakmap.attacker.labels import label_rules
from leakmap.client.data import sources
from leakmap.defences import defences
from leakmap.errors import UnknownName
from leakmap.models import models
from leakmap.registry.registry import Registry
from leakmap.registry.spec import near_misses
from leakmap.report.markdown import wrapped
from leakmap.scoring.metrics import metrics
from leakmap.threat import letter_of

_OF_ATTACKS = ("applies", "attacker and needs", "evaluations x iterations")
_ABOUT_ATTACKS = (
    "Attackers are those of Carletti et al. (USENIX Security 2025): B knows the update and picture statistics, C the "
    "local rule, D public pictures, E the client's buffers; what an attack does not need it still uses where granted. "
    "One evaluation simulates the client once and differentiates its update; [its cost in training "
    "steps](results/cost.md) is measured. L-BFGS evaluates up to 25 times in an iteration."
)
REGISTRIES: tuple[Registry[Any], ...] = (models, sources, defences, attacks, label_rules, metrics)


@dataclass(frozen=True)
class Entry:
    """One algorithm.

    Args:
        kind: What it is.
        name: As it is written in a specification; a family ends in ``/`` or ``:``.
        summary: First sentence of its docstring.
        settings: ``key=default``; a bare key must be given.
        source: Where it was published, if its docstring says so.
        applies: When it applies, likewise.
        needs: Of an attack: the facts that it cannot do without, and the nearest attacker of Carletti et al.
        cost: Of an attack: evaluations of the matching term in one iteration of all restarts, and iterations.
    """

    kind: str
    name: str
    summary: str
    settings: tuple[str, ...]
    source: str
    applies: str = ""
    needs: str = ""
    cost: str = ""


def catalogue(kind: str = "", pattern: str = "") -> list[Entry]:
    """The entries, by kind and name.

    Args:
        kind: Of them, such as ``attack``; empty: every kind.
        pattern: Part of a name or of what is said of it, in any case; ``*`` stands for any text. Empty: all.

    Raises:
        UnknownName: there is no such kind.
    """
    sought = f"*{pattern.lower()}*"
    found = [_entry(registry, name) for registry in _registries(kind) for name in registry.names()]
    return [one for one in found if any(fnmatchcase(t.lower(), sought) for t in (one.name, one.summary, one.applies))]


def broken(kind: str = "") -> list[tuple[str, str, str]]:
    """Kind, name and reason of everything that could not be loaded; of one kind, if it is named."""
    return [(registry.kind, *each) for registry in _registries(kind) for each in registry.broken().items()]


def _registries(kind: str) -> tuple[Registry[Any], ...]:
    kinds = {registry.kind: registry for registry in REGISTRIES}
    if kind and kind not in kinds:
        raise UnknownName(f"There is no kind {kind!r}; {near_misses(kind, kinds)}")
    return (kinds[kind],) if kind else REGISTRIES


def _entry(registry: Registry[Any], name: str) -> Entry:
    text = inspect.getdoc(registry.constructor(name)) or ""
    settings = tuple(
        key if p.default is p.empty else f"{key}={_shown(p.default)}" for key, p in registry.settings(name).items()
    )
    summary = " ".join(text.split("\n\n")[0].split()).replace("``", "")
    entry = Entry(registry.kind, name, summary, settings, _paragraph(text, "Source"), _paragraph(text, "Applies"))
    if registry is not attacks:
        return entry
    attack = attacks.build(name)
    needs = f"{letter_of(attack.needs)}: {', '.join(sorted(attack.needs))}"
    return replace(entry, needs=needs, cost=str(attack.cost))


def _paragraph(text: str, word: str) -> str:
    """The paragraph of a docstring that begins with ``word:``."""
    found = re.search(rf"^{word}: (.*?)(?:\n\n|\Z)", text, re.S | re.M)
    return " ".join(found.group(1).split()) if found else ""


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return "-".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def markdown() -> str:
    """The catalogue as a page."""
    lines = ["# Catalogue", "", "Made by `make docs` from the registries."]
    for registry in REGISTRIES:
        lines += ["", f"## {registry.kind.replace('_', ' ').capitalize()}", ""]
        columns = ("name", "what it is", *(_OF_ATTACKS if registry is attacks else ()), "settings", "source")
        lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        for entry in (_entry(registry, name) for name in registry.names()):
            settings = ", ".join(f"`{setting}`" for setting in entry.settings)
            own = (entry.applies, entry.needs, entry.cost) if registry is attacks else ()
            lines.append(f"| {' | '.join((f'`{entry.name}`', entry.summary, *own, settings, entry.source))} |")
        if registry is attacks:
            lines += ["", _ABOUT_ATTACKS]
    return wrapped("\n".join(lines)) + "\n"
