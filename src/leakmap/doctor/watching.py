"""A folder of captures, audited as they come: cheapest checks first, then attacks, drawn against the round."""

import errno
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from leakmap.auditing.captured import prepare_captured, typed_in
from leakmap.auditing.perform import perform
from leakmap.capturing.typed import read_observation
from leakmap.doctor.checks import check
from leakmap.errors import LeakmapError, NoRoom, ObservationError, WorkerDied, in_words, plain
from leakmap.files import FULL, file_digest
from leakmap.observation.observation import FILE_LIMIT
from leakmap.plan.plan import Plan, Progress
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import user_code_digest
from leakmap.report.watch import write_watch
from leakmap.result.values import advantage, gain_over_best_floor, rank_score
from leakmap.result.watched import CheckedFact, Digests, Watched, last_place, read_watched, write_watched
from leakmap.runs.runner import HERE, Runner
from leakmap.runs.store import Store

Listed = list[tuple[str, int, int]]
"""Name, size and time of change of files."""
PASSING = (errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Numbers of errors that another moment, or another right to read, does away with."""
PAUSE = 5.0
"""Seconds between two looks into the folder."""
FILE, AUDITS = "watch.json", "audits"
"""In the folder of results: the rows, and beside them the audit of each capture."""
ROUND = re.compile(r"round-(\d{1,9})")


@dataclass(frozen=True)
class Capture:
    """A captured update in the folder.

    Args:
        file: ``round-0001/client-0.safetensors``; a file outside such a folder is of round 0.
        name: As shown and stored: its path in the folder without the ending, so that no two captures share one.
        round: Its round.
        client: Its client.
    """

    file: Path
    name: str
    round: int
    client: str


def captures(folder: Path) -> list[Capture]:
    """What lies in a folder, by round and name; half-written files and results of leakmap are not seen."""
    found = []
    for file in folder.glob("**/*.safetensors"):
        place = file.relative_to(folder)
        if not file.name.startswith(".") and not _is_result(folder, place):
            rounds = [match for part in place.parts[:-1] if (match := ROUND.fullmatch(part))]
            name = plain(place.with_suffix("").as_posix())
            found.append(Capture(file, name, int(rounds[-1][1]) if rounds else 0, plain(file.stem)))
    return sorted(found, key=lambda one: (one.round, one.name))


def _is_result(folder: Path, place: Path) -> bool:
    """Whether a file lies in the results of a watched folder, which may stand in the folder itself."""
    return any(one.name == AUDITS and (folder / one).with_name(FILE).is_file() for one in place.parents)


@dataclass(frozen=True)
class Watch:
    """What is watched, and how.

    Args:
        folder: Where captures come.
        out: Where results go; the same one continues.
        plan: Attack, granted labels, seed; see :func:`leakmap.auditing.captured.prepare_captured`.
        truth: Folder with the clients' pictures, arranged as the captures: ``round-0001/client-0.npz`` or a folder
            ``round-0001/client-0``; without ``round-0001/`` they hold for all rounds. Without them nothing can be
            scored, only checked.
        others: Pictures of the same kind that no client held.
        runner: Where to run.
    """

    folder: Path
    out: Path
    plan: Plan
    truth: Path | None = None
    others: str | None = None
    runner: Runner = HERE

    def truth_of(self, capture: Capture) -> str | None:
        """Specification of the pictures that a client held in a round; None where they are not known."""
        if self.truth is None:
            return None
        place = capture.file.relative_to(self.folder).parent
        always = Path(*(part for part in place.parts if not ROUND.fullmatch(part)))
        for folder in (self.truth / place, self.truth / always):
            if (folder / f"{capture.file.stem}.npz").is_file():
                return f"npz:{folder / f'{capture.file.stem}.npz'}"
            if (folder / capture.file.stem).is_dir():
                return f"folder:{folder / capture.file.stem}"
        return None


def look(
    watch: Watch,
    progress: Progress = lambda what, fraction: None,
    *,
    again: float | None = None,
    seen: Callable[[list[Watched]], bool] = lambda rows: False,
) -> list[Watched]:
    """Checks and audits what is new in the folder; writes ``watch.json``, ``leakage.png`` and ``watch.html``.

    Every result is written to ``watch.json`` as soon as it is there: interrupted anywhere, the next look continues.
    Page and figure follow at the end of a look that changed something, and meanwhile every few seconds.

    Args:
        watch: What is watched.
        progress: Called with what is being done and the finished fraction.
        again: Seconds after which to look again, until interrupted; None looks once.
        seen: Called with the rows after each look; what it says ends the watch.

    Returns:
        A row for every capture, see docs/watch.md.

    Raises:
        ObservationError: there is no such folder.
        StoreError: the folder of results holds something else.
        KeyboardInterrupt: after writing what is finished.
    """
    if not watch.folder.is_dir():
        raise ObservationError(f"There is no folder {watch.folder} to watch.")
    rows = _look(watch, progress, None)
    while not seen(rows) and again is not None:
        progress("waiting for captures", 1.0)
        time.sleep(again)
        rows = _look(watch, progress, rows)
    return rows


def _look(watch: Watch, progress: Progress, drawn: list[Watched] | None) -> list[Watched]:
    """One look; ``drawn`` are the rows that the page shows, None where nobody knows."""
    watch.out.mkdir(parents=True, exist_ok=True)
    known = read_watched(watch.out / FILE)
    there = captures(watch.folder)
    listed = cache(_files)  # once a look: all captures share the auditor's pictures
    rows: dict[str, Watched] = {}
    for capture in there:
        digests = Digests(checking=_digest(watch, capture, None), auditing=_digest(watch, capture, listed))
        own = known.get(capture.name)
        rows[capture.name] = own if own and own.digests == digests else _new(capture, digests, own)
    begun, last = time.monotonic(), last_place(known.values())
    try:
        for what, step in STEPS.items():
            waiting = [one for one in there if what not in rows[one.name].done]
            for i, capture in enumerate(waiting):
                row = rows[capture.name]
                try:
                    changes = step(watch, capture, _part_of(progress, capture.name, i, len(waiting)))
                    changes["done"] = (*row.done, what)
                except Exception as error:
                    if not _passes(error):
                        raise
                    changes = {"note": f"not finished: {_sentence(error)} The next look tries again."}
                if changes.get("level") and row.place is None:
                    last += 1
                    changes |= {"place": last}
                rows[capture.name] = row.model_copy(update=changes)
                write_watched(watch.out / FILE, list(rows.values()))
                if time.monotonic() - begun > PAUSE:  # a figure takes longer than the check of a small capture
                    write_watch(watch.out, list(rows.values()), str(watch.plan.attack))
                    begun = time.monotonic()
    finally:
        if (found := list(rows.values())) != drawn:
            write_watched(watch.out / FILE, found)
            write_watch(watch.out, found, str(watch.plan.attack))
    return found


def _part_of(progress: Progress, name: str, done: int, of: int) -> Progress:
    return lambda what, fraction: progress(f"{name}: {what}", (done + fraction) / of)


def _digest(watch: Watch, capture: Capture, listed: Callable[[str | None], Listed] | None) -> str:
    """SHA-256 of all that checking, or where files are listed auditing, follows from: what changes is done again."""
    typed = [name for name in typed_in(watch.plan) if name is not None]
    own: list[Any] = [_content_of(capture.file), *typed_in(watch.plan)]
    own += [user_code_digest(Spec.parse(name)) for name in typed]
    if listed is not None:
        own += [asdict(watch.plan), user_code_digest(watch.plan.attack)]
        own += [[told, listed(told)] for told in (watch.truth_of(capture), watch.others)]
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def _files(told: str | None) -> Listed:
    """Name, size and time of change of every file of a source; one still being copied is read again once whole.

    A source that names no place, as ``samples`` does not, has none: an empty path would be the whole working folder.
    """
    named = Spec.parse(told or "").name.partition(":")[2]
    if not named:
        return []
    place = Path(named)
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [(str(f), (stat := f.stat()).st_size, stat.st_mtime_ns) for f in files if f.is_file()]


def _content_of(file: Path) -> str:
    """SHA-256 of a file; of a folder, a pipe, a link to nowhere and what is not read, why there is none."""
    try:
        stat = file.stat()
        readable = file.is_file() and stat.st_size <= FILE_LIMIT
        return _content(file, stat.st_size, stat.st_mtime_ns) if readable else f"no file {stat.st_size}"
    except OSError as error:
        return str(error.strerror)


@cache
def _content(file: Path, size: int, changed: int) -> str:
    """SHA-256 of a file, computed again only where it changed since the last look."""
    return file_digest(file)


def _new(capture: Capture, digests: Digests, before: Watched | None) -> Watched:
    """A row with what still holds of the one before: an audit that changes does not repeat the checks."""
    row = Watched(
        name=capture.name,
        round=capture.round,
        client=capture.client,
        file=plain(str(capture.file)),
        digests=digests,
        place=before and before.place,
    )
    if before is None or before.digests.checking != digests.checking:
        return row
    done = tuple(step for step in before.done if step == "checking")
    return row.model_copy(update={"done": done, "findings": before.findings})


def _checked(watch: Watch, capture: Capture, progress: Progress) -> dict[str, Any]:
    try:
        findings = check(read_observation(capture.file, *typed_in(watch.plan)))
        return {"findings": tuple(CheckedFact.model_validate(finding) for finding in findings)}
    except (Exception, SystemExit) as error:  # whatever one file does, the others go on
        if _passes(error):
            raise
        return {"findings": (CheckedFact(name="readable", level="wrong", sentence=_sentence(error)),)}


def _audited(watch: Watch, capture: Capture, progress: Progress) -> dict[str, Any]:
    """The audit of one capture; of what cannot be scored the reason."""
    truth = watch.truth_of(capture)
    if truth is None or watch.others is None:
        return {"note": "not scored: its pictures, or others to compare with, were not given"}
    folder = watch.out / AUDITS / capture.name / _digest(watch, capture, _files)[:8]
    try:
        plan, prepared = prepare_captured(watch.plan, [capture.file], [truth], watch.others)
        found = perform(plan, prepared, Store(folder), watch.runner, progress)
    except (Exception, SystemExit) as error:
        ends = isinstance(error, WorkerDied) or (isinstance(error, OSError) and error.errno in (*FULL, errno.EROFS))
        if ends or _passes(error):
            raise  # about this machine, not about this capture
        return {"note": f"not scored: {_sentence(error)}"}
    scores, gains = rank_score(found.result), gain_over_best_floor(found.result)
    advantages = advantage(found.result)
    return {
        "level": found.level,
        "rank_score": next(iter(scores.values()), None),
        "advantage": next(iter(advantages.values()), None),
        "gain": next(iter(gains.values()), None),
        "note": "; ".join(found.result.verdict.reasons) if found.level == "inconclusive" else "",
        "report": str((folder / "report.html").relative_to(watch.out)),
    }


def _passes(error: BaseException | None) -> bool:
    """Whether an error is about what this machine lacks now, so that the same may work later."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError | NoRoom):
            return True
        if isinstance(error, OSError) and error.errno in PASSING:
            return True
        error = error.__cause__  # pictures that cannot be read are told in a sentence of their own
    return False


def _sentence(error: BaseException) -> str:
    return plain(str(error) if isinstance(error, LeakmapError) else f"It cannot be used: {in_words(error)}.")


STEPS = {"checking": _checked, "auditing": _audited}
"""Cheapest first."""
