"""A folder of captures, audited as they come: cheapest checks first, then attacks, drawn against the round."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leakmap.auditing import perform
from leakmap.errors import LeakmapError
from leakmap.observation import Observation
from leakmap.plan import Plan, Progress
from leakmap.registry import file_digest
from leakmap.report.watch import write_watch
from leakmap.scoring.effects import gain_over_best_floor, rank_score
from leakmap.store import Store, read_json, write_json
from leakmap.updates.audits import prepare_captured, read_observation
from leakmap.updates.checks import check

SCHEMA = 1
PAUSE = 5.0
"""Seconds between two looks into the folder."""


@dataclass(frozen=True)
class Capture:
    """A captured update in the folder.

    Args:
        file: ``round-0001/client-0.safetensors``; a file outside such a folder is of round 0.
        round: Its round.
        client: Its client.
    """

    file: Path
    round: int
    client: str

    @property
    def name(self) -> str:
        """As shown and stored."""
        return f"round-{self.round:04d}/{self.client}"


def captures(folder: Path) -> list[Capture]:
    """What lies in a folder, by round and client; half-written files are not seen."""
    found = []
    for file in folder.glob("**/*.safetensors"):
        if not file.name.startswith("."):
            match = re.fullmatch(r"round-(\d{1,9})", file.parent.name)
            found.append(Capture(file, int(match[1]) if match else 0, file.stem))
    return sorted(found, key=lambda one: (one.round, one.client))


@dataclass(frozen=True)
class Watch:
    """What is watched, and how.

    Args:
        folder: Where captures come.
        out: Where results go; the same one continues.
        plan: Attack, granted labels, seed; see :func:`leakmap.updates.audits.prepare_captured`.
        truth: Folder with the clients' pictures, ``client-0.npz`` or a folder ``client-0``, also below ``round-0001``;
            without them nothing can be scored, only checked.
        others: Pictures of the same kind that no client held.
        workers: Processes.
        device: Where to compute.
    """

    folder: Path
    out: Path
    plan: Plan
    truth: Path | None = None
    others: str | None = None
    workers: int = 0
    device: str = "cpu"

    def truth_of(self, capture: Capture) -> str | None:
        """Specification of the pictures that a client held in a round; None where they are not known."""
        if self.truth is None:
            return None
        for folder in (self.truth / f"round-{capture.round:04d}", self.truth):
            if (folder / f"{capture.client}.npz").is_file():
                return f"npz:{folder / f'{capture.client}.npz'}"
            if (folder / capture.client).is_dir():
                return f"folder:{folder / capture.client}"
        return None


def look(watch: Watch, progress: Progress = lambda what, fraction: None) -> list[dict[str, Any]]:
    """Checks and audits what is new in the folder, once; writes ``watch.json``, ``leakage.png`` and ``watch.html``.

    Every result is written as soon as it is there: interrupted anywhere, the next look continues.

    Args:
        watch: What is watched.
        progress: Called with what is being done and the finished fraction.

    Returns:
        A row for every capture, see docs/watch.md.
    """
    watch.out.mkdir(parents=True, exist_ok=True)
    stored = read_json(watch.out / "watch.json")
    known = stored.get("captures", {}) if isinstance(stored, dict) and stored.get("schema") == SCHEMA else {}
    there = captures(watch.folder)
    rows: dict[str, dict[str, Any]] = {}
    for capture in there:
        digest = file_digest(capture.file)
        own = known.get(capture.name)
        rows[capture.name] = own if own and own["digest"] == digest else _new(capture, digest)
    for what, step in (("checking", _checked), ("auditing", _audited)):
        waiting = [one for one in there if what not in rows[one.name]["done"]]
        for i, capture in enumerate(waiting):
            row = rows[capture.name]
            rows[capture.name] = (
                row
                | step(watch, capture, _part_of(progress, capture.name, i, len(waiting)))
                | {"done": [*row["done"], what]}
            )
            _write(watch, list(rows.values()))
    _write(watch, list(rows.values()))
    return list(rows.values())


def _part_of(progress: Progress, name: str, done: int, of: int) -> Progress:
    return lambda what, fraction: progress(f"{name}: {what}", (done + fraction) / of)


def _new(capture: Capture, digest: str) -> dict[str, Any]:
    return {
        "name": capture.name,
        "round": capture.round,
        "client": capture.client,
        "file": str(capture.file),
        "digest": digest,
        "done": [],
        "findings": [],
        "level": None,
        "rank_score": None,
        "gain": None,
        "note": "",
    }


def _checked(watch: Watch, capture: Capture, progress: Progress) -> dict[str, Any]:
    try:
        return {"findings": [asdict(finding) for finding in check(_observation(watch, capture))]}
    except LeakmapError as error:
        return {"findings": [{"name": "readable", "level": "wrong", "sentence": str(error)}]}


def _observation(watch: Watch, capture: Capture) -> Observation:
    return read_observation(capture.file, watch.plan.model or None)


def _audited(watch: Watch, capture: Capture, progress: Progress) -> dict[str, Any]:
    """The audit of one capture; of what cannot be scored the reason."""
    truth = watch.truth_of(capture)
    if truth is None or watch.others is None:
        return {"note": "not scored: its pictures, or others to compare with, were not given"}
    folder = watch.out / capture.name
    try:
        plan, prepared = prepare_captured(watch.plan, [capture.file], [truth], watch.others)
        found = perform(plan, prepared, Store(folder), workers=watch.workers, device=watch.device, progress=progress)
    except LeakmapError as error:
        return {"note": f"not scored: {error}"}
    scores, gains = rank_score(found.result), gain_over_best_floor(found.result)
    return {
        "level": found.level,
        "rank_score": next(iter(scores.values()), None),
        "gain": next(iter(gains.values()), None),
        "note": "; ".join(found.result["verdict"]["reasons"]) if found.level == "inconclusive" else "",
        "report": f"{capture.name}/report.html",
    }


def _write(watch: Watch, rows: Sequence[dict[str, Any]]) -> None:
    write_json(watch.out / "watch.json", {"schema": SCHEMA, "captures": {row["name"]: row for row in rows}})
    write_watch(watch.out, rows, str(watch.plan.attack))
