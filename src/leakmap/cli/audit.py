"""``leakmap audit``, ``tune`` and ``demo``: what simulated clients leak, or captured ones."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

import leakmap
from leakmap.cli.defaults import Config
from leakmap.cli.gate import Baseline, Gate, Junit, Markdown, Sarif
from leakmap.cli.options import ATTACK, REAL, TUNING, Out, default_folder, with_plan
from leakmap.cli.runners import RUN, Address, Device, Gpus, Workers, runner_of, workers_of
from leakmap.cli.terminal import Terminal, foretell, foretell_time, progress_bar
from leakmap.client import REHEARSED
from leakmap.plan.plan import BUDGET, Captured, Plan


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
    gate: Gate = None,
    baseline: Baseline = None,
    junit: Junit = None,
    sarif: Sarif = None,
    markdown: Markdown = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json.", rich_help_panel=RUN)] = False,
) -> None:
    """Audit clients: what can be recovered from what they send, beside floors and controls.

    [bold]Examples[/bold]

      leakmap audit --model resnet,blocks=1-1-1,width=24,preact=true

      leakmap audit --model torchvision/resnet18 --data folder:DIR --image-size 64

      leakmap audit --model nets.py:build --data npz:FILE --gate partial

      leakmap audit --observation client-0.safetensors --truth npz:FILE --others folder:DIR

    Exit codes: 0 done; with --gate 1 level reached, with --baseline 1 worse, with both 2 inconclusive; 3 wrong input;
    4 an error without a result; 130 interrupted.
    """
    from leakmap.cli.verdicts import describe
    from leakmap.gate.asked import Files, asked

    if tuned is not None:
        plan = leakmap.read_tuned(tuned).applied_to(plan, tuned)
    real = None
    if observation or truth or others:
        real = Captured(tuple(map(str, observation or ())), tuple(truth or ()), others or "")
    folder = out or default_folder("audit", replace(plan, captured=real))
    runner = runner_of(workers, device, ray, gpus)
    gated = asked(gate, baseline, Files(junit, sarif, markdown), plan, folder, real=real is not None)
    with progress_bar() as progress:
        if real is None:
            found = leakmap.run_plan(plan, folder, runner=runner, progress=progress, foretold=foretell)
        else:
            files, truths = real.observations, real.truths
            found = leakmap.audit_captured(
                plan, files, truths, real.others, folder, runner=runner, progress=progress, foretold=foretell
            )
    if as_json:
        typer.echo(found.result.as_json())
    else:
        console = Terminal()
        describe(found.result, console)
        console.print(f"\nReport: {escape(str(folder / 'report.html'))}", soft_wrap=True)
    if gated is not None:
        finding = gated.answered(found.result)
        Terminal(stderr=True, highlight=False, markup=False).print(finding.line, soft_wrap=True)
        raise typer.Exit(finding.code)


@with_plan(without=("null", "metrics", "gallery", "budget"))
def tune(
    plan: Plan,
    budget: Annotated[int, typer.Option(help="Attack settings to try.", rich_help_panel=TUNING)] = BUDGET,
    rehearsals: Annotated[
        int | None, typer.Option(help=f"Simulated public clients; {REHEARSED} by default.", rich_help_panel=TUNING)
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
    from leakmap.cli.verdicts import describe_tuned
    from leakmap.plan.command import command

    folder = out or default_folder("tune", plan)
    runner = runner_of(workers, device, ray, gpus)
    with progress_bar() as progress:
        found = leakmap.tune(
            plan,
            folder,
            rehearsals=rehearsals,
            budget=budget,
            objective=objective,
            oracle=oracle,
            runner=runner,
            progress=progress,
            foretold=foretell,
        )
    file = folder / "tuned.json"
    if as_json:
        typer.echo(file.read_text(encoding="utf-8"), nl=False)
        return
    console = Terminal()
    describe_tuned(found, console)
    told = f"\nSettings: {file}\nNext: {command(found.applied_to(plan, file))}"
    console.print(escape(told), soft_wrap=True, highlight=False)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for results; the same folder resumes.")] = Path("runs/demo"),
    workers: Workers = None,
) -> None:
    """Four clients on built-in photographs, from an exact picture to noise, in a few minutes."""
    from leakmap.auditing.demo import AUDITS
    from leakmap.cli.verdicts import describe

    processes, seconds = workers_of(workers), sum(one.seconds for one in AUDITS)
    foretell_time(f"{len(AUDITS)} audits", seconds / processes, processes)
    with progress_bar() as progress:
        found, report = leakmap.demonstrate(out, runner=runner_of(workers), progress=progress)
    console = Terminal()
    for title, result in found.items():
        console.print(f"\n[bold]{title}[/bold]")
        describe(result.result, console)
    console.print(f"\nReport: {escape(str(report))}", soft_wrap=True)
