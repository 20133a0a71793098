"""A paper's claims with the runs that each needs: of the search of its study, and of attacks that are tried besides."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from leakmap.attacker.attacks import attacks
from leakmap.client.data import holds_objects
from leakmap.errors import BadSetting, DataError, UsageError
from leakmap.plan.plan import Progress
from leakmap.registry.spec import Spec, near_misses
from leakmap.runs.store import Store
from leakmap.study.claims import SEARCH, Claim, Tried, read_claim, stands
from leakmap.study.file import Cell, Study, read_study
from leakmap.study.judging import FEWEST
from leakmap.study.planning import Planned, planned
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


def together(laid: Sequence[Laid]) -> Study:
    """All cells of several claims as one study."""
    return Study(TITLE, tuple(cell for one in laid for cell in one.study.cells))
