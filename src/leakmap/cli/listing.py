"""``leakmap list`` and ``schema``: what there is to choose from, and what a result holds."""

import json
from enum import StrEnum
from typing import Annotated

import typer
from rich.markup import escape
from rich.padding import Padding

from leakmap.cli.terminal import Terminal
from leakmap.errors import BadSetting, UnknownName


class Kind(StrEnum):
    """What can be listed; the name is the kind of its registry."""

    model = "models"
    data = "data"
    defence = "defences"
    attack = "attacks"
    label_rule = "label-rules"
    metric = "metrics"


def list_(
    pattern: Annotated[
        str, typer.Argument(help="Part of a name or of what is said of it; * stands for any text.", show_default=False)
    ] = "",
    kind: Annotated[Kind | None, typer.Option(help="Only these.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a page of documentation.")] = False,
) -> None:
    """Every model, data source, defence, attack, label rule and metric, with its settings.

    [bold]Examples[/bold]

      leakmap list --kind attacks

      leakmap list transformer
    """
    from leakmap.report import catalogue

    if markdown and (pattern or kind):
        raise BadSetting("--markdown prints the page of all of them; leave --kind and the pattern out.")
    if markdown:
        typer.echo(catalogue.markdown(), nl=False)
        return
    console, of = Terminal(highlight=False), kind.name if kind else ""
    found = catalogue.catalogue(of, pattern)
    for entry in found:
        console.print(f"[dim]{entry.kind}[/] [bold]{entry.name}[/]  {escape(entry.summary)}")
        if entry.applies:
            console.print(Padding(f"[dim]applies[/] {escape(entry.applies)}", (0, 0, 0, 4)))
        if entry.settings:
            console.print(Padding(escape(", ".join(entry.settings)), (0, 0, 0, 4)))
    for what, name, reason in catalogue.broken(of):
        console.print(f"[dim]{what}[/] [bold]{escape(name)}[/]  could not be loaded: {escape(reason)}")
    if not found:
        among = f" among the {kind.value}" if kind else ""
        raise UnknownName(f"Nothing is named or described by {pattern!r}{among}; leakmap list shows all there is.")


def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="As a page of documentation.")] = False,
    evidence: Annotated[bool, typer.Option("--evidence", help="Of evidence.json in a bundle.")] = False,
    entry: Annotated[bool, typer.Option("--entry", help="Of an entry.")] = False,
) -> None:
    """The JSON Schema of result.json, for programs that read it."""
    from leakmap.entries.entry import entry_schema
    from leakmap.evidence.evidence import evidence_schema
    from leakmap.result.schema import result_page, result_schema

    if markdown + evidence + entry > 1:
        raise BadSetting(
            "docs/evidence.md and docs/entries.md are the pages of bundles and entries; give one of --markdown, "
            "--evidence and --entry."
        )
    if markdown:
        typer.echo(result_page(), nl=False)
        return
    found = evidence_schema() if evidence else entry_schema() if entry else result_schema()
    typer.echo(json.dumps(found, indent=2))
