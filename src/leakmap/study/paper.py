"""`leakmap reproduce`: every claim of a paper, one study file each, run and judged one after the other."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leakmap.files import write_json, write_text
from leakmap.plan.plan import Progress
from leakmap.report.study import Cell as Concluded
from leakmap.report.study import write_study
from leakmap.runs.runner import HERE, Runner
from leakmap.runs.store import Store
from leakmap.study.claims import SEARCH, Claim
from leakmap.study.estimate import prices, seconds_left
from leakmap.study.judgement import Judgement, fits, read_judgement, write_judgement
from leakmap.study.judging import judge_claim
from leakmap.study.paper_page import page
from leakmap.study.paper_runs import Laid, Part, laid_out, parts_of
from leakmap.study.results import conclusions
from leakmap.study.running import Foretold, run_study
from leakmap.study.standing import Standing, read_standing


@dataclass(frozen=True)
class Judged:
    """What became of a claim.

    Args:
        claim: What was claimed.
        judgement: What it came to; None where runs are missing.
    """

    claim: Claim
    judgement: Judgement | None


def still_open(parts: Sequence[Part], folder: Path, progress: Progress = lambda what, fraction: None) -> list[Laid]:
    """The claims that a folder does not hold the outcome of, as they stand and with these pictures.

    Args:
        parts: Claims with their studies.
        folder: Of results.
        progress: Called with what is being done and the finished fraction.

    Raises:
        UsageError: a study cannot be run as it is written.
        StoreError: a file with an outcome is not what leakmap wrote.
    """
    for part in parts:
        # What is damaged is said before anything is computed.
        read_judgement(folder, part.claim)
    laid = (laid_out(part, progress) for part in parts)
    return [one for one in laid if _known(one, folder) is None]


def _known(laid: Laid, folder: Path) -> Judgement | None:
    claim = laid.part.claim
    found = read_judgement(folder, claim)
    return found if found is not None and found.digest == laid.digest and fits(found, claim) else None


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
    """Runs what is missing for the claims of a paper, one after the other, and judges and reports each.

    A claim whose outcome is in the folder, from the same runs and pictures, is not run again, whether its runs are
    there or not: the few kilobytes of ``claims/`` are all that has to be kept.

    Args:
        paper: Its name.
        folder: For ``claims/``, ``claims.json``, ``page.md``, a report for each claim, and the runs; the same folder
            continues.
        scale: ``cpu``, or ``gpu`` for the full protocol.
        data: Sources of pictures in place of those in the files: one with classes, one with objects.
        claims: Only the claims of these names.
        limit: At most so many runs.
        runner: Where to run.
        here: Where to conclude: on this machine, which holds the folder.
        progress: Called with what is being done and the finished fraction.
        foretold: Called with what the runs of all open claims are about to take, where any are.

    Returns:
        What became of each claim, in order.

    Raises:
        UsageError: there is no such paper, scale or claim, or the pictures do not fit.
        StoreError: the folder holds results of another schema, or an outcome that leakmap did not write.
        KeyboardInterrupt: after storing what is finished.
    """
    every, command = parts_of(paper, scale, data), command_of(paper, scale, data)
    parts = [part for part in every if part.claim.id in {one.claim.id for one in parts_of(paper, scale, data, claims)}]
    Store(folder).check()
    open_ = still_open(parts, folder, progress)
    folder.mkdir(parents=True, exist_ok=True)
    left = limit
    if foretold is not None and open_:
        whole = read_standing([one for laid in open_ for own in laid.cells.values() for one in own], Store(folder))
        if runs := len(whole.missing[:limit]):
            seconds = seconds_left(whole, prices(whole, folder, progress))
            foretold(len(whole.planned), runs, seconds * runs / len(whole.missing))
    for laid in open_:
        before = after = laid.standing(folder)
        if before.missing and left != 0:
            after = run_study(laid.study, folder, runner, limit=left, progress=_of(laid, progress))
        left = None if left is None else left - (len(before.missing) - len(after.missing))
        if not after.missing:
            _judge(laid, after, folder, command, here, _of(laid, progress))
            _write(every, open_, folder, command)
    wanted = {part.claim.id for part in parts}
    return [one for one in _write(every, open_, folder, command) if one.claim.id in wanted]


def _of(laid: Laid, progress: Progress) -> Progress:
    return lambda what, fraction: progress(f"{laid.part.claim.id}: {what}", fraction)


def _judge(laid: Laid, done: Standing, folder: Path, command: str, here: Runner, progress: Progress) -> None:
    """Judges a claim all of whose runs are there, and writes its outcome and the report over its search."""
    part = laid.part
    concluded = {label: conclusions(own, folder, here, progress) for label, own in laid.cells.items()}
    cells = {label: own for label, (own, _) in concluded.items()}
    missing = {label: why for label, (_, why) in concluded.items() if why}
    search, of_any = judge_claim(part.claim, cells)
    if cells[SEARCH]:
        place = folder / part.path.stem
        study = part.study.resolved()
        write_study(place / "report.html", part.study.title, cells[SEARCH], study=study, command=command, figures=place)
    judgement = Judgement(
        id=part.claim.id,
        study=part.digest,
        digest=laid.digest,
        search=search,
        any=of_any,
        left_out={**laid.left_out, **_failed(cells), **_unconcluded(missing)},
        runs=len(laid.keys),
        seconds=sum(done.seconds.values()),
        versions=versions(folder),
    )
    write_judgement(folder, part.claim, judgement)


def _failed(cells: Mapping[str, Sequence[Concluded]]) -> dict[str, str]:
    """Attack that was tried -> how many of its runs failed, and why the first one did."""
    found: dict[str, str] = {}
    for label, own in cells.items():
        failures = [failure for cell in own for failure in cell.result.failures]
        if failures and label != SEARCH:
            found[label] = (
                f"{len(failures)} of its runs failed, the first with {failures[0].kind}: {failures[0].message}"
            )
    return found


def _unconcluded(missing: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Attack -> how many of its cells could not be concluded, and why the first one could not."""
    found: dict[str, str] = {}
    for label, why in missing.items():
        cell, reason = next(iter(why.items()))
        found[label] = f"{len(why)} of its cells could not be concluded, the first, {cell}, as {reason}"
    return found


def _write(parts: Sequence[Part], open_: Sequence[Laid], folder: Path, command: str) -> list[Judged]:
    """Writes the page and the outcomes from the files of the claims; returns what became of each.

    Claims that were not asked for are told from their files, if these are about the same study.
    """
    laid = {one.part.claim.id: one for one in open_}
    found: list[Judged] = []
    for part in parts:
        claim = part.claim
        told = _known(laid[claim.id], folder) if claim.id in laid else read_judgement(folder, claim)
        found.append(Judged(claim, told if told is not None and told.study == part.digest else None))
    rows = [{**one.claim.model_dump(), "judgement": one.judgement and one.judgement.model_dump()} for one in found]
    write_json(folder / "claims.json", rows)
    write_text(folder / "page.md", page([(one.claim, one.judgement) for one in found], command=command))
    return found


def versions(folder: Path) -> dict[str, str]:
    """Of what computed the first stored run."""
    store = Store(folder)
    outcomes = (store.read(key) for key in sorted(store.keys()))
    return next((outcome.versions for outcome in outcomes if outcome is not None and outcome.versions), {})


def command_of(paper: str, scale: str, data: Sequence[str]) -> str:
    """The command line."""
    return shlex.join(
        ["leakmap", "reproduce", paper, "--scale", scale, *(part for d in data for part in ("--data", d))]
    )
