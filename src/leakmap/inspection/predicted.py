"""Predictors that are worth measuring, by how each did on the reference map, and what they tell of a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from pydantic import TypeAdapter

from leakmap.client.data import load_pictures, to_channels
from leakmap.errors import DataError
from leakmap.inspection.predictors import PREDICTORS, Known
from leakmap.inspection.traits import Traits
from leakmap.local_rule import LocalRule, Mode
from leakmap.models.network import Network
from leakmap.observation.contents import Public

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


@dataclass(frozen=True)
class Prediction:
    """What one predictor says of a network.

    Args:
        name: Of the predictor.
        mode: Of the client.
        value: Measured.
        low: Lowest mean relative rank on the map among networks with the nearest values; 0 is first, .5 chance.
        high: The highest.
    """

    name: str
    mode: Mode
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.mode:5}  {PREDICTORS[self.name].words}: {self.value:.3g}; networks of the map with the nearest "
            f"values: relative rank {self.low:.2f} to {self.high:.2f}"
        )


def predict(network: Network, traits: Traits, data: str) -> tuple[Prediction, ...]:
    """Measures the accepted predictors, of a client with one picture that shares its gradient, in either mode.

    Args:
        network: Architecture and weights.
        traits: Of the architecture.
        data: Specification of public pictures; their classes are not looked at.

    Raises:
        DataError: the pictures cannot be read, or do not fit the network.
    """
    found = shipped()
    names = [name for name, one in found.predictors.items() if one.accepted] if found else []
    if not names or found is None:
        return ()
    channels, size, _ = network.task.shape
    pictures = load_pictures(data, size).floats
    if pictures.shape[1] != channels and channels not in (1, 3):
        raise DataError(f"The network takes {channels} channels, the pictures of {data} have {pictures.shape[1]}.")
    public = Public(to_channels(pictures, channels), torch.arange(len(pictures)) % network.task.classes)
    modes: tuple[Mode, ...] = ("eval", "train") if traits.noise or any(n.running for n in traits.norms) else ("eval",)
    told: list[Prediction] = []
    for mode in modes:
        known = Known(network, traits, LocalRule(mode=mode), public)
        for name in names:
            value = PREDICTORS[name].measure(known)
            told.append(Prediction(name, mode, value, *found.predictors[name].meant(value)))
    return tuple(told)
