"""`leakmap reproduce`: every claim of a paper, one study file each, judged on one page."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from leakmap.client.data import holds_objects
from leakmap.errors import BadSetting
from leakmap.files import write_json, write_text
from leakmap.plan.plan import Progress
from leakmap.registry.spec import near_misses
from leakmap.report.markdown import wrapped
from leakmap.report.page import interval
from leakmap.report.study import write_study
from leakmap.runs.runner import HERE, Runner
from leakmap.runs.store import Store
from leakmap.study.claims import UNITS, Claim, Judged, Shown, judge_claim, read_claim
from leakmap.study.file import Study, read_study
from leakmap.study.planning import planned
from leakmap.study.results import conclusions
from leakmap.study.running import Foretold, run_study
from leakmap.study.shipped import folder as folder_of_studies

PAPERS = ("paper",)
SCALES = ("cpu", "gpu")


@dataclass(frozen=True)
class Part:
    """A claim with its study.

    Args:
        path: The study file.
        study: The study at the chosen scale.
        claim: What it should show.
    """

    path: Path
    study: Study
    claim: Claim


def parts_of(paper: str, scale: str, data: Sequence[str] = (), wanted: Sequence[str] = ()) -> list[Part]:
    """The claims of a paper, in order.

    Args:
        paper: Its name.
        scale: ``cpu``, or ``gpu`` for the full protocol.
        data: Sources of pictures in place of those in the files: one with classes, one with objects.
        wanted: Only the claims of these names.

    Raises:
        BadSetting: there is no such paper, scale or claim.
    """
    if paper not in PAPERS:
        raise BadSetting(f"There is no paper {paper!r} to reproduce; {near_misses(paper, PAPERS)}")
    if scale not in SCALES:
        raise BadSetting(f"A scale is one of {', '.join(SCALES)}; got {scale!r}.")
    found = []
    for path in sorted((folder_of_studies() / paper).glob("*.toml")):
        study = read_study(path, scale if scale == "cpu" else None)
        cells = tuple(
            replace(cell, plan=replace(cell.plan, data=_in_place(cell.plan.data, data))) for cell in study.cells
        )
        study = replace(study, cells=cells)
        found.append(Part(path, study, read_claim(study.claim, study.axes)))
    known = [part.claim.id for part in found]
    if strange := [name for name in wanted if name not in known]:
        raise BadSetting(f"There is no claim {strange[0]!r}; {near_misses(strange[0], known)}")
    return [part for part in found if not wanted or part.claim.id in wanted]


def _in_place(own: str, data: Sequence[str]) -> str:
    """The given source of the same kind of pictures, else the own one."""
    return next((source for source in data if holds_objects(source) == holds_objects(own)), own)


def together(parts: Sequence[Part]) -> Study:
    """All cells of all claims as one study: what several claims look at is run once."""
    return Study("Claims", tuple(cell for part in parts for cell in part.study.cells))


def reproduce(
    paper: str,
    folder: Path,
    *,
    scale: str = "cpu",
    data: Sequence[str] = (),
    claims: Sequence[str] = (),
    limit: int | None = None,
    runner: Runner = HERE,
    here: Runner = HERE,
    progress: Progress = lambda what, fraction: None,
    foretold: Foretold | None = None,
) -> list[Judged]:
    """Runs what is missing for the claims of a paper, and judges and reports them.

    Args:
        paper: Its name.
        folder: For ``claims.json``, ``page.md``, a report for each claim, and the runs; the same folder continues.
        scale: ``cpu``, or ``gpu`` for the full protocol.
        data: Sources of pictures in place of those in the files: one with classes, one with objects.
        claims: Only the claims of these names.
        limit: At most so many runs.
        runner: Where to run.
        here: Where to conclude: on this machine, which holds the folder.
        progress: Called with what is being done and the finished fraction.
        foretold: Called with what is about to start, where anything is; None times no network.

    Returns:
        What became of each claim, in order.

    Raises:
        UsageError: there is no such paper, scale or claim, or the pictures do not fit.
        StoreError: the folder holds results of another schema.
        KeyboardInterrupt: after storing what is finished.
    """
    parts, command = parts_of(paper, scale, data, claims), command_of(paper, scale, data)
    run_study(together(parts), folder, runner, limit=limit, progress=progress, foretold=foretold)
    judged = [_judged(part, folder, command, here, progress) for part in parts]
    write_judged(folder / "claims.json", judged)
    write_text(folder / "page.md", page(judged, command=command, ran_on=ran_on(folder)))
    return judged


def _judged(part: Part, folder: Path, command: str, here: Runner, progress: Progress) -> Judged:
    """Judges a claim by its concluded cells, and writes the report over them."""
    cells, _ = conclusions(planned(part.study), folder, here, progress)
    judged, place = judge_claim(part.claim, cells), folder / part.path.stem
    write_study(
        place / "report.html",
        part.study.title,
        cells,
        study=part.study.resolved(),
        command=command,
        figures=place,
    )
    return judged


def versions(folder: Path) -> dict[str, str]:
    """Of what computed the first stored run."""
    store = Store(folder)
    outcomes = (store.read(key) for key in sorted(store.keys()))
    return next((outcome.versions for outcome in outcomes if outcome is not None and outcome.versions), {})


def ran_on(folder: Path) -> str:
    """Versions, device, number of runs and what they took."""
    store = Store(folder)
    seconds = [outcome.seconds for outcome in map(store.read, store.keys()) if outcome is not None]
    told = ", ".join(f"{name} {version}" for name, version in versions(folder).items())
    return f"{told}; {len(seconds):,} runs, {sum(seconds) / 3600:.1f} hours of computing on one core each"


def page(judged: Sequence[Judged], *, command: str, ran_on: str) -> str:
    """The outcome of every claim in Markdown: a line each, then every comparison.

    Args:
        judged: What became of each claim.
        command: The command that repeats it.
        ran_on: Hardware and versions.
    """
    lines = [
        "# The paper's claims",
        "",
        f"    {command}",
        "",
        "Each claim is a study file that names its comparisons and its rule before it runs. *holds*: every comparison "
        "passes. *does not hold*: a comparison is shown to be smaller than what would matter (0.5 dB, 0.05 of the "
        "line-up score, 0.1 of the first ranks). *not informative*: nothing leaked more than chance, there are too few "
        "clients, or an interval leaves it open. A comparison is a difference between cells, client by client, with a "
        "95 % bootstrap interval over clients; n counts clients. The line-up score is the share of the other "
        "candidates that the true picture beats: 0.5 is chance.",
        "",
        f"{ran_on}.",
        "",
        "| claim | | outcome | pass | the comparison that decides | effect [95 %] | n |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in judged:
        decides = min(one.shown, key=lambda shown: ("fails", "open", "passes").index(shown.says), default=None)
        told = ["–", "–", "–"] if decides is None or decides.effect is None else _told(one.claim, decides)
        passed = f"{sum(shown.says == 'passes' for shown in one.shown)} of {len(one.shown)}"
        lines.append(f"| {one.claim.id} | {one.claim.statement} | **{one.outcome}** | {passed} | {' | '.join(told)} |")
    lines += [
        "",
        "The comparison that decides is the first that fails, else the first that is open, else the first.",
    ]
    for one in judged:
        lines += ["", f"## {one.claim.id}: {one.outcome}", "", one.claim.statement, "", f"Source: {one.claim.source}."]
        lines += ["", f"Expected: {one.claim.expected}.", "", one.why]
        lines += ["", one.claim.note] if one.claim.note else []
        lines += ["", f"    {command} --claim {one.claim.id}", ""]
        lines += [
            "| comparison | effect [95 %] | p | line-up score [95 %] | n | |",
            "|---|---|---|---|---|---|",
        ]
        for shown in one.shown:
            if shown.effect is not None and shown.ranks is not None:
                name, effect, count = _told(one.claim, shown)
                ranks = interval(shown.ranks.difference)
                lines.append(f"| {name} | {effect} | {shown.effect.p:.2g} | {ranks} | {count} | {shown.says} |")
    return wrapped("\n".join(lines)) + "\n"


def _told(claim: Claim, shown: Shown) -> list[str]:
    assert shown.effect is not None
    value = shown.contrast.value or claim.value
    unit = f" {UNITS[value]}" if value in UNITS else ""
    return [shown.contrast.name, f"{interval(shown.effect.difference)}{unit}", str(shown.effect.clients)]


def write_judged(path: Path, judged: Sequence[Judged]) -> None:
    """Writes the outcomes as JSON."""
    rows: list[dict[str, Any]] = [{**one.claim.model_dump(), "outcome": one.outcome, "why": one.why} for one in judged]
    for row, one in zip(rows, judged, strict=True):
        row["contrasts"] = [
            {
                **shown.contrast.model_dump(),
                "effect": shown.effect and asdict(shown.effect),
                "ranks": shown.ranks and asdict(shown.ranks),
                "says": shown.says,
            }
            for shown in one.shown
        ]
    write_json(path, rows)


def command_of(paper: str, scale: str, data: Sequence[str]) -> str:
    """The command line."""
    return shlex.join(
        ["leakmap", "reproduce", paper, "--scale", scale, *(part for d in data for part in ("--data", d))]
    )
