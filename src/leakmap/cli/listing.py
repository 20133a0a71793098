"""``leakmap list`` and ``schema``: what there is to choose from, and what a result holds."""

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.padding import Padding

from leakmap.cli.terminal import Terminal
from leakmap.errors import BadSetting


def list_(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a page of documentation.")] = False,
) -> None:
    """Every model, data source, defence, attack, label rule and metric, with its settings."""
    from leakmap.report import catalogue

    if markdown:
        typer.echo(catalogue.markdown(), nl=False)
        return
    console = Terminal(highlight=False)
    for entry in catalogue.catalogue():
        console.print(f"[dim]{entry.kind}[/] [bold]{entry.name}[/]  {escape(entry.summary)}")
        if entry.applies:
            console.print(Padding(f"[dim]applies[/] {escape(entry.applies)}", (0, 0, 0, 4)))
        if entry.settings:
            console.print(Padding(escape(", ".join(entry.settings)), (0, 0, 0, 4)))
    for kind, name, reason in catalogue.broken():
        console.print(f"[dim]{kind}[/] [bold]{escape(name)}[/]  could not be loaded: {escape(reason)}")


def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="As a page of documentation.")] = False,
    evidence: Annotated[bool, typer.Option("--evidence", help="Of evidence.json in a bundle.")] = False,
) -> None:
    """The JSON Schema of result.json, for programs that read it."""
    from leakmap.evidence.evidence import evidence_schema
    from leakmap.result.schema import result_page, result_schema

    if markdown and evidence:
        raise BadSetting("docs/evidence.md is the page of evidence.json; give --evidence without --markdown.")
    if markdown:
        typer.echo(result_page(), nl=False)
    else:
        typer.echo(json.dumps(evidence_schema() if evidence else result_schema(), indent=2))
