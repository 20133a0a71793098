"""Where outcomes lie: a folder, one file per trial key, never half-written; see :mod:`leakmap.runs.layout`."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leakmap.errors import StoreError
from leakmap.files import DAMAGED, FULL, finite, read_json, read_tensors, write_json, write_tensors
from leakmap.local_rule import LocalRule
from leakmap.registry.spec import Spec
from leakmap.runs.layout import CLAIM, MARKER, SCHEMA, check_schema, failed_at, scored_at, stored
from leakmap.runs.trial import Deranged, Outcome, Reached, Trial
from leakmap.scoring.score import Score
from leakmap.threat import ThreatModel

STUDY = "study"
"""Key of what a study claims its folder by: its title."""
OUTCOME_LIMIT = 2**32
WAITS = 8
"""Outcomes that are being written at a time."""
STALE = 3600.0
"""Seconds after which nobody finishes a half-written file."""


class Store:
    """A folder of outcomes. Resuming is running the keys that are missing.

    Args:
        folder: Made by :meth:`make`.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def make(self) -> None:
        """Makes the folder if it does not exist, marks it with its schema, and removes what was left half written.

        Raises:
            StoreError: it cannot be made, or holds results of another schema.
        """
        self.check()
        try:
            (self.folder / "trials").mkdir(parents=True, exist_ok=True)
            write_json(self.folder / MARKER, {"schema": SCHEMA})
        except OSError as error:
            if error.errno in FULL:
                raise
            raise StoreError(f"{self.folder} cannot be used for results: {error}.") from None
        self._sweep()

    def check(self) -> None:
        """Refuses a folder with results of another schema, whose keys mean other runs; an empty one is fine.

        Raises:
            StoreError: it holds such.
        """
        check_schema(self.folder)

    def claim(self, own: dict[str, Any], what: str) -> None:
        """Makes the folder and marks it as belonging to this work.

        Args:
            own: All that decides what is run.
            what: What it is, such as "audit", for the message.

        Raises:
            StoreError: it belongs to another one; the message names what differs.
        """
        self.make()
        own = finite(own)
        path = self.folder / CLAIM
        if not path.exists():
            write_json(path, own)
            return
        other = read_json(path)
        if not isinstance(other, dict):
            raise StoreError(
                f"{path} is damaged, and without it nobody knows what the other files there belong to; bring it back "
                "from a copy, give another --out, or remove that folder."
            )
        if other != own:
            raise StoreError(
                f"{self.folder} holds {_held(other, own, what)}; give another --out, or remove that folder."
            )

    def path(self, key: str) -> Path:
        """Where the outcome of a trial lies, or will lie if it ends with a score."""
        scored, failed = scored_at(self.folder, key), failed_at(self.folder, key)
        return failed if failed.is_file() and not scored.is_file() else scored

    def put(self, outcome: Outcome) -> None:
        """Writes an outcome, a failure under a name of its own, in place of what is there."""
        record = asdict(outcome)
        record["used"] = sorted(outcome.used)
        tensors = {}
        if outcome.score is not None:
            tensors["pictures"] = outcome.score.pictures
            del record["score"]["pictures"]
        own, other = scored_at(self.folder, outcome.trial.key), failed_at(self.folder, outcome.trial.key)
        if outcome.failure is not None:
            own, other = other, own
        write_tensors(own, tensors, {"outcome": json.dumps(record)})
        if other.is_file():  # looking locks the folder for no other writer
            other.unlink(missing_ok=True)

    def set_apart(self, key: str) -> None:
        """Leaves a failure under the name of a failure alone.

        One that lies where scores do, as leakmap 0.1.0 left it, is renamed. Where a failure has its name and what lies
        where scores do cannot be read, that is removed.
        """
        own, other = failed_at(self.folder, key), scored_at(self.folder, key)
        if not other.is_file():
            return
        found = _read(other, key)
        if found is None and _read(own, key) is not None:
            other.unlink(missing_ok=True)
        elif found is not None and found.failure is not None:
            with suppress(FileNotFoundError):
                other.replace(own)

    @contextmanager
    def writing(self) -> Iterator[Callable[[Outcome], None]]:
        """Gives a function that writes outcomes as :meth:`put` does, several at a time.

        Nearly all of a write is waiting for the disk, so one process stores more a second with several waits at once.
        Everything is on disk when the block ends, however it ends.

        Raises:
            OSError: one could not be written; from the next call or the end of the block.
        """
        with ThreadPoolExecutor(WAITS) as threads:
            going: deque[Future[None]] = deque()

            def put(outcome: Outcome) -> None:
                while len(going) >= WAITS:
                    going.popleft().result()
                going.append(threads.submit(self.put, outcome))

            yield put
            for one in going:
                one.result()

    def get(self, trial: Trial) -> Outcome | None:
        """The stored outcome of a trial; None where there is none that can be read, or one that was changed."""
        found = self.read(trial.key)
        return found if found is not None and found.trial == trial else None

    def keys(self) -> set[str]:
        """Of everything that is stored, readable or not."""
        found = stored(self.folder)
        return {*found.scored, *found.failed}

    def _sweep(self) -> None:
        """Removes what a killed process left half written; what is younger may belong to another one at work."""
        for path in (*self.folder.glob("*/.*.part"), *self.folder.glob(".*.part")):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()

    def read(self, key: str) -> Outcome | None:
        """The stored outcome of this key; None where there is none that can be read."""
        places = scored_at(self.folder, key), failed_at(self.folder, key)
        return next((found for path in places if path.is_file() and (found := _read(path, key))), None)


def _read(path: Path, key: str) -> Outcome | None:
    try:
        tensors, metadata = read_tensors(path, OUTCOME_LIMIT)
        record: dict[str, Any] = json.loads(metadata["outcome"])
        pictures: Any = None if record["score"] is None else tensors["pictures"]
        trial = record.pop("trial")
        trial |= {
            "rule": LocalRule(**trial["rule"]),
            "threat": ThreatModel(**trial["threat"]),
            "attack": Spec(**trial["attack"]),
            "metrics": tuple(trial["metrics"]),
        }
        scored = record.pop("score")
        if scored is not None:
            scored |= {name: _tuples(scored[name]) for name in ("values", "band_ranks")}
            listed = ("ranks", "galleries", "pose_ranks", "object_ranks", "object_galleries", "places")
            scored |= {name: tuple(scored[name]) for name in listed}
            scored = Score(pictures=pictures, **scored)
        record["reached"] = tuple(_reached(each) for each in record["reached"])
        if (other := record["deranged"]) is not None:
            listed = {name: tuple(other[name]) for name in ("ranks", "galleries", "pose_ranks")}
            record["deranged"] = Deranged(**other | listed | {"values": _tuples(other["values"])})
        record["curve"] = tuple(record["curve"])
        record["used"] = frozenset(record["used"])
        record["failure"] = tuple(record["failure"]) if record["failure"] else None
        found = Outcome(Trial(**trial), score=scored, **record)
        return found if found.trial.key == key else None
    except DAMAGED:
        return None


def _held(other: Mapping[str, Any], own: Mapping[str, Any], what: str) -> str:
    """What a folder that belongs to something else holds, and in what it differs."""
    if STUDY in other:
        return f"the study {other[STUDY]!r}"
    if STUDY in own:
        return "an audit or a tuning, no study"
    differing = [key for key in own if other.get(key) != own[key]]
    return f"another {what} (different: {', '.join(differing) or 'format'})"


def _tuples(record: Mapping[str, list[float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(values) for name, values in record.items()}


def _reached(record: dict[str, Any]) -> Reached:
    return Reached(**record | {"ranks": tuple(record["ranks"]), "values": _tuples(record["values"])})
