"""Where outcomes lie: a folder, one file per trial key, never half-written."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from leakmap.errors import StoreError
from leakmap.local import LocalRule
from leakmap.registry import Spec
from leakmap.scoring.score import Score
from leakmap.threat import ThreatModel
from leakmap.trial import Outcome, Trial


class Store:
    """A folder of outcomes. Resuming is running the keys that are missing.

    Args:
        folder: Made by :meth:`make`.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def make(self) -> None:
        """Makes the folder if it does not exist.

        Raises:
            StoreError: it cannot be made.
        """
        try:
            (self.folder / "trials").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be used for results: {error}.") from None

    def path(self, key: str) -> Path:
        """Where the outcome of a trial lies."""
        return self.folder / "trials" / f"{key}.safetensors"

    def put(self, outcome: Outcome) -> None:
        """Writes an outcome under a temporary name and renames it."""
        record = asdict(outcome)
        tensors = {}
        if outcome.score is not None:
            tensors["pictures"] = outcome.score.pictures.contiguous().clone()
            del record["score"]["pictures"]
        path = self.path(outcome.trial.key)
        temporary = path.with_name(f".{path.name}.part")
        save_file(tensors, temporary, metadata={"outcome": json.dumps(record)})
        temporary.replace(path)

    def get(self, trial: Trial) -> Outcome | None:
        """The stored outcome of a trial; None where there is none that can be read."""
        path = self.path(trial.key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                record: dict[str, Any] = json.loads(file.metadata()["outcome"])
                pictures: Any = file.get_tensor("pictures") if record["score"] is not None else None
            stored = record.pop("trial")
            stored |= {
                "rule": LocalRule(**stored["rule"]),
                "threat": ThreatModel(**stored["threat"]),
                "attack": Spec(**stored["attack"]),
                "metrics": tuple(stored["metrics"]),
            }
            scored = record.pop("score")
            if scored is not None:
                scored["values"] = {name: tuple(values) for name, values in scored["values"].items()}
                scored |= {"ranks": tuple(scored["ranks"]), "galleries": tuple(scored["galleries"])}
                scored = Score(pictures=pictures, **scored)
            record["curve"] = tuple(record["curve"])
            record["failure"] = tuple(record["failure"]) if record["failure"] else None
            found = Outcome(Trial(**stored), score=scored, **record)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None
        return found if found.trial == trial else None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON under a temporary name and renames it; numbers that are not finite become null."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Reads JSON; None where the file is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def finite(value: Any) -> Any:
    """The same JSON value with None in place of numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
