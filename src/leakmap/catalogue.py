"""Every algorithm there is, read off the registries: what `leakmap list` prints and docs/catalogue.md holds."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

from leakmap.attacker.attacks import attacks
from leakmap.attacker.labels import label_rules
from leakmap.client.data import sources
from leakmap.models import models
from leakmap.registry import Registry
from leakmap.scoring.metrics import metrics

REGISTRIES: tuple[Registry[Any], ...] = (models, sources, attacks, label_rules, metrics)


@dataclass(frozen=True)
class Entry:
    """One algorithm.

    Args:
        kind: What it is.
        name: As it is written in a specification; a family ends in ``/`` or ``:``.
        summary: First sentence of its docstring.
        settings: ``key=default``; a bare key must be given.
        source: Where it was published, if its docstring says so.
    """

    kind: str
    name: str
    summary: str
    settings: tuple[str, ...]
    source: str


def catalogue() -> list[Entry]:
    """All entries, by kind and name."""
    return [_entry(registry, name) for registry in REGISTRIES for name in registry.names()]


def _entry(registry: Registry[Any], name: str) -> Entry:
    text = inspect.getdoc(registry.constructor(name)) or ""
    source = re.search(r"Source: (.*?)(?:\n\n|$)", text, re.S)
    settings = tuple(
        key if p.default is p.empty else f"{key}={_shown(p.default)}" for key, p in registry.settings(name).items()
    )
    summary = " ".join(text.split("\n\n")[0].split()).replace("``", "")
    return Entry(registry.kind, name, summary, settings, " ".join(source.group(1).split()) if source else "")


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return "-".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def markdown() -> str:
    """The catalogue as a page."""
    lines = ["# Catalogue", "", "Made by `make docs` from the registries."]
    for registry in REGISTRIES:
        lines += ["", f"## {registry.kind.replace('_', ' ').capitalize()}", ""]
        lines += ["| name | what it is | settings | source |", "|---|---|---|---|"]
        for entry in (_entry(registry, name) for name in registry.names()):
            settings = ", ".join(f"`{setting}`" for setting in entry.settings)
            lines.append(f"| `{entry.name}` | {entry.summary} | {settings} | {entry.source} |")
    return "\n".join(lines) + "\n"
