"""Which predictors are worth measuring: how each did on the networks of the reference map, shipped with the package."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import TypeAdapter

FILE = Path("src/leakmap/inspection/predictors.json")
"""Where a benchmark writes it, in the repository."""
NEAREST = 7
"""Configurations of the map with the nearest values, which say what a value has meant."""

Bounds = tuple[float, float, float]
"""A value and its 95 % interval."""


@dataclass(frozen=True)
class Judged:
    """How a predictor did.

    Args:
        plain: Spearman's correlation with the relative rank of true pictures, over all configurations.
        spearman: That of what it tells of families that it was not fitted to.
        area: Under the ROC curve, for networks of which more than chance is read.
        accepted: Whether it surely tells something, and more than what needs no measurement.
        points: Its value and the relative rank, of every configuration, by value.
    """

    plain: float
    spearman: Bounds
    area: Bounds
    accepted: bool
    points: tuple[tuple[float, float], ...]

    def meant(self, value: float) -> tuple[float, float]:
        """The lowest and the highest relative rank of the configurations with the nearest values."""
        near = sorted(self.points, key=lambda point: abs(point[0] - value))[:NEAREST]
        return min(rank for _, rank in near), max(rank for _, rank in near)


@dataclass(frozen=True)
class Predicted:
    """All of them.

    Args:
        command: What compared them.
        versions: Of what they were measured with.
        configurations: How many.
        families: Of architectures.
        predictors: By name.
    """

    command: str
    versions: str
    configurations: int
    families: int
    predictors: Mapping[str, Judged]


@cache
def shipped() -> Predicted | None:
    """What ships with the package; None where this copy has none."""
    file = files("leakmap.inspection").joinpath(FILE.name)
    return TypeAdapter(Predicted).validate_json(file.read_bytes()) if file.is_file() else None
