"""Thresholds and settings written down before the audit, and whether the run kept to them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from leakmap.auditing.provenance import now
from leakmap.evidence.run import Run
from leakmap.files import read_typed, write_text
from leakmap.plan.command import command
from leakmap.plan.plan import Plan
from leakmap.plan.written import CAPTURED, settings, values_of
from leakmap.scoring.exposure import EXACT_PSNR, VISIBLE_SSIM
from leakmap.scoring.verdict import GAIN_ALPHA, RANK_ONE_ALPHA, RANK_SUM_ALPHA, TIMES_CHANCE, Level
from leakmap.version import __version__

WHAT = "a plan that leakmap bundle --plan wrote"
_FROM_FILES = {"threat.count", "threat.rule", "threat.buffers", "target", "output", "victims", "batch_size"}
"""Settings that captured updates tell themselves, besides the tables of :data:`leakmap.plan.written.CAPTURED`."""


def thresholds() -> dict[str, float]:
    """What this version of leakmap decides by, by name."""
    return {
        "exact: PSNR above, dB": EXACT_PSNR,
        "visual: SSIM above": VISIBLE_SSIM,
        "partial: first ranks at least, times chance": float(TIMES_CHANCE),
        "statistical: rank-sum p below, plain": RANK_SUM_ALPHA["plain"],
        "statistical: rank-sum p below, any pose": RANK_SUM_ALPHA["any"],
        "statistical: first-rank p below, plain": RANK_ONE_ALPHA["plain"],
        "statistical: first-rank p below, any pose": RANK_ONE_ALPHA["any"],
        "statistical: gain p below, each metric": GAIN_ALPHA,
    }


@dataclass(frozen=True)
class Planned:
    """What was fixed before an audit.

    Args:
        plan: The audit.
        command: The command line of the audit.
        gate: The level that must not be reached; null where none was fixed.
        made: When it was written, UTC, by the clock of that machine.
        leakmap: Version.
        thresholds: What decides, by name.
        schema: Number of this schema.
    """

    plan: Plan
    command: Annotated[str, Field(max_length=100_000)]
    gate: Level | None
    made: Annotated[str, Field(max_length=64)]
    leakmap: str = __version__
    thresholds: Mapping[str, float] = field(default_factory=thresholds)
    schema: Literal[1] = 1

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


def write_planned(path: Path, plan: Plan, gate: Level | None) -> str:
    """Writes down what is fixed before an audit; returns the SHA-256 of the file, by which others can hold it.

    Args:
        path: The file; an earlier one is not written over.
        plan: The audit to come.
        gate: The level that must not be reached.

    Raises:
        FileExistsError: there is such a file: what was fixed stays fixed.
    """
    if path.exists():
        raise FileExistsError(17, "a plan lies there already, and what was fixed stays fixed", str(path))
    made = Planned(plan, command(plan), gate, now())
    text = TypeAdapter(Planned).dump_json(made, indent=2).decode() + "\n"
    write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def read_planned(path: Path) -> Planned:
    """Reads what :func:`write_planned` wrote; nothing in it is run.

    Raises:
        StoreError: there is no such file, or it is not a sound one.
    """
    return read_typed(path, Planned, WHAT)


def departures(planned: Planned, run: Run) -> list[str]:
    """In what a run departs from what was fixed before it, in sentences; empty: in nothing that is known."""
    found, result = [], run.result
    there, here = values_of(planned.plan), values_of(result.plan)
    captured = planned.plan.captured
    for entry in settings():
        if captured is not None and (entry.path in _FROM_FILES or entry.declared.table in (*CAPTURED, "model")):
            continue
        if entry.path == "threat.public" and there[entry.path] == "auto":
            continue
        if str(there[entry.path]) != str(here[entry.path]):
            found.append(f"{entry.path} was planned as {there[entry.path]} and run as {here[entry.path]}.")
    if captured != result.plan.captured:
        found.append("The captured updates, or the pictures beside them, are not those that were planned.")
    if planned.thresholds != thresholds():
        found.append("The thresholds of this version of leakmap are not those that were planned.")
    version = result.versions.get("leakmap", "unknown")
    if planned.leakmap != version:
        found.append(f"leakmap {planned.leakmap} was planned, {version} was run.")
    if run.provenance is None:
        found.append("The run does not tell when it began.")
    elif not _before(planned.made, run.provenance.started):
        found.append(f"The run began at {run.provenance.started}, the plan was written at {planned.made}: not before.")
    return found


def _before(first: str, second: str) -> bool:
    try:
        return datetime.fromisoformat(first) <= datetime.fromisoformat(second)
    except (ValueError, TypeError):
        return False
