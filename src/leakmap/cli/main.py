"""The command line. Each command is one call of a public function; words and exit codes are all that is added."""

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from leakmap.auditing.captured import prepare_captured
from leakmap.auditing.conclude import Audit
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.auditing.tune import BUDGET, REHEARSALS
from leakmap.auditing.tune import tune as search
from leakmap.cli import catalogue
from leakmap.cli.captures import attack_, capture_, doctor, facts_, watch
from leakmap.cli.demo import demonstrate
from leakmap.cli.options import ATTACK, REAL, TUNING, Out, with_plan
from leakmap.cli.runners import RUN, Address, Device, Gpus, Workers, runner_of
from leakmap.cli.study import app as study
from leakmap.cli.study import reproduce
from leakmap.cli.terminal import describe, describe_tuned, gated, progress_bar
from leakmap.errors import BadSetting, LeakmapError
from leakmap.inspection import drawn, probe_update, read_traits
from leakmap.inspection.probe import task_of
from leakmap.inspection.reference import notes as nearest_measured
from leakmap.inspection.text import as_dict, describe_probe, describe_traits
from leakmap.models.network import build_network
from leakmap.plan.command import command
from leakmap.plan.plan import Plan
from leakmap.plan.tuned import read_tuned
from leakmap.result.schema import result_page, result_schema
from leakmap.runs.store import Store
from leakmap.scoring.verdict import LEVELS
from leakmap.version import __version__

REACHED, INCONCLUSIVE, BAD_INPUT, INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    name="leakmap",
    help="Can the updates that federated clients send be turned back into their pictures?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


app.add_typer(study, name="study")
app.command()(reproduce)
for _name, _command in (
    ("facts", facts_),
    ("capture", capture_),
    ("doctor", doctor),
    ("attack", attack_),
    ("watch", watch),
):
    app.command(_name)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"leakmap {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Can the updates that federated clients send be turned back into their pictures?"""


@app.command()
@with_plan()
def audit(
    plan: Plan,
    tuned: Annotated[
        Path | None, typer.Option(help="The tuned.json that leakmap tune wrote.", rich_help_panel=ATTACK)
    ] = None,
    observation: Annotated[
        list[Path] | None,
        typer.Option(help="Observation file of a real client; repeatable.", rich_help_panel=REAL),
    ] = None,
    truth: Annotated[
        list[str] | None, typer.Option(help="Pictures that this client held, once for each.", rich_help_panel=REAL)
    ] = None,
    others: Annotated[
        str | None, typer.Option(help="Pictures of the same kind that no client held.", rich_help_panel=REAL)
    ] = None,
    out: Out = None,
    device: Device = "cpu",
    workers: Workers = None,
    ray: Address = None,
    gpus: Gpus = 0.0,
    gate: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="Exit 1 if this level is reached.", rich_help_panel=RUN)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json.", rich_help_panel=RUN)] = False,
) -> None:
    """Audit clients: what can be recovered from what they send, beside floors and controls.

    [bold]Examples[/bold]

      leakmap audit --model resnet,blocks=1-1-1,width=24,preact=true

      leakmap audit --model torchvision/resnet18 --data folder:DIR --image-size 64

      leakmap audit --model nets.py:build --data npz:FILE --gate partial

      leakmap audit --observation client-0.safetensors --truth npz:FILE --others folder:DIR

    Exit codes: 0 done; with --gate 1 level reached, 2 inconclusive; 3 wrong input; 130 interrupted.
    """
    if gate is not None and gate not in LEVELS[1:]:
        raise BadSetting(f"--gate takes one of {', '.join(LEVELS[1:])}; got {gate!r}.")
    if tuned is not None:
        plan = read_tuned(tuned).applied_to(plan, tuned)
    runner = runner_of(workers, device, ray, gpus)
    with progress_bar() as progress:
        if observation or truth or others:
            plan, prepared = prepare_captured(plan, observation or [], truth or [], others or "")
        else:
            prepared = prepare(_named(plan), device=runner.here.device, progress=progress)
        folder = out or Path("runs") / f"audit-{_digest(plan)}"
        found = perform(plan, prepared, Store(folder), runner, progress)
    _tell(found, folder, as_json)
    code = _exit_code(found, gate)
    if gate is not None:
        _say(gated(found.result, gate, code == REACHED))
    raise typer.Exit(code)


@app.command()
@with_plan(without=("null", "metrics", "gallery"))
def tune(
    plan: Plan,
    budget: Annotated[int, typer.Option(help="Attack settings to try.", rich_help_panel=TUNING)] = BUDGET,
    rehearsals: Annotated[
        int | None, typer.Option(help=f"Simulated public clients; {REHEARSALS} by default.", rich_help_panel=TUNING)
    ] = None,
    objective: Annotated[
        Literal["ncc", "ssim", "psnr"], typer.Option(help="The score whose mean is maximised.", rich_help_panel=TUNING)
    ] = "ncc",
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Tune on the victims themselves: an upper bound.", rich_help_panel=TUNING)
    ] = False,
    out: Out = None,
    device: Device = "cpu",
    workers: Workers = None,
    ray: Address = None,
    gpus: Gpus = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print tuned.json.", rich_help_panel=RUN)] = False,
) -> None:
    """Choose an attack's settings on public pictures with a simulated client, before any victim is attacked.

    Takes the options of the audit to come. What you fix, as in --steps or --attack NAME,key=value, stays fixed.

    [bold]Example[/bold]

      leakmap tune --model resnet,blocks=1-1-1 --out runs/tuned

      leakmap audit --model resnet,blocks=1-1-1 --tuned runs/tuned/tuned.json
    """
    if oracle and rehearsals is not None:
        raise BadSetting("--oracle tunes on the victims themselves; leave --rehearsals out.")
    public = 0 if oracle else REHEARSALS if rehearsals is None else rehearsals
    folder = out or Path("runs") / f"tune-{_digest(plan)}"
    runner = runner_of(workers, device, ray, gpus)
    with progress_bar() as progress:
        found = search(
            plan,
            prepare(_named(plan), device=runner.here.device, rehearsals=public, progress=progress),
            Store(folder),
            budget=budget,
            objective=objective,
            oracle=oracle,
            runner=runner,
            progress=progress,
        )
    file = folder / "tuned.json"
    if as_json:
        typer.echo(file.read_text(encoding="utf-8"), nl=False)
        return
    console = Console()
    describe_tuned(found, console)
    console.print(f"\nSettings: {file}\nNext: {command(found.applied_to(plan, file))}", soft_wrap=True, highlight=False)


@app.command("inspect")
def inspect_(
    model: Annotated[str, typer.Argument(help="NAME[,key=value…] or path/to/file.py:function.")],
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the pictures; 224 for torchvision and timm, else 32.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Channels of the pictures.")] = 3,
    classes: Annotated[int, typer.Option(help="Outputs of the model.")] = 10,
    weights: Annotated[Path | None, typer.Option(help="safetensors, or a torch checkpoint.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Read an architecture's traits and say what each is expected to mean for leakage; attacks nothing.

    [bold]Examples[/bold]

      leakmap inspect resnet,preact=true

      leakmap inspect torchvision/vit_b_16 --weights mine.safetensors --classes 1000
    """
    size = image_size or (224 if model.startswith(("torchvision/", "timm/")) else 32)
    network = drawn(build_network(task_of(channels, size, classes), model, weights=weights))
    traits, console = read_traits(network), Console()
    if as_json:
        typer.echo(json.dumps(as_dict(network, traits, probe_update(network)), indent=2, ensure_ascii=False))
        return
    describe_traits(network, traits, console, [nearest_measured])
    describe_probe(probe_update(network), console)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for results; the same folder resumes.")] = Path("runs/demo"),
    workers: Workers = None,
) -> None:
    """One client that leaks and one that resists, on built-in photographs, in a few minutes."""
    with progress_bar() as progress:
        found, report = demonstrate(out, runner=runner_of(workers), progress=progress)
    console = Console()
    for title, result in found.items():
        console.print(f"\n[bold]{title}[/bold]")
        describe(result.result, console)
    console.print(f"\nReport: {report}", soft_wrap=True)


@app.command("list")
def list_(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a page of documentation.")] = False,
) -> None:
    """Every model, data source, defence, attack, label rule and metric, with its settings."""
    if markdown:
        typer.echo(catalogue.markdown(), nl=False)
        return
    console = Console(highlight=False)
    for entry in catalogue.catalogue():
        console.print(f"[dim]{entry.kind}[/] [bold]{entry.name}[/]  {escape(entry.summary)}")
        if entry.applies:
            console.print(Padding(f"[dim]applies[/] {escape(entry.applies)}", (0, 0, 0, 4)))
        if entry.settings:
            console.print(Padding(escape(", ".join(entry.settings)), (0, 0, 0, 4)))
    for kind, name, reason in catalogue.broken():
        console.print(f"[dim]{kind}[/] [bold]{escape(name)}[/]  could not be loaded: {escape(reason)}")


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="As a page of documentation.")] = False,
) -> None:
    """The JSON Schema of result.json, for programs that read it."""
    typer.echo(result_page() if markdown else json.dumps(result_schema(), indent=2), nl=not markdown)


def _named(plan: Plan) -> Plan:
    """The plan, if it names a model.

    Raises:
        BadSetting: it does not.
    """
    if not plan.model:
        raise BadSetting("Give --model NAME, or --observation FILE with what a real client sent.")
    return plan


def _digest(plan: Plan) -> str:
    return hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()[:8]


def _tell(found: Audit, folder: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(found.result.as_json())
        return
    console = Console()
    describe(found.result, console)
    console.print(f"\nReport: {folder / 'report.html'}", soft_wrap=True)


def _exit_code(found: Audit, gate: str | None) -> int:
    if gate is None:
        return 0
    if found.level == "inconclusive":
        return INCONCLUSIVE
    order = list[str](LEVELS)
    return REACHED if order.index(found.level) >= order.index(gate) else 0


def main() -> NoReturn:
    """The entry point: turns every error of ours into one sentence and exit code 3."""
    try:
        code = app(standalone_mode=False)
    except (LeakmapError, OSError) as error:
        _say(f"Error: {error}")
        code = BAD_INPUT
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        show = getattr(error, "format_message", None)
        if show is None:
            raise
        _say(f"Error: {show()} Try 'leakmap audit --help'.")
        code = BAD_INPUT
    if code == INTERRUPTED:
        _say("Interrupted. What is finished is kept; the same command continues.")
    sys.exit(code or 0)


def _say(text: str) -> None:
    Console(stderr=True, highlight=False, markup=False).print(text, soft_wrap=True)
