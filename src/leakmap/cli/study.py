"""``leakmap study``: run, status, report, export, merge."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

import leakmap
from leakmap.cli.options import AsJson
from leakmap.cli.parsing import Command
from leakmap.cli.runners import Address, Device, Gpus, Workers, runner_of, workers_of
from leakmap.cli.terminal import Terminal, foretell_time, many, progress_bar
from leakmap.plan.plan import Progress
from leakmap.units import duration

if TYPE_CHECKING:
    from leakmap.study.running import Foretold

app = typer.Typer(
    help="Run many audits, the product of the axes of a study file; resume them, share them out, report on them.",
    no_args_is_help=True,
    suggest_commands=False,
    rich_markup_mode="rich",
)
File = Annotated[
    Path, typer.Argument(metavar="STUDY", help="A study file (TOML), or the name of one that comes with leakmap.")
]
Scale = Annotated[str | None, typer.Option(help="Which scale of the file to use: NAME of its table scale.NAME.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the study; by default runs/NAME-OF-THE-FILE.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many runs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Count the runs and estimate their time; run nothing.")]
Filters = Annotated[
    list[str] | None, typer.Option("--only", metavar="AXIS=VALUE", help="Only the cells with this value; repeatable.")
]


@app.command("list", cls=Command)
def list_() -> None:
    """Name the studies that come with leakmap, and what each asks."""
    found = leakmap.studies()
    for name, title in found.items():
        typer.echo(f"{name:{max(map(len, found))}}  {title}")


@app.command(cls=Command)
def run(
    file: File,
    scale: Scale = None,
    out: Out = None,
    limit: Limit = None,
    filters: Filters = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only the I-th of N parts of the runs.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed runs again.")] = False,
    dry_run: DryRun = False,
    workers: Workers = None,
    device: Device = "cpu",
    ray: Address = None,
    gpus: Gpus = 0.0,
    as_json: AsJson = False,
) -> None:
    """Run what is missing. The same command continues, whatever stopped it.

    [bold]Examples[/bold]

      leakmap study run first-look --dry-run

      leakmap study run first-look --only client.mode=eval --limit 40

      leakmap study run map.toml --shard 3/16 --out shard-3     (then: leakmap study merge all shard-*)

      leakmap study run map.toml --ray auto --gpus 0.25
    """
    from leakmap.study.standing import status_of

    folder, runner = _folder(file, out), runner_of(workers, device, ray, gpus)
    with progress_bar() as progress:
        study = _read(file, scale, progress)
        if dry_run:
            found = leakmap.study_status(study, folder, filters=filters or (), progress=progress)
        else:
            stands = leakmap.run_study(
                study,
                folder,
                runner,
                filters=filters or (),
                shard=shard,
                limit=limit,
                retry_failed=retry_failed,
                progress=progress,
                foretold=_foretold(None if ray else workers_of(workers, device)),
            )
            found = status_of(study, stands)
    _tell(found, folder, as_json, workers_of(workers, device))
    if not (dry_run or as_json or found.missing):
        Terminal().print(f"Next: {escape(_command('report', file, scale, out))}", soft_wrap=True)


@app.command(cls=Command)
def status(file: File, scale: Scale = None, out: Out = None, as_json: AsJson = False) -> None:
    """Say what is finished, failed and missing, and how long the rest will take.

    By the record of the last run, in seconds also for a million runs. Where there is none, or where the study has
    changed since, the study is planned again.
    """
    folder = _folder(file, out)
    found = leakmap.recorded_status(file, folder, scale)
    if isinstance(found, str):
        _warn(f"The study is planned again, as {found}.")
        with progress_bar() as progress:
            found = leakmap.study_status(_read(file, scale, progress), folder, progress=progress)
    _tell(found, folder, as_json, workers_of(None))


@app.command(cls=Command)
def report(
    file: File,
    scale: Scale = None,
    out: Out = None,
    workers: Workers = None,
    device: Device = "cpu",
    filters: Filters = None,
) -> None:
    """Write the report over all cells so far: one HTML file, and its figures as PNG and SVG."""
    folder, again = _folder(file, out), _command("run", file, scale, out)
    runner = runner_of(workers, device)
    with progress_bar() as progress:
        study = _read(file, scale, progress)
        path, why = leakmap.report_study(
            study, folder, filters=filters or (), command=again, runner=runner, progress=progress
        )
    for place, reason in why.items():
        _warn(f"{place} cannot be concluded: {reason}")
    typer.echo(f"Report: {path}")


@app.command(cls=Command)
def export(
    file: File,
    scale: Scale = None,
    out: Out = None,
    to: Annotated[Path | None, typer.Option(help="Folder for the tables; by default the study's.")] = None,
    kind: Annotated[Literal["csv", "parquet"], typer.Option("--format", help="csv, or parquet (pyarrow).")] = "csv",
    workers: Workers = None,
) -> None:
    """Write two tables: scores (a row for each picture of each run) and cells (a row for each audit)."""
    folder = _folder(file, out)
    with progress_bar() as progress:
        study = _read(file, scale, progress)
        paths = leakmap.export_study(study, folder, to, kind=kind, runner=runner_of(workers), progress=progress)
    for path in paths:
        typer.echo(str(path))


@app.command(cls=Command)
def merge(
    folder: Annotated[Path, typer.Argument(help="Folder to merge into; made if it does not exist.")],
    sources: Annotated[list[Path], typer.Argument(help="Folders of shards.")],
) -> None:
    """Bring the runs of several folders into one."""
    for source, count in leakmap.merge_study(folder, sources).items():
        typer.echo(f"{count:6d} runs from {source}")


def reproduce(
    paper: Annotated[str, typer.Argument(help="paper: arXiv 2508.19819.")],
    scale: Annotated[
        Literal["cpu", "gpu"], typer.Option(help="cpu takes hours on two cores; gpu is the full protocol.")
    ] = "cpu",
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Pictures in place of the built-in ones, as in an audit; a second time for pictures with objects."
        ),
    ] = None,
    claims: Annotated[
        list[str] | None, typer.Option("--claim", help="Only this claim, such as C1; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results; the same folder resumes.")] = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    workers: Workers = None,
    device: Device = "cpu",
    ray: Address = None,
    gpus: Gpus = 0.0,
    as_json: AsJson = False,
) -> None:
    """Run every claim of a paper and say which hold, for attacks that search and for any attack tried: page.md.

    Claims run one after the other. The outcome of each is a file in claims/, and a claim whose file is there, from the
    same study and pictures, is not run again.

    [bold]Examples[/bold]

      leakmap reproduce paper --scale cpu

      leakmap reproduce paper --claim C1 --claim C3 --data cifar10:DIR
    """
    from leakmap.study.paper import still_open
    from leakmap.study.paper_runs import parts_of, together

    folder = out or Path("runs") / f"{paper}-{scale}"
    runner = runner_of(workers, device, ray, gpus)
    if dry_run:
        with progress_bar() as progress:
            study = together(still_open(parts_of(paper, scale, data or (), claims or ()), folder, progress))
            found = leakmap.study_status(study, folder, progress=progress)
        _tell(found, folder, as_json, workers_of(workers, device))
        return
    with progress_bar() as progress:
        judged = leakmap.reproduce(
            paper,
            folder,
            scale=scale,
            data=data or (),
            claims=claims or (),
            limit=limit,
            runner=runner,
            here=runner_of(workers, device if ray is None else "cpu"),
            progress=progress,
            foretold=_foretold(None if ray else workers_of(workers, device)),
        )
    if as_json:
        typer.echo((folder / "claims.json").read_text(encoding="utf-8"))
        return
    console = Terminal(highlight=False)
    for one in judged:
        found = one.judgement
        outcomes = [column.outcome if column else "not run" for column in (found and found.search, found and found.any)]
        search, of_any = (f"[{COLOURS[outcome]}]{outcome:16}[/]" for outcome in outcomes)
        console.print(f"[bold]{one.claim.id:4}[/] {search} {of_any} {escape(one.claim.statement)}")
        if found is not None:
            why = found.any.why if found.search.why == found.any.why else f"{found.search.why} Any: {found.any.why}"
            console.print(Padding(f"[dim]{escape(why)}[/]", (0, 0, 0, 5)))
    console.print(f"\nPage: {escape(str(folder / 'page.md'))}", soft_wrap=True)


COLOURS = {"holds": "green", "does not hold": "red", "not informative": "yellow", "not run": "bright_black"}


def _read(file: Path, scale: str | None, progress: Progress) -> "leakmap.Study":
    progress("reading the study", 0.0)
    return leakmap.read_study(file, scale)


def _foretold(processes: int | None) -> "Foretold":
    """Says how long the runs of a study may take, those of a cluster in all."""

    def told(cells: int, runs: int, seconds: float) -> None:
        foretell_time(f"{many(cells, 'cell')}, {many(runs, 'run')}", seconds / (processes or 1), processes)

    return told


def _folder(file: Path, out: Path | None) -> Path:
    return out or Path("runs") / file.stem


def _command(verb: str, file: Path, scale: str | None, out: Path | None) -> str:
    options = [*(["--scale", scale] if scale else []), *(["--out", str(out)] if out else [])]
    return shlex.join(["leakmap", "study", verb, str(file), *options])


def _warn(text: str) -> None:
    Terminal(stderr=True, highlight=False, markup=False).print(text, soft_wrap=True)


def _tell(found: "leakmap.Status", folder: Path, as_json: bool, workers: int) -> None:
    left = found.seconds_left
    counts = {
        "cells": found.cells,
        "runs": found.runs,
        "finished": found.finished,
        "failed": len(found.failed),
        "missing": found.missing,
    }
    if as_json:
        failures = [{"key": key, "kind": kind, "message": text} for key, (kind, text) in found.failed.items()]
        facts: dict[str, Any] = {"title": found.title, "folder": str(folder), **counts, "failures": failures}
        if left is not None:
            facts["seconds_left"] = left
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    from leakmap.study.index import shown

    console = Terminal(highlight=False)
    console.print(f"[bold]{escape(found.title)}[/]")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim")
    table.add_column()
    for axis, values in found.axes.items():
        table.add_row(escape(axis), escape(", ".join(map(shown, values))))
    console.print(Padding(table, (0, 0, 0, 2)))
    console.print("  " + ", ".join(f"{value} {name}" for name, value in counts.items()))
    if left is not None and found.missing:
        share = f", {duration(left / workers)} with {workers} workers" if workers > 1 else ""
        console.print(f"  about {duration(left)} of computing left{share}")
    said: dict[tuple[str, str], int] = {}
    for failure in found.failed.values():
        said[failure] = said.get(failure, 0) + 1
    for (kind, text), count in sorted(said.items(), key=lambda item: -item[1])[:5]:
        console.print(Padding(f"[yellow]{count} failed[/] {escape(kind)}: {escape(text)}", (0, 0, 0, 2)))
    if found.failed:
        console.print("  [dim]--retry-failed runs them again[/]")
