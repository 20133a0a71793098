"""``leakmap bundle``: the evidence that an institution files about an audit."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.markup import escape
from rich.padding import Padding

from leakmap.cli.audit import audit
from leakmap.cli.exits import WRONG, say
from leakmap.cli.options import typed_plan
from leakmap.cli.parsing import Command
from leakmap.cli.terminal import COLOURS, Terminal
from leakmap.errors import BadSetting, plain

MAKE, BEFORE, CHECK = "Make a bundle", "Before the audit", "Check a bundle"


def bundle(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN | -- AUDIT OPTIONS]", help="The folder of an audit; with --plan its options."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to make; a zip comes beside it.", rich_help_panel=MAKE)
    ] = None,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Leave all pictures out of every file.", rich_help_panel=MAKE)
    ] = False,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What the institution says (TOML).", rich_help_panel=MAKE)
    ] = None,
    planned: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What --plan wrote before.", rich_help_panel=MAKE)
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign with this key, by ssh-keygen.", rich_help_panel=MAKE)
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write down thresholds and settings of an audit.", rich_help_panel=BEFORE),
    ] = None,
    profile_template: Annotated[
        bool, typer.Option("--profile-template", help="Print an empty profile.", rich_help_panel=BEFORE)
    ] = False,
    verify: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Check a folder or its zip.", rich_help_panel=CHECK)
    ] = None,
    signers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Allowed signers, for --verify.", rich_help_panel=CHECK)
    ] = None,
) -> None:
    """Make the evidence that an institution files about an audit, or check it.

    [bold]Examples[/bold]

      leakmap bundle --profile-template > profile.toml

      leakmap bundle --plan plan.json -- --model resnet --data folder:DIR --gate partial

      leakmap bundle runs/mine --out evidence --no-pictures --profile profile.toml --planned plan.json --sign KEY

      leakmap bundle --verify evidence

    Exit codes: 0 done; with --verify 1 something is wrong with the bundle; 3 wrong input.
    """
    making = (out, profile, planned, sign, no_pictures or None)
    chosen = [name for name, given in (("--plan", plan), ("--profile-template", profile_template or None),
                                       ("--verify", verify)) if given is not None]  # fmt: skip
    if (
        len(chosen) > 1
        or (chosen and any(making))
        or (words and (profile_template or verify))
        or (signers and not verify)
    ):
        raise BadSetting(
            "Give a RUN and --out DIR, or one of --plan, --verify and --profile-template by itself; --signers goes "
            "with --verify."
        )
    if profile_template:
        from leakmap.evidence.profile import template

        typer.echo(template(), nl=False)
    elif verify is not None:
        raise typer.Exit(_verified(verify, signers))
    elif plan is not None:
        _planned(plan, words or [])
    else:
        if not words or len(words) > 1 or out is None:
            raise BadSetting("Give one RUN, the folder of an audit, and --out DIR for the bundle.")
        _made(Path(words[0]), out, not no_pictures, profile, planned, sign)


def _made(run: Path, out: Path, pictures: bool, profile: Path | None, planned: Path | None, key: Path | None) -> None:
    from leakmap.evidence.bundle import make_bundle
    from leakmap.evidence.profile import Profile, read_profile

    said = Profile() if profile is None else read_profile(profile)
    found = make_bundle(run, out, pictures=pictures, profile=said, planned=planned, key=key)
    console = Terminal()
    evidence = found.evidence
    console.print(
        f"[reverse {COLOURS[evidence.level]}] {evidence.level} [/] {escape(evidence.headline)}", highlight=False
    )
    statements = [one for topic in evidence.topics for one in topic.statements]
    asked = [one for one in statements if one.origin == "profile"]
    empty = [one.label for one in asked if one.value is None]
    if empty:
        told = f"[dim]not filled in[/] {len(empty)} of {len(asked)}: {escape(', '.join(empty))}"
        console.print(Padding(told, (0, 0, 0, 2)), highlight=False)
    for one in statements:
        if one.key == "departures" and isinstance(one.value, list):
            for sentence in one.value:
                console.print(Padding(f"[yellow]not as planned[/] {escape(sentence)}", (0, 0, 0, 2)), highlight=False)
    for name, why in found.left_out.items():
        console.print(Padding(f"[yellow]without {name}[/] {escape(why)}", (0, 0, 0, 2)), highlight=False)
    for word, field in said.words().items():
        told = f"[yellow]{field}[/] uses the word {word}, which no audit shows; it stays, as yours."
        console.print(Padding(told, (0, 0, 0, 2)), highlight=False)
    console.print(f"\nBundle: {escape(str(found.folder))} and {escape(str(found.archive))}", soft_wrap=True)
    if evidence.pictures:
        console.print("It holds pictures of clients: treat it as you treat them, or make it with --no-pictures.")


def _planned(path: Path, words: list[str]) -> None:
    from leakmap.evidence.planned import write_planned
    from leakmap.gate.finding import gate_level
    from leakmap.models import models
    from leakmap.plan.plan import Captured, check
    from leakmap.plan.tuned import read_tuned
    from leakmap.registry.spec import Spec
    from leakmap.registry.user_code import is_user_code

    context = _audit().make_context("leakmap audit", list(words))
    given: dict[str, Any] = dict(context.params)
    real = (given.get("observation") or (), given.get("truth") or (), given.get("others") or "")
    gate, tuned = given.get("gate"), given.get("tuned")
    found = typed_plan(given)
    if tuned is not None:
        found = read_tuned(Path(tuned)).applied_to(found, tuned)
    if any(real):
        captured = Captured(tuple(map(str, real[0])), tuple(real[1]), real[2])
        found = replace(found, captured=captured)
    else:
        check(found)
        if not is_user_code(name := Spec.parse(found.model).name):
            models.constructor(name)
    digest = write_planned(path, found, None if gate is None else gate_level(gate))
    say(f"Fixed: {path}. Its SHA-256, by which others can hold it: {digest}")


def _audit() -> click.Command:
    alone = typer.Typer(add_completion=False)
    alone.command("audit", cls=Command)(audit)
    return typer.main.get_command(alone)


def _verified(path: Path, signers: Path | None) -> int:
    from leakmap.evidence.verify import verify_bundle

    found = verify_bundle(path, signers)
    console = Terminal(highlight=False)
    for problem in found.problems:
        console.print(f"[red]wrong[/] {escape(problem)}")
    good = (
        f"{found.files} files are as {found.path}/manifest.json says." if found.files else "No file is as it should be."
    )
    console.print(escape(plain(good)), soft_wrap=True)
    for name, why in found.left_out.items():
        console.print(f"[dim]without {escape(plain(name))}[/] {escape(plain(why))}")
    console.print(escape(found.signature or "It is not signed: whoever changed a file can change the manifest too."))
    return WRONG if found.problems else 0
