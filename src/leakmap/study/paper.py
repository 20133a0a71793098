"""`leakmap reproduce`: every claim of a paper, one study file each, run and judged one after the other."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from leakmap.attacker.attacks import attacks
from leakmap.client.data import holds_objects
from leakmap.errors import BadSetting, DataError, UsageError
from leakmap.files import write_json, write_text
from leakmap.plan.plan import Progress
from leakmap.registry.spec import Spec, near_misses
from leakmap.report.study import Cell as Concluded
from leakmap.report.study import write_study
from leakmap.runs.runner import HERE, Runner
from leakmap.runs.store import Store
from leakmap.study.claims import SEARCH, Claim, Tried, read_claim, stands
from leakmap.study.estimate import prices, seconds_left
from leakmap.study.file import Cell, Study, read_study
from leakmap.study.judgement import Judgement, fits, read_judgement, write_judgement
from leakmap.study.judging import judge_claim
from leakmap.study.paper_page import page
from leakmap.study.planning import Planned, planned
from leakmap.study.results import conclusions
from leakmap.study.running import Foretold, run_study
from leakmap.study.shipped import folder as folder_of_studies
from leakmap.study.standing import Standing, read_standing

PAPERS = ("paper",)
SCALES = ("cpu", "gpu")
TITLE = "Claims"
"""Of all claims as one study, whose runs share a folder: what several claims look at is run once."""


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

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every audit, whatever the source of its pictures is called, and of the rules of the claim."""
        plans = [{**asdict(cell.plan), "data": holds_objects(cell.plan.data)} for cell in self.study.cells]
        return _digest([self.claim.deciding, plans])


@dataclass(frozen=True)
class Laid:
    """A claim with every run that it needs.

    Args:
        part: The claim with its study.
        cells: Attack -> the audits that it is run on, with their runs: :data:`SEARCH` on all of the study, others on
            those that are compared.
        left_out: Attack -> why it cannot be run.
    """

    part: Part
    cells: Mapping[str, Sequence[Planned]]
    left_out: Mapping[str, str]

    @property
    def study(self) -> Study:
        """All audits of all attacks as one study."""
        return Study(TITLE, tuple(one.cell for of_attack in self.cells.values() for one in of_attack))

    def standing(self, folder: Path) -> Standing:
        """Where its runs stand."""
        return read_standing([one for of_attack in self.cells.values() for one in of_attack], Store(folder))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Every run, each once."""
        return tuple(dict.fromkeys(t.key for of_attack in self.cells.values() for one in of_attack for t in one.all()))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every run, of which pictures are a part, and of the rules of the claim."""
        runs = {label: [one.key for one in of_attack] for label, of_attack in self.cells.items()}
        return _digest([self.part.claim.deciding, runs])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Judged:
    """What became of a claim.

    Args:
        claim: What was claimed.
        judgement: What it came to; None where runs are missing.
    """

    claim: Claim
    judgement: Judgement | None


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


def laid_out(part: Part, progress: Progress = lambda what, fraction: None) -> Laid:
    """Every run that a claim needs; builds and trains nothing.

    Args:
        part: The claim with its study.
        progress: Called with what is being done and the finished fraction.

    Raises:
        UsageError: the search of the study cannot be run as it is written, or there is no attack that is to be tried.
    """
    cells: dict[str, Sequence[Planned]] = {SEARCH: _planned(part.study.cells, progress)}
    left_out: dict[str, str] = {}
    for tried in part.claim.tried:
        attacks.build(tried.attack)
        try:
            cells[tried.label] = _planned(_cells_of(part, tried), progress)
        except UsageError as error:
            left_out[tried.label] = str(error)
    return Laid(part, cells, left_out)


def _cells_of(part: Part, tried: Tried) -> list[Cell]:
    """The compared cells that an attack is tried on."""
    compared = [at for one in part.claim.contrasts if not one.of_searching for _, at in one.terms]
    return [
        replace(
            cell,
            plan=replace(cell.plan, attack=Spec.parse(tried.attack), victims=tried.victims or cell.plan.victims),
        )
        for cell in part.study.cells
        if stands(cell.axes, tried.at) and any(stands(cell.axes, at) for at in compared)
    ]


def _planned(cells: Sequence[Cell], progress: Progress) -> list[Planned]:
    """With as many clients as are wanted, halved until there are pictures enough for them."""
    while True:
        try:
            return planned(Study(TITLE, tuple(cells)), progress)
        except DataError:
            if min(cell.plan.victims for cell in cells) < 2 * FEWEST:
                raise
            cells = [replace(cell, plan=replace(cell.plan, victims=cell.plan.victims // 2)) for cell in cells]


FEWEST = 6
"""Clients below which no claim can be judged."""


def together(laid: Sequence[Laid]) -> Study:
    """All cells of several claims as one study."""
    return Study(TITLE, tuple(cell for one in laid for cell in one.study.cells))


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
    cells = {label: conclusions(own, folder, here, progress)[0] for label, own in laid.cells.items()}
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
        left_out={**laid.left_out, **_failed(cells)},
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


def ran_on(folder: Path) -> str:
    """Versions, device, number of runs and what they took."""
    store = Store(folder)
    seconds = [outcome.seconds for outcome in map(store.read, store.keys()) if outcome is not None]
    told = ", ".join(f"{name} {version}" for name, version in versions(folder).items())
    return f"{told}; {len(seconds):,} runs, {sum(seconds) / 3600:.1f} hours of computing on one core each"


def command_of(paper: str, scale: str, data: Sequence[str]) -> str:
    """The command line."""
    return shlex.join(
        ["leakmap", "reproduce", paper, "--scale", scale, *(part for d in data for part in ("--data", d))]
    )
