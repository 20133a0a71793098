"""What a study found: a conclusion for every cell, the report over all of them, and tables."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from leakmap.attacker.reconstruction import Tick
from leakmap.auditing.conclude import Audit, conclude
from leakmap.auditing.perform import probe
from leakmap.auditing.prepare import prepare
from leakmap.auditing.recipe import ROLES
from leakmap.errors import UsageError
from leakmap.files import DAMAGED, read_tensors, write_tensors, write_text, written
from leakmap.plan.plan import Plan, Progress
from leakmap.report.study import Cell as Shown
from leakmap.result.evidence import GainResult, LineUpResult
from leakmap.result.result import RESULT_SCHEMA, Result
from leakmap.runs.runner import Runner, run_jobs
from leakmap.runs.store import OUTCOME_LIMIT, Store
from leakmap.runs.trial import Outcome, Trial
from leakmap.scoring.verdict import JUDGED
from leakmap.study.planning import Planned, pictures_of

Row = dict[str, Any]


@dataclass(frozen=True)
class ConcludeJob:
    """The job of concluding a cell from its stored runs.

    Args:
        plan: The audit.
        trials: Its runs, by role.
        folder: Of the study.
        place: Of the cell among all.
    """

    plan: Plan
    trials: Mapping[str, list[Trial]]
    folder: Path
    place: int

    @property
    def key(self) -> str:
        """Its place: cells of another name may have the same runs."""
        return str(self.place)

    def __call__(self, device: str, told: Tick) -> tuple[int, Audit | str]:
        """Concludes; where the network cannot be built or probed, says why."""
        store = Store(self.folder)
        outcomes = {t.key: o for of_role in self.trials.values() for t in of_role if (o := store.get(t)) is not None}
        try:
            prepared = prepare(self.plan, pictures_of(self.plan), trained=self.folder / "networks")
            check = probe(self.plan, prepared, device)
        except Exception as error:
            return self.place, f"{type(error).__name__}: {error}"
        seconds = sum(outcome.seconds for outcome in outcomes.values())
        return self.place, conclude(self.plan, prepared, check, self.trials, outcomes, seconds)


def conclusions(
    cells: Sequence[Planned], folder: Path, runner: Runner, progress: Progress = lambda what, fraction: None
) -> tuple[list[Shown], dict[str, str]]:
    """A conclusion for every cell of which a client finished, read where it is up to date, else drawn anew.

    Returns:
        The cells, in order, and for each one that cannot be concluded (by its place on the axes) why.
    """
    store = Store(folder)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    states = [_state(one, store) for one in cells]
    found: list[Shown | None] = [
        _read(folder, one, state) if state else None for one, state in zip(cells, states, strict=True)
    ]
    work = [
        ConcludeJob(one.cell.plan, one.trials, folder, place)
        for place, (one, state) in enumerate(zip(cells, states, strict=True))
        if state and found[place] is None
    ]
    why: dict[str, str] = {}
    concluded = 0

    def done(key: str, result: tuple[int, Audit | str]) -> None:
        nonlocal concluded
        concluded += 1
        place, audit = result
        one, state = cells[place], states[place]
        if isinstance(audit, str):
            why[str(one.cell)] = audit
        else:
            _write(folder, one, state or "", audit)
            found[place] = _read(folder, one, state or "")
        progress(f"concluding cell {concluded} of {len(work)}", concluded / len(work))

    run_jobs(runner, work, done, lambda key, fraction: None, lambda job, error: (job.place, str(error)))
    return [shown for shown in found if shown is not None], why


def _state(one: Planned, store: Store) -> str | None:
    """A fingerprint of the rules of judging and of what a cell's runs came to; None where none of them is there."""
    known = [_content(outcome) for trial in one.all() if (outcome := store.get(trial)) is not None]
    rules = f"{JUDGED} {RESULT_SCHEMA}"
    return hashlib.sha256("\n".join([rules, *known]).encode()).hexdigest() if known else None


def _content(outcome: Outcome) -> str:
    """What a run came to, but for its pictures, of which the scores are."""
    score = outcome.score
    scored = score and {name: told for name, told in vars(score).items() if name != "pictures"}
    return f"{outcome.trial.key} {outcome.failure} {scored} {outcome.deranged}"


def _path(folder: Path, one: Planned) -> Path:
    return folder / "cells" / f"{one.key}.safetensors"


def _write(folder: Path, one: Planned, state: str, audit: Audit) -> None:
    tensors = {
        f"{row}/{name}": (pictures.clamp(0, 1) * 255).round().to(torch.uint8)
        for row, named in enumerate(audit.rows)
        for name, pictures in named.items()
    }
    metadata = {"state": state, "result": audit.result.as_json(), "order": json.dumps(list(tensors))}
    write_tensors(_path(folder, one), tensors, metadata)


def _read(folder: Path, one: Planned, state: str) -> Shown | None:
    path = _path(folder, one)
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_tensors(path, OUTCOME_LIMIT)
        if metadata["state"] != state:
            return None
        rows: dict[int, dict[str, Tensor]] = {}
        for name in json.loads(metadata["order"]):
            row, _, picture = name.partition("/")
            rows.setdefault(int(row), {})[picture] = tensors[name].float() / 255
        return Shown(one.cell.axes, Result.from_json(metadata["result"]), list(rows.values()))
    except DAMAGED:
        return None


def score_rows(cells: Sequence[Planned], store: Store) -> Iterator[Row]:
    """One row for each picture of each run, in the order of the study; nothing in it depends on the machine's speed."""
    axes = list(dict.fromkeys(axis for one in cells for axis in one.cell.axes))
    names = list(dict.fromkeys(name for one in cells for t in one.trials["attack"] for name in t.metrics))
    for one in cells:
        place = {axis: one.cell.axes.get(axis) for axis in axes}
        for role in ROLES:
            for trial in one.trials[role]:
                outcome = store.get(trial)
                head = {**place, "role": role, "client": trial.client}
                empty = {"picture": None, "rank": None, "gallery": None, **dict.fromkeys(names)}
                tail = {"key": trial.key}
                if outcome is None or outcome.score is None:
                    why = "not run" if outcome is None else ": ".join(outcome.failure or ())
                    yield {**head, **empty, "failure": why, **tail}
                    continue
                score = outcome.score
                for i, (rank, gallery) in enumerate(zip(score.ranks, score.galleries, strict=True)):
                    values = {name: score.values[name][i] if name in score.values else None for name in names}
                    yield {**head, "picture": i, "rank": rank, "gallery": gallery, **values, "failure": None, **tail}


def cell_rows(cells: Sequence[Shown]) -> Iterator[Row]:
    """One row for each concluded cell: its verdict, line-up and scores beside floors."""
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell.axes))
    for cell in cells:
        result = cell.result
        yield {
            **{axis: cell.axes.get(axis) for axis in axes},
            "level": result.verdict.level,
            **_line_up_row(result.line_up.attack),
            **_gain_row("psnr", result.metrics.get("psnr")),
            **_gain_row("ssim", result.metrics.get("ssim")),
            "failures": len(result.failures),
            "unfinished": result.unfinished,
            "seconds": result.seconds_of_runs,
            "command": result.command,
        }


def _line_up_row(found: LineUpResult | None) -> Row:
    names = ("n", "hits", "rank_one", "rank_one_low", "rank_one_high", "chance", "median_rank", "p")
    if found is None:
        return dict.fromkeys(names)
    rate = (found.rank_one.value, found.rank_one.low, found.rank_one.high)
    values = (found.n, found.hits, *rate, found.chance, found.median_rank, found.p)
    return dict(zip(names, values, strict=True))


def _gain_row(name: str, found: GainResult | None) -> Row:
    names = (name, *(f"{name}_{part}" for part in ("gain", "gain_low", "gain_high", "best_floor")))
    if found is None:
        return dict.fromkeys(names)
    gain = found.gain
    return dict(zip(names, (found.value.value, gain.value, gain.low, gain.high, found.best_floor), strict=True))


def write_table(path: Path, rows: Sequence[Row], kind: Literal["csv", "parquet"]) -> None:
    """Writes a table.

    Raises:
        UsageError: Parquet is asked for and pyarrow is not installed.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())
    else:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise UsageError("Parquet needs pyarrow; install leakmap[parquet], or export with --format csv.") from None
        table = pyarrow.table({name: _column([row.get(name) for row in rows]) for name in columns})
        written(path, lambda temporary: parquet.write_table(table, temporary))


def _column(values: list[Any]) -> list[Any]:
    """Values of one type, as a column needs them: texts where types are mixed."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 or kinds == {int, float}:
        return values
    return [None if value is None else str(value) for value in values]
