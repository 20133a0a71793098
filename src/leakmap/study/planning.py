"""From cells to runs: every run of a study by name, before any network is built."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from leakmap.attacker.reconstruction import Tick
from leakmap.auditing.prepare import gather, granting, planted, prepare
from leakmap.auditing.recipe import Names, in_order, names_of, trials
from leakmap.client.data import Pictures, load_pictures
from leakmap.client.groups import Groups
from leakmap.errors import BadSetting, LeakmapError, in_words
from leakmap.memory import check_fits
from leakmap.plan.plan import Plan, Progress, check
from leakmap.problem.task import Task
from leakmap.registry.spec import near_misses
from leakmap.registry.user_code import is_user_code, local_files
from leakmap.runs.jobs import TrialJob
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Trial
from leakmap.study.file import Cell, Study
from leakmap.study.index import shown

_Material = tuple[Task, Groups]


@dataclass(frozen=True)
class Planned:
    """A cell with its runs.

    Args:
        cell: The audit.
        names: What it is run on.
        trials: Its runs, by role.
    """

    cell: Cell
    names: Names
    trials: Mapping[str, list[Trial]]

    @cached_property
    def key(self) -> str:
        """SHA-256 over the keys of its runs."""
        return hashlib.sha256("".join(trial.key for trial in self.all()).encode()).hexdigest()

    def all(self) -> list[Trial]:
        """Its runs, client by client, the planted control last."""
        return in_order(self.trials)


CELL = 16_000
"""Bytes that a cell takes with about ten runs by name: 99,900 cells took 1.5 GB."""


def planned(study: Study, progress: Progress = lambda what, fraction: None) -> list[Planned]:
    """Every cell with its runs. Loads the pictures, but builds and trains nothing.

    Args:
        study: The study.
        progress: Called with what is being done and the finished fraction.

    Raises:
        UsageError: a cell cannot be run as it is written; the message names it. Or there are more than memory holds.
    """
    many = len(study.cells)
    check_fits(CELL * many, f"A study of {many:,} cells takes", "take values out of its lists, or split it")
    found: dict[int, Planned] = {}
    for places in _alike(study.cells):
        try:
            material = _material(study.cells[places[0]].plan)
        except LeakmapError as error:
            raise _of_cell(study.cells[places[0]], error) from None
        for place in places:
            progress(f"planning cell {len(found) + 1:,} of {many:,}", len(found) / many)
            found[place] = _planned(study.cells[place], *material)
    return [found[place] for place in range(many)]


def _alike(cells: Sequence[Cell]) -> list[list[int]]:
    """The places of the cells, those together that divide the same pictures alike: these are held one at a time."""
    found: dict[tuple[object, ...], list[int]] = {}
    for place, cell in enumerate(cells):
        plan = cell.plan
        what = (plan.data, plan.image_size, plan.victims, plan.batch_size, plan.threat.public, plan.train_epochs > 0)
        asked = (plan.target, plan.output, plan.model if plan.target == "auto" else "", plan.rule.mode)
        key = (*what, *asked, plan.threat.labels, plan.seed, plan.normalization, plan.classes, plan.loss)
        found.setdefault(key, []).append(place)
    return list(found.values())


def _material(plan: Plan) -> _Material:
    check(plan)
    groups, task = gather(plan, pictures_of(plan))
    return task, groups


def _planned(cell: Cell, task: Task, groups: Groups) -> Planned:
    try:
        check(cell.plan)
        plan = granting(cell.plan, groups)
        names = names_of(plan, task, groups)
        return Planned(replace(cell, plan=plan), names, trials(plan, names.main, names.control))
    except LeakmapError as error:
        raise _of_cell(cell, error) from None


def _of_cell(cell: Cell, error: LeakmapError) -> LeakmapError:
    return type(error)(f"{cell}: {error}")


def pictures_of(plan: Plan) -> Pictures:
    """The pictures of a plan's source, read once for many plans."""
    return _pictures(plan.data, plan.image_size)


@lru_cache(maxsize=2)
def _pictures(data: str, size: int | None) -> Pictures:
    return load_pictures(data, size)


@dataclass(frozen=True)
class FromPlan:
    """Makes a setup of a plan, wherever the pictures can be loaded.

    Args:
        plan: The audit.
        which: The audited network's setup, or the planted control's.
        trained: Folder of briefly trained weights.
    """

    plan: Plan
    which: Literal["main", "control"]
    trained: Path

    def __call__(self) -> Setup:
        """Makes it."""
        if self.which == "main":
            return prepare(self.plan, pictures_of(self.plan), trained=self.trained).main
        groups, task = gather(self.plan, pictures_of(self.plan))
        return planted(self.plan, groups, task, names_of(self.plan, task, groups))


@dataclass(frozen=True)
class TrainJob:
    """The job of training a network briefly, into the folder of trained weights.

    Args:
        plan: An audit with such a network.
        key: The network's name.
        trained: The folder.
    """

    plan: Plan
    key: str
    trained: Path

    def __call__(self, device: str, told: Tick) -> str | None:
        """Trains it, or reads what is there; returns why that failed, if it did: its runs will say so too."""

        def progress(what: str, fraction: float) -> None:
            told(fraction)

        try:
            prepare(self.plan, pictures_of(self.plan), device=device, trained=self.trained, progress=progress)
        except (LeakmapError, SystemExit) as error:
            return in_words(error)
        return None


def jobs(cells: Iterable[Planned], wanted: set[str], trained: Path, fitted: Path) -> list[TrialJob]:
    """The jobs of the wanted runs, each once, cell after cell.

    Args:
        cells: Where to look.
        wanted: Keys of runs.
        trained: Folder of briefly trained weights.
        fitted: Folder of what attacks are fitted to.
    """
    found: dict[str, TrialJob] = {}
    for one in cells:
        for trial in one.all():
            if trial.key in wanted and trial.key not in found:
                which = "control" if trial.group == "controls" else "main"
                found[trial.key] = TrialJob(trial, FromPlan(one.cell.plan, which, trained), fitted)
    return list(found.values())


def trainings(cells: Iterable[Planned], wanted: set[str], trained: Path) -> list[TrainJob]:
    """The jobs of training what the wanted runs need and the folder lacks, each once."""
    found: dict[str, TrainJob] = {}
    for one in cells:
        missing = one.cell.plan.train_epochs and not (trained / f"{one.names.network}.safetensors").is_file()
        if missing and any(trial.key in wanted for trial in one.all()):
            found.setdefault(one.names.network, TrainJob(one.cell.plan, one.names.network, trained))
    return list(found.values())


def only(cells: Sequence[Planned], filters: Sequence[str]) -> list[Planned]:
    """The cells that stand where ``AXIS=VALUE`` filters say; several values of one axis add up.

    Raises:
        BadSetting: a filter names no axis, or a value that the axis does not have.
    """
    wanted: dict[str, set[str]] = {}
    for text in filters:
        axis, equals, value = text.partition("=")
        values = {shown(one.cell.axes[axis]) for one in cells if axis in one.cell.axes}
        if not equals or not values:
            known = {name for one in cells for name in one.cell.axes}
            raise BadSetting(f"--only takes AXIS=VALUE, and there is no axis {axis!r}; {near_misses(axis, known)}")
        if value not in values:
            raise BadSetting(f"The axis {axis!r} has no value {value!r}; {near_misses(value, values)}")
        wanted.setdefault(axis, set()).add(value)
    return [one for one in cells if all(_stands(one.cell, axis, values) for axis, values in wanted.items())]


def _stands(cell: Cell, axis: str, values: set[str]) -> bool:
    return axis in cell.axes and shown(cell.axes[axis]) in values


def files_of(cells: Iterable[Planned]) -> list[Path]:
    """Every file and folder that the plans name, and the modules beside a user's code that it imports.

    What lies in a folder of pictures is not listed.
    """
    plans = [one.cell.plan for one in cells]
    named = {text for plan in plans for text in (plan.model, plan.data, plan.weights, plan.loss, plan.rule.defence)}
    named |= {str(plan.attack) for plan in plans} | {name for plan in plans for name in plan.metrics}
    found: set[Path] = set()
    for part in {part for text in named if text for part in re.split("[,=]", text)}:
        code, path = part.rpartition(":")[0], part.partition(":")[2]
        found.update(place for name in (part, code, path) if name and (place := Path(name).expanduser()).exists())
        if is_user_code(part):
            found.update(local_files(Path(code).expanduser()))
    return sorted(path.resolve() for path in found)


def of_shard(keys: Iterable[str], shard: str | None) -> Iterator[str]:
    """The keys of one share of the work, ``i/n`` with i from 1 to n: every key is in exactly one.

    Raises:
        BadSetting: the share is not written so.
    """
    if shard is None:
        yield from keys
        return
    part, slash, parts = shard.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise BadSetting(f"A shard is i/n with i from 1 to n, such as 2/8; got {shard!r}.")
    yield from (key for key in keys if int(key[:12], 16) % int(parts) == int(part) - 1)
