"""The command line. Each command is one call of a public function; words and exit codes are all that is added."""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from leakmap import catalogue
from leakmap.attacker.attacks import DEFAULT
from leakmap.auditing import default_workers, perform
from leakmap.conclusion import Audit
from leakmap.defences import NONE
from leakmap.demo import demonstrate
from leakmap.errors import BadSetting, LeakmapError
from leakmap.inspection import drawn, probe_update, read_traits
from leakmap.inspection.probe import task_of
from leakmap.inspection.reference import notes as nearest_measured
from leakmap.inspection.text import as_dict, describe_probe, describe_traits
from leakmap.local import LocalRule
from leakmap.models.network import build_network
from leakmap.plan import Plan, command, local_batch
from leakmap.preparation import prepare
from leakmap.registry import Spec
from leakmap.scoring.verdict import LEVELS
from leakmap.store import Store
from leakmap.study.commands import app as study
from leakmap.study.commands import reproduce
from leakmap.terminal import describe, describe_tuned, progress_bar
from leakmap.threat import ThreatModel
from leakmap.tuned import read_tuned
from leakmap.tuning import BUDGET, REHEARSALS
from leakmap.tuning import tune as search
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


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"leakmap {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and stop.")
    ] = False,
) -> None:
    """Can the updates that federated clients send be turned back into their pictures?"""


MODEL, DATA, CLIENT = "Model", "Data", "Client"
SERVER, ATTACK, TUNING, RUN = "What the server sees", "Attack", "Tuning", "Run"

Out = Annotated[Path | None, typer.Option(help="Folder for results; the same one resumes.", rich_help_panel=RUN)]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.", rich_help_panel=RUN)]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes; 0: this one.", rich_help_panel=RUN)]


def _plan(
    model: Annotated[str, typer.Option(help="NAME[,key=value…] or path/to/file.py:function.", rich_help_panel=MODEL)],
    data: Annotated[
        str, typer.Option(help="samples, npz:FILE, folder:DIR, cifar10:DIR or coco:DIR.", rich_help_panel=DATA)
    ] = "samples",
    weights: Annotated[
        str | None, typer.Option(help="safetensors, or a torch checkpoint.", rich_help_panel=MODEL)
    ] = None,
    train_epochs: Annotated[int, typer.Option(help="Train briefly first.", rich_help_panel=MODEL)] = 0,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure fresh BatchNorm statistics first.", rich_help_panel=MODEL)
    ] = False,
    loss: Annotated[
        str,
        typer.Option(help="cross_entropy[,label_smoothing=E] or file.py:function.", rich_help_panel=MODEL),
    ] = "cross_entropy",
    image_size: Annotated[int | None, typer.Option(help="Crop and resize.", rich_help_panel=DATA)] = None,
    victims: Annotated[int, typer.Option(help="Clients to audit.", rich_help_panel=DATA)] = 12,
    batch_size: Annotated[int, typer.Option(help="Pictures of each client.", rich_help_panel=DATA)] = 1,
    classes: Annotated[
        int | None, typer.Option(help="Outputs of the model, if not those of the data.", rich_help_panel=DATA)
    ] = None,
    normalise: Annotated[
        str, typer.Option(help="data, imagenet, cifar10 or MEAN/…:STD/….", rich_help_panel=DATA)
    ] = "data",
    mode: Annotated[
        Literal["train", "eval"], typer.Option(help="Of the client's network.", rich_help_panel=CLIENT)
    ] = "train",
    share: Annotated[
        Literal["gradient", "delta"], typer.Option(help="What it sends.", rich_help_panel=CLIENT)
    ] = "gradient",
    local_steps: Annotated[int, typer.Option(help="Mini-batches in an epoch.", rich_help_panel=CLIENT)] = 1,
    epochs: Annotated[int, typer.Option(help="Local epochs.", rich_help_panel=CLIENT)] = 1,
    lr: Annotated[float, typer.Option(help="Local learning rate.", rich_help_panel=CLIENT)] = 0.01,
    momentum: Annotated[float, typer.Option(help="Of SGD.", rich_help_panel=CLIENT)] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Local weight decay.", rich_help_panel=CLIENT)] = 0.0,
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"], typer.Option(help="Local optimiser.", rich_help_panel=CLIENT)
    ] = "sgd",
    dropout: Annotated[float | None, typer.Option(help="Replaces every rate.", rich_help_panel=CLIENT)] = None,
    accumulate: Annotated[int, typer.Option(help="Micro-batches of a step.", rich_help_panel=CLIENT)] = 1,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="A new order each epoch.", rich_help_panel=CLIENT)] = False,
    defence: Annotated[str, typer.Option(help="NAME[,key=value…].", rich_help_panel=CLIENT)] = NONE,
    labels: Annotated[
        Literal["unknown", "counts", "known"],
        typer.Option(help="Of the client's pictures.", rich_help_panel=SERVER),
    ] = "unknown",
    buffers: Annotated[bool, typer.Option(help="Returned BatchNorm buffers.", rich_help_panel=SERVER)] = True,
    public: Annotated[int, typer.Option(help="Public pictures it holds.", rich_help_panel=SERVER)] = 0,
    hint: Annotated[float, typer.Option(help="Share of true pixels; study of starts.", rich_help_panel=SERVER)] = 0.0,
    attack: Annotated[str, typer.Option(help="NAME[,key=value…].", rich_help_panel=ATTACK)] = DEFAULT,
    steps: Annotated[int | None, typer.Option(help="Iterations.", rich_help_panel=ATTACK)] = None,
    restarts: Annotated[int | None, typer.Option(help="Independent starts.", rich_help_panel=ATTACK)] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows.", rich_help_panel=RUN)] = 0,
) -> Plan:
    """The options that every command about a client takes, as a plan."""
    spec = Spec.parse(attack)
    chosen = {"steps": steps, "restarts": restarts}
    return Plan(
        model=model,
        data=data,
        rule=LocalRule(
            share=share,
            mode=mode,
            epochs=epochs,
            batch_size=local_batch(batch_size, local_steps),
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            optimizer=optimizer,
            dropout=dropout,
            accumulate=accumulate,
            shuffle=shuffle,
            defence=defence,
        ),
        threat=ThreatModel(labels, buffers=buffers, public=public, hint=hint),
        attack=Spec(spec.name, spec.params | {key: value for key, value in chosen.items() if value is not None}),
        weights=weights,
        train_epochs=train_epochs,
        calibrate=calibrate,
        image_size=image_size,
        victims=victims,
        batch_size=batch_size,
        classes=classes,
        normalise=normalise,
        loss=loss,
        seed=seed,
    )


def _with_plan(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of :func:`_plan` in front of its own, and hands it the plan they make."""
    shared = inspect.signature(_plan).parameters
    own = [p for name, p in inspect.signature(function).parameters.items() if name != "plan"]

    @wraps(function)
    def called(**values: Any) -> None:
        plan = _plan(**{name: values.pop(name) for name in shared})
        function(plan, **values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*shared.values(), *own)]
    called.__dict__["__signature__"] = inspect.Signature(parameters)
    return called


@app.command()
@_with_plan
def audit(
    plan: Plan,
    tuned: Annotated[
        Path | None, typer.Option(help="Settings from leakmap tune: its tuned.json.", rich_help_panel=ATTACK)
    ] = None,
    control: Annotated[
        Literal["none", "swapped"],
        typer.Option(help="swapped: a null audit, updates of other pictures.", rich_help_panel=ATTACK),
    ] = "none",
    metric: Annotated[
        list[str] | None, typer.Option(help="Besides PSNR and SSIM; repeatable.", rich_help_panel=RUN)
    ] = None,
    out: Out = None,
    device: Device = "cpu",
    workers: Workers = None,
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

    Exit codes: 0 done; with --gate 1 level reached, 2 inconclusive; 3 wrong input; 130 interrupted.
    """
    if gate is not None and gate not in LEVELS[1:]:
        raise BadSetting(f"--gate takes one of {', '.join(LEVELS[1:])}; got {gate!r}.")
    plan = replace(plan, control=control, metrics=tuple(metric or ()))
    if tuned is not None:
        plan = read_tuned(tuned).applied_to(plan, tuned)
    folder = out or Path("runs") / f"audit-{_digest(plan)}"
    with progress_bar() as progress:
        found = perform(
            plan,
            prepare(plan, device=device, progress=progress),
            Store(folder),
            workers=default_workers(device) if workers is None else workers,
            device=device,
            progress=progress,
        )
    _tell(found, folder, as_json)
    raise typer.Exit(_exit_code(found, gate))


@app.command()
@_with_plan
def tune(
    plan: Plan,
    budget: Annotated[int, typer.Option(help="Attack settings to try.", rich_help_panel=TUNING)] = BUDGET,
    rehearsals: Annotated[
        int | None, typer.Option(help=f"Simulated public clients; {REHEARSALS} by default.", rich_help_panel=TUNING)
    ] = None,
    objective: Annotated[
        Literal["likeness", "ssim", "psnr"], typer.Option(help="Its mean is maximised.", rich_help_panel=TUNING)
    ] = "likeness",
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Tune on the victims themselves: an upper bound.", rich_help_panel=TUNING)
    ] = False,
    out: Out = None,
    device: Device = "cpu",
    workers: Workers = None,
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
    with progress_bar() as progress:
        found = search(
            plan,
            prepare(plan, device=device, rehearsals=public, progress=progress),
            Store(folder),
            budget=budget,
            objective=objective,
            oracle=oracle,
            workers=default_workers(device) if workers is None else workers,
            device=device,
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
    channels: Annotated[int, typer.Option(min=1, help="Of the pictures.")] = 3,
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
    out: Annotated[Path, typer.Option(help="Folder for results; the same one resumes.")] = Path("runs/demo"),
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0: this one.")] = None,
) -> None:
    """One client that leaks and one that resists, on built-in photographs, in a few minutes."""
    with progress_bar() as progress:
        found, report = demonstrate(out, workers=default_workers() if workers is None else workers, progress=progress)
    console = Console()
    for title, result in found.items():
        console.print(f"\n[bold]{title}[/bold]")
        describe(result.result, console)
    console.print(f"\nReport: {report}", soft_wrap=True)


@app.command("list")
def list_(
    markdown: Annotated[bool, typer.Option("--markdown", help="As a page of documentation.")] = False,
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


def _digest(plan: Plan) -> str:
    return hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()[:8]


def _tell(found: Audit, folder: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.result, indent=2, ensure_ascii=False))
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
