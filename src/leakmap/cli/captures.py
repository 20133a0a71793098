"""``leakmap facts``, ``capture``, ``doctor`` and ``attack``: what is done with one real update."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.padding import Padding

import leakmap
from leakmap.attacker.attacks import DEFAULT
from leakmap.cli.options import AsJson, Model, OwnLoss
from leakmap.cli.runners import Device
from leakmap.cli.terminal import Terminal, foretell_fit, progress_bar, results_apart
from leakmap.errors import BadSetting
from leakmap.problem import Target
from leakmap.registry.spec import Spec

if TYPE_CHECKING:
    from leakmap.doctor.finding import Finding

File = Annotated[Path, typer.Argument(help="An Observation file.")]
MARKS = {"fine": "[green]fine  [/]", "notice": "[yellow]notice[/]", "wrong": "[bold red]wrong [/]"}


def facts_(
    model: Annotated[str, typer.Argument(help="NAME[,key=value…] or path/to/file.py:function.")],
    shape: Annotated[str, typer.Option(help="Channels, height and width of an input.")] = "3,32,32",
    classes: Annotated[
        int | None, typer.Option(help="Outputs of the model; 10, or those of your own model, by default.")
    ] = None,
    target: Annotated[Literal["auto", Target], typer.Option(help="What a picture is labelled with.")] = "auto",
    output: Annotated[str, typer.Option(help="What of the model's outputs the loss takes: a name or a position.")] = "",
    loss: Annotated[str, typer.Option(help="Of the client, if not the usual one of the target.")] = "",
) -> None:
    """Print a file of facts to complete: what an update cannot tell about itself.

    [bold]Example[/bold]

      leakmap facts torchvision/resnet18 --shape 3,64,64 > facts.toml

      leakmap facts nets.py:build --shape 1,28,28 --target binary > facts.toml
    """
    from leakmap.capturing.facts import as_toml

    try:
        channels, height, width = map(int, shape.split(","))
    except ValueError:
        raise BadSetting(f"--shape takes channels, height and width, such as 3,32,32; got {shape!r}.") from None
    with results_apart():
        found = leakmap.facts_for(model, (channels, height, width), classes, loss=loss, target=target, output=output)
    typer.echo(as_toml(found), nl=False)


def capture_(
    before: Annotated[Path, typer.Option(help="What the server sent: safetensors, checkpoint or npz.")],
    after: Annotated[Path, typer.Option(help="What the client returned.")],
    facts: Annotated[
        Path, typer.Option(help="File of facts that the payload cannot tell; leakmap facts MODEL prints one.")
    ],
    out: Annotated[Path, typer.Option(help="The Observation file to write.")],
    kind: Annotated[
        Literal["weights", "delta", "gradient"], typer.Option(help="What the file of --after holds.")
    ] = "weights",
    count: Annotated[int | None, typer.Option(help="How many pictures the client holds.")] = None,
    order: Annotated[Path | None, typer.Option(help="Names of arrays without names, one on each line.")] = None,
    buffers: Annotated[bool, typer.Option(help="Keep the BatchNorm buffers that came back.")] = True,
    model: Model = None,
    loss: OwnLoss = None,
) -> None:
    """Make an Observation of what a server sent and a client returned.

    Names are brought to those of the model; arrays without names, or one flat vector, are named by the order of its
    state dict or parameters that fits them, or by that of --order.

    [bold]Example[/bold]

      leakmap capture --before global.pt --after client-3.pt --facts facts.toml --out client-3.safetensors
    """
    from leakmap.doctor.checks import check
    from leakmap.doctor.examine import concluded

    with results_apart():
        observation = leakmap.capture_files(
            before, after, facts, out, kind=kind, count=count, order=order, buffers=buffers, model=model, loss=loss
        )
        findings = check(observation)
    _tell_findings(observation, findings, f"{out} written.", concluded(findings))


def doctor(
    file: File,
    replay_on: Annotated[
        str | None, typer.Option("--replay", metavar="DATA", help="The client's own pictures, as for an audit.")
    ] = None,
    fixed: Annotated[Path | None, typer.Option(help="Write the file with the facts that explain the update.")] = None,
    model: Model = None,
    loss: OwnLoss = None,
    as_json: AsJson = False,
) -> None:
    """Check a captured update, and say which fact about it is wrong.

    Exit codes: 0 nothing wrong; 1 something is; 3 wrong input; 4 an error without a result.

    [bold]Examples[/bold]

      leakmap doctor client-0.safetensors

      leakmap doctor client-0.safetensors --replay npz:client-0.npz --fixed repaired.safetensors
    """
    with progress_bar() as progress:
        found = leakmap.examine(file, replay=replay_on, model=model, loss=loss, fixed=fixed, progress=progress)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        _tell_findings(found.observation, found.findings, f"{file}:", found.conclusion)
        if found.replayed is not None:
            told = f"{MARKS[found.replayed.level]} [bold]replay[/] {escape(found.replayed.sentence)}"
            Terminal().print(Padding(told, (0, 0, 0, 2)), highlight=False)
    raise typer.Exit(int(found.wrong))


def _tell_findings(
    observation: "leakmap.Observation", findings: "Sequence[Finding]", title: str, conclusion: str
) -> None:
    console = Terminal()
    network = observation.network
    console.print(
        f"{escape(title)} {observation.update.kind} of {escape(str(network.model))}, "
        f"{len(observation.update.tensors)} tensors",
        soft_wrap=True,
    )
    console.print(f"[bold]{escape(conclusion)}[/]", highlight=False)
    for finding in sorted(findings, key=lambda finding: list(MARKS).index(finding.level)):
        text = f"{MARKS[finding.level]} [bold]{finding.name}[/] {escape(finding.sentence)}"
        console.print(Padding(text, (0, 0, 0, 2)), highlight=False)


def attack_(
    file: File,
    how: Annotated[str, typer.Option("--attack", help="NAME[,key=value…] or path/to/file.py:function.")] = DEFAULT,
    steps: Annotated[int | None, typer.Option(help="Iterations.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Classes of the client's pictures, as 3,0,7, where the server knows them.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="How many pictures the client has, if the file lacks it.")] = None,
    buffers: Annotated[bool, typer.Option(help="Use the BatchNorm buffers that came back.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result; what is finished there is not run again.")
    ] = None,
    model: Model = None,
    loss: OwnLoss = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Attack an Observation file, as an honest-but-curious server would. Nothing but the file is read.

    Only leakmap audit --observation, which is given the client's pictures, can score the result.

    [bold]Example[/bold]

      leakmap attack client-0.safetensors --attack inverting_gradients --steps 500
    """
    from leakmap.doctor.attacking import as_known
    from leakmap.report.page import number

    spec = Spec.parse(how)
    spec = spec if steps is None else Spec(spec.name, spec.params | {"steps": steps})
    try:
        known = None if labels is None else [int(label) for label in labels.split(",")]
    except ValueError:
        raise BadSetting(f"--labels takes the class of each picture, such as 3,0,7; got {labels!r}.") from None
    observation = as_known(
        leakmap.read_observation(file, model, loss).to(device), labels=known, count=count, buffers=buffers
    )
    with progress_bar() as progress:
        found = leakmap.attack_file(observation, spec, out, seed=seed, progress=progress, foretold=foretell_fit)
    if as_json:
        typer.echo(json.dumps(found.record, indent=2, ensure_ascii=False))
        return
    console, record = Terminal(), found.record
    told = " (found finished)" if found.resumed else ""
    console.print(
        f"{record['attack']}: {record['pictures']} pictures in {record['seconds']:.1f} s{told}, "
        f"matching term {number(record['objective'])}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"Pictures: {escape(str(found.folder / 'pictures.png'))}", soft_wrap=True, highlight=False)
