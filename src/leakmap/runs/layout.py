"""How outcomes lie in a folder: names of files alone say which runs ended with a score and which failed.

A file is renamed into place when it is on disk, so what the names say is right at any moment, whatever was killed.
Nothing here needs torch.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from leakmap.errors import StoreError
from leakmap.files import read_json

SCHEMA = 10
"""Version of what lies in a folder; part of every key."""
MARKER = "schema.json"
CLAIM = "plan.json"
"""Says what work a folder belongs to."""
_TRIALS, _SCORED, _FAILED = "trials", ".safetensors", ".failed.safetensors"
_KEY = 64


@dataclass(frozen=True)
class Stored:
    """What lies in a folder, by the names of its files.

    Args:
        scored: Keys of runs that ended with a score.
        failed: Keys of runs that failed.
    """

    scored: tuple[str, ...]
    failed: tuple[str, ...]


def stored(folder: Path) -> Stored:
    """Lists a folder of outcomes; one that does not exist holds none."""
    try:
        there = os.listdir(folder / _TRIALS)  # noqa: PTH208 - a Path for each of a million names takes seconds
    except (FileNotFoundError, NotADirectoryError):
        there = []
    return Stored(_keys(there, _SCORED), _keys(there, _FAILED))


def _keys(names: list[str], ending: str) -> tuple[str, ...]:
    length = _KEY + len(ending)
    return tuple([name[:_KEY] for name in names if len(name) == length and name.endswith(ending) and name.isascii()])


def scored_at(folder: Path, key: str) -> Path:
    """Where the outcome of a run lies that ended with a score."""
    return folder / _TRIALS / f"{key}{_SCORED}"


def failed_at(folder: Path, key: str) -> Path:
    """Where the outcome of a run lies that failed."""
    return folder / _TRIALS / f"{key}{_FAILED}"


def check_schema(folder: Path) -> None:
    """Refuses a folder with results of another schema, whose keys mean other runs; an empty one is fine.

    Raises:
        StoreError: it holds such.
    """
    path = folder / MARKER
    if not path.exists() and not (folder / CLAIM).exists() and stored(folder) == Stored((), ()):
        return
    found = read_json(path)
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        told = f"schema {schema}" if isinstance(schema, int) else "an earlier schema"
        raise StoreError(
            f"{folder} holds results of {told}, which this leakmap (schema {SCHEMA}) cannot read or continue; "
            "give another --out, or remove that folder."
        )
