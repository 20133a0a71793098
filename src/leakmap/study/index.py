"""What a study planned, in a file beside its runs: where it stands is told without planning it again.

The file holds of every run the first 16 digits of its key and its group (the runs of a cell that have one role), and of
every group how long each of its runs will take. What is finished and failed the names of the files in ``trials/`` say.
Nothing that is called to answer imports torch, which alone would take longer than the answer.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked
from safetensors import safe_open

from leakmap.errors import LeakmapError
from leakmap.files import DAMAGED, read_arrays, read_limited, write_tensors
from leakmap.runs.layout import SCHEMA, check_schema, failed_at, scored_at, stored
from leakmap.study.shipped import file_of
from leakmap.version import __version__

FILE = "planned.safetensors"
LIMIT = 2**28
"""Bytes of an index that is read: a million runs take 12 MB."""
LONGEST = 1e12
"""Seconds beyond which nobody foresees anything."""
SAMPLED = 50
"""Finished runs that say how far the estimate is off."""
DIGITS = 16
"""Of a key; that two of a million runs share them has a chance of 3 in 10^8, and then there is no index."""
Value = str | int | float | bool | None
"""Of an axis."""
_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


@dataclass(frozen=True)
class Status:
    """What is finished of a study and what the rest takes.

    Args:
        title: What the study asks.
        axes: Every axis with its values.
        cells: How many audits it has.
        runs: How many runs, each counted once.
        finished: How many ended with a score.
        failed: Key -> ``(kind, message)`` of runs that failed.
        seconds_left: Seconds that the missing runs will take one after the other; None where that cannot be told.
        planned: When the run planned it by whose record this was told, in ISO 8601; empty where it was planned anew.
    """

    title: str
    axes: Mapping[str, Sequence[Value]]
    cells: int
    runs: int
    finished: int
    failed: Mapping[str, tuple[str, str]]
    seconds_left: float | None
    planned: str = ""

    @property
    def missing(self) -> int:
        """Runs that are neither finished nor failed."""
        return self.runs - self.finished - len(self.failed)


@dataclass(frozen=True)
class Prices:
    """What the missing runs of a study take.

    Args:
        seconds: (G,) Of each run of a group; NaN where that was not foreseen.
        fits: File of what is fitted first and is not there yet, in the folder of the study -> seconds.
    """

    seconds: NDArray[np.float64]
    fits: Mapping[str, float]


@checked(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class _Head:
    """What an index says besides its arrays.

    Args:
        study: Digest of the study file and of what reads it.
        title: What the study asks.
        axes: Every axis with its values.
        cells: How many audits it has.
        made: When, in ISO 8601.
        files: Every file that the study names -> its size and when it was changed, in nanoseconds.
        fits: As in :class:`Prices`.
    """

    study: str
    title: str
    axes: dict[str, list[Value]]
    cells: int
    made: Annotated[str, Field(max_length=40)]
    files: dict[str, tuple[int, int] | None]
    fits: dict[str, Annotated[float, Field(ge=0, le=LONGEST, allow_inf_nan=False)]]


def shown(value: Value) -> str:
    """A value as it is written on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def digest_of(data: bytes, scale: str | None) -> str:
    """Of a study file, its scale and the version of leakmap that plans it."""
    read = [hashlib.sha256(data).hexdigest(), scale, __version__, SCHEMA]
    return hashlib.sha256(json.dumps(read).encode()).hexdigest()


def stamp(path: Path) -> tuple[int, int] | None:
    """Size of a file and when it was changed, in nanoseconds; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # a name that none can have, too
        return None
    return found.st_size, found.st_mtime_ns


def record(
    folder: Path,
    study: str,
    title: str,
    axes: Mapping[str, list[Value]],
    cells: int,
    runs: Mapping[str, int],
    prices: Prices,
    files: Sequence[Path],
) -> None:
    """Writes the index of a study.

    Args:
        folder: Of the study.
        study: Digest of its file, see :func:`digest_of`.
        title: What it asks.
        axes: Every axis with its values.
        cells: How many audits it has.
        runs: Key of every run -> its group.
        prices: What the missing ones take.
        files: That the study names.
    """
    import torch

    keys = _numbers(list(runs))
    order = np.argsort(keys)
    keys, groups = keys[order], np.fromiter(runs.values(), np.int32, len(runs))[order]
    (folder / FILE).unlink(missing_ok=True)
    if len(keys) < len(runs) or (keys[1:] == keys[:-1]).any():
        return
    stamps = {str(path): stamp(path) for path in files}
    made = datetime.now(UTC).isoformat(timespec="seconds")
    head = _Head(study, title, dict(axes), cells, made, stamps, dict(prices.fits))
    arrays = {"keys": keys.view(np.int64), "groups": groups, "seconds": prices.seconds}
    write_tensors(
        folder / FILE,
        {name: torch.from_numpy(array) for name, array in arrays.items()},
        {"head": TypeAdapter(_Head).dump_json(head).decode()},
    )


def recorded_status(file: Path | str, folder: Path, scale: str | None = None) -> Status | str:
    """Says where a study stands by the record of the ``run`` that planned it last; plans and runs nothing.

    Outcomes are counted by the names of their files. One that was damaged later counts until the next run finds it.

    Args:
        file: The study file, or the name of one that comes with leakmap.
        folder: Where its results lie.
        scale: As the study is read.

    Returns:
        Where it stands, or why there is no record that says so: then :func:`leakmap.study_status` does.

    Raises:
        StoreError: the folder holds results of another schema.
    """
    check_schema(folder)
    if not (folder / FILE).is_file():
        return "no run has planned it in that folder yet"
    try:
        study = digest_of(read_limited(file_of(file), "a study"), scale)
    except LeakmapError:
        return "its file cannot be read"
    try:
        arrays, texts = read_arrays(folder / FILE, LIMIT)
        head = TypeAdapter(_Head).validate_json(texts["head"])
        keys, groups, seconds = (arrays[name] for name in ("keys", "groups", "seconds"))
        keys = keys.view(np.uint64)
        right = len(keys) == len(groups) and keys.ndim == groups.ndim == seconds.ndim == 1 and groups.dtype == np.int32
        right = right and (keys[1:] > keys[:-1]).all() and (groups >= 0).all() and (groups < len(seconds)).all()
        if not right or seconds.dtype != np.float64 or (seconds < 0).any() or (seconds > LONGEST).any():
            return f"{folder / FILE} is damaged"
    except DAMAGED:
        return f"{folder / FILE} is damaged"
    if head.study != study:
        return "the study file, its scale or leakmap is another one than when it was last run"
    if changed := [path for path, was in head.files.items() if stamp(Path(path)) != was]:
        return f"{changed[0]} changed since it was last run"
    return _status(folder, head, keys, groups, Prices(seconds, head.fits))


def _status(folder: Path, head: _Head, keys: NDArray[np.uint64], groups: NDArray[np.int32], prices: Prices) -> Status:
    there = stored(folder)
    scored, failed = _places(keys, there.scored), _places(keys, there.failed)
    open_ = np.ones(len(keys), np.bool_)
    open_[scored[scored >= 0]] = False
    finished = len(keys) - int(open_.sum())
    failures = [there.failed[n] for n in np.flatnonzero(failed >= 0).tolist() if open_[failed[n]]]
    open_[failed[failed >= 0]] = False
    return Status(
        head.title,
        head.axes,
        head.cells,
        len(keys),
        finished,
        {key: _failure(failed_at(folder, key)) for key in failures},
        _seconds_left(folder, there.scored, scored, open_, groups, prices),
        head.made,
    )


def _numbers(keys: Sequence[str]) -> NDArray[np.uint64]:
    """The first digits of each key as a number; 0, which no key has, where they are no digits."""
    digits = _NIBBLES[np.frombuffer("".join([key[:DIGITS] for key in keys]).encode("ascii"), np.uint8)]
    digits = digits.reshape(-1, DIGITS // 2, 2)
    packed = np.ascontiguousarray((digits[..., 0] & 15) << 4 | (digits[..., 1] & 15))
    numbers = packed.view(">u8").reshape(-1).astype(np.uint64)
    return np.where((digits == 255).any((1, 2)), np.uint64(0), numbers)


def _places(keys: NDArray[np.uint64], names: Sequence[str]) -> NDArray[np.intp]:
    """(N,) The place of each name among the sorted keys, -1 where it is none of them."""
    numbers = _numbers(names)
    if not len(keys):
        return np.full(len(numbers), -1)
    found = np.searchsorted(keys, numbers).clip(max=len(keys) - 1)
    return np.where(keys[found] == numbers, found, -1)


def _seconds_left(
    folder: Path,
    names: Sequence[str],
    places: NDArray[np.intp],
    open_: NDArray[np.bool_],
    groups: NDArray[np.int32],
    prices: Prices,
) -> float | None:
    """By what was foreseen of every run, and by what a sample of those that are finished took."""
    foreseen = prices.seconds[groups] if len(prices.seconds) else np.zeros(0)
    there = np.flatnonzero(places >= 0)
    sample: list[int] = there[:: max(1, len(there) // SAMPLED)].tolist()
    took = np.array([_took(scored_at(folder, names[n])) for n in sample])
    told = foreseen[places[sample]]
    both = np.isfinite(took) & (told > 1e-6)
    ratio = took[both].sum() / told[both].sum() if both.any() else 1.0
    left = foreseen[open_] * ratio
    if (unknown := np.isnan(left)).any():
        usual = np.concatenate([foreseen[~np.isnan(foreseen)] * ratio, took[np.isfinite(took)]])
        if not len(usual):
            return None
        left[unknown] = usual.mean()
    fitting = sum(seconds for name, seconds in prices.fits.items() if stamp(folder / name) is None)
    return float(left.sum()) + (fitting if len(left) else 0.0)


def _outcome(path: Path) -> dict[str, Any]:
    """What a file says besides its pictures; nothing where it cannot be read."""
    try:
        with safe_open(path, "np") as file:
            found = json.loads(file.metadata()["outcome"])
        return found if isinstance(found, dict) else {}
    except DAMAGED:
        return {}


def _took(path: Path) -> float:
    found = _outcome(path).get("seconds")
    return float(found) if isinstance(found, (int, float)) and 0 <= found <= LONGEST else np.nan


def _failure(path: Path) -> tuple[str, str]:
    match _outcome(path).get("failure"):
        case [str(kind), str(text)]:
            return kind, text
    return "Damaged", f"{path} cannot be read; the next run makes it again."
