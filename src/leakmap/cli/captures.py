"""``leakmap facts``, ``capture``, ``doctor``, ``attack`` and ``watch``: what is done with real updates."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from leakmap.attacker.attacks import DEFAULT
from leakmap.auditing.captured import held_pictures, read_observation, typed_code
from leakmap.capturing.capture import capture
from leakmap.capturing.facts import Facts, RuleFacts, as_toml, read_facts
from leakmap.capturing.files import order_of, read_order, read_state
from leakmap.cli.runners import Device, Workers, runner_of
from leakmap.cli.terminal import COLOURS, progress_bar
from leakmap.doctor.attacking import attack_file, key_of
from leakmap.doctor.checks import check
from leakmap.doctor.finding import Finding
from leakmap.doctor.replay import replay
from leakmap.doctor.watching import PAUSE, Watch, look
from leakmap.errors import BadSetting, ObservationError
from leakmap.models.network import build_network
from leakmap.observation.observation import Observation
from leakmap.plan.written import plan_of
from leakmap.registry.spec import Spec
from leakmap.report.page import number

File = Annotated[Path, typer.Argument(help="An Observation file.")]
Model = Annotated[str | None, typer.Option(help="Your own file.py:function, where the file names one.")]
OwnLoss = Annotated[str | None, typer.Option("--loss", help="Your own file.py:function, where the file names one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MARKS = {"fine": "[green]fine  [/]", "notice": "[yellow]notice[/]", "wrong": "[bold red]wrong [/]"}


def facts_(
    model: Annotated[str, typer.Argument(help="NAME[,key=value…] or path/to/file.py:function.")],
    shape: Annotated[str, typer.Option(help="Channels, height and width of an input.")] = "3,32,32",
    classes: Annotated[int, typer.Option(help="Outputs of the model.")] = 10,
) -> None:
    """Print a file of facts to complete: what an update cannot tell about itself.

    [bold]Example[/bold]

      leakmap facts torchvision/resnet18 --shape 3,64,64 > facts.toml
    """
    try:
        channels, height, width = map(int, shape.split(","))
    except ValueError:
        raise BadSetting(f"--shape takes channels, height and width, such as 3,32,32; got {shape!r}.") from None
    found = Facts(
        model=model,
        shape=(channels, height, width),
        classes=classes,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        rule=RuleFacts(),
    )
    build_network(found.task, model)
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
    model: Model = None,
    loss: OwnLoss = None,
) -> None:
    """Make an Observation of what a server sent and a client returned.

    Arrays without names are taken in the order of the model's state dict, or in that of --order.

    [bold]Example[/bold]

      leakmap capture --before global.pt --after client-3.pt --facts facts.toml --out client-3.safetensors
    """
    told = read_facts(facts)
    told = told.model_copy(update={name: own for name, own in (("model", model), ("loss", loss)) if own is not None})
    code = typed_code(facts, told.task, Spec.parse(told.model), model, loss)
    names = order_of(told, code) if order is None else read_order(order)
    observation = capture(
        read_state(before, names), read_state(after, names), told, kind=kind, count=count, code=code, file=out
    )
    _tell_findings(observation, check(observation), f"{out} written.")


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

    Exit codes: 0 nothing wrong; 1 something is; 3 wrong input.

    [bold]Examples[/bold]

      leakmap doctor client-0.safetensors

      leakmap doctor client-0.safetensors --replay npz:client-0.npz --fixed repaired.safetensors
    """
    observation = read_observation(file, model, loss)
    findings = check(observation)
    replayed = None
    if replay_on is not None:
        with progress_bar() as progress:
            batch = held_pictures(replay_on, observation.network.task)
            replayed = replay(observation, batch, lambda fraction: progress("replaying", fraction))
    if fixed is not None:
        if replayed is None or replayed.corrected is None:
            raise BadSetting("Nothing to write with --fixed: the replay found no other facts that explain the update.")
        replayed.corrected.to_file(fixed)
    wrong = any(one.level == "wrong" for one in (*findings, *([replayed] if replayed else [])))
    if as_json:
        content = {"findings": [asdict(finding) for finding in findings], "replay": replayed and replayed.as_dict()}
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _tell_findings(observation, findings, f"{file}")
        if replayed is not None:
            told = f"{MARKS[replayed.level]} [bold]replay[/] {escape(replayed.sentence)}"
            Console().print(Padding(told, (0, 0, 0, 2)), highlight=False)
    raise typer.Exit(int(wrong))


def _tell_findings(observation: Observation, findings: list[Finding], title: str) -> None:
    console = Console()
    network = observation.network
    console.print(
        f"{title} {observation.update.kind} of {network.model}, {len(observation.update.tensors)} tensors",
        soft_wrap=True,
    )
    for finding in sorted(findings, key=lambda finding: list(MARKS).index(finding.level)):
        text = f"{MARKS[finding.level]} [bold]{finding.name}[/] {escape(finding.sentence)}"
        console.print(Padding(text, (0, 0, 0, 2)), highlight=False)


def attack_(
    file: File,
    how: Annotated[str, typer.Option("--attack", help="NAME[,key=value…].")] = DEFAULT,
    steps: Annotated[int | None, typer.Option(help="Iterations.")] = None,
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
    observation = read_observation(file, model, loss).to(device)
    spec = Spec.parse(how)
    spec = spec if steps is None else Spec(spec.name, spec.params | {"steps": steps})
    folder = out or Path("runs") / f"attack-{key_of(observation, spec, seed)[:8]}"
    with progress_bar() as progress:
        found = attack_file(
            observation, spec, folder, seed=seed, progress=lambda fraction: progress("attacking", fraction)
        )
    if as_json:
        typer.echo(json.dumps(found.record, indent=2, ensure_ascii=False))
        return
    console, record = Console(), found.record
    told = " (found finished)" if found.resumed else ""
    console.print(
        f"{record['attack']}: {record['pictures']} pictures in {record['seconds']:.1f} s{told}, "
        f"matching term {number(record['objective'])}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"Pictures: {found.folder / 'pictures.png'}", soft_wrap=True, highlight=False)


def watch(
    folder: Annotated[
        Path, typer.Argument(help="Folder in which captures arrive, as round-0001/client-0.safetensors.")
    ],
    truth: Annotated[
        Path | None, typer.Option(help="Folder with the clients' pictures: client-0.npz, or a folder client-0.")
    ] = None,
    others: Annotated[str | None, typer.Option(help="Pictures of the same kind that no client held.")] = None,
    how: Annotated[str, typer.Option("--attack", help="NAME[,key=value…].")] = "inverting_gradients",
    labels: Annotated[
        Literal["unknown", "counts", "known"], typer.Option(help="What the server knows of the labels.")
    ] = "unknown",
    model: Model = None,
    loss: OwnLoss = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results; the same folder continues.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once, then stop.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 0,
    workers: Workers = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Audit a folder of captures as they arrive, and draw leakage against the round. The same command continues.

    [bold]Example[/bold]

      leakmap watch captures --truth pictures --others folder:PUBLIC --once
    """
    if not folder.is_dir():
        raise ObservationError(f"There is no folder {folder} to watch.")
    typed = {
        "model": model or "",
        "loss": loss or "cross_entropy",
        "threat.labels": labels,
        "attack": how,
        "seed": seed,
    }
    own = Watch(
        folder,
        out or Path("runs") / f"watch-{folder.resolve().name}",
        plan_of(typed),
        truth,
        others,
        runner_of(workers, device),
    )
    with progress_bar() as progress:
        rows = look(own, progress)
        while not once:
            progress("waiting for captures", 1.0)
            time.sleep(PAUSE)
            rows = look(own, progress)
    if as_json:
        typer.echo(json.dumps([row.model_dump(mode="json") for row in rows], indent=2, ensure_ascii=False))
        return
    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("capture", "verdict", "line-up score", "over best floor"):
        table.add_column(heading)
    told: dict[str, list[str]] = {}
    for row in rows:
        colour = COLOURS.get(row.level or "", "dim")
        gain = "–" if row.gain is None else f"{row.gain:+.1f} dB"
        table.add_row(row.name, f"[{colour}]{row.level or '–'}[/]", number(row.rank_score), gain)
        for finding in row.findings:
            if finding.level == "wrong":
                told.setdefault(f"{finding.name}: {finding.sentence}", []).append(row.name)
        if row.note:
            told.setdefault(row.note, []).append(row.name)
    console.print(table)
    for text, names in told.items():
        where = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        console.print(Padding(f"[dim]{where}[/] {escape(text)}", (0, 0, 0, 2)), highlight=False)
    console.print(f"\nReport: {own.out / 'watch.html'}", soft_wrap=True)
