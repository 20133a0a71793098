"""Where a result comes from: what was measured by its fingerprints, when, with what, on which machine."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError

from leakmap.errors import StoreError
from leakmap.files import read_limited, refusal
from leakmap.result.part import Part

FILE = "provenance.json"
WHAT = "the provenance of a leakmap audit"


class Provenance(Part):
    """Where the result of an audit comes from; written beside ``result.json``.

    Args:
        schema_number: Number of this schema.
        started: When the first run of the audit began, UTC, ISO 8601.
        finished: When the last one ended; empty while it runs.
        contents: Name of network and pictures together, as in ``plan.json``.
        architecture: SHA-256 of the specification, of the user's own code and of the names, types and shapes of the
            weights.
        weights: SHA-256 of the weights that the clients got.
        pictures: SHA-256 of all pictures and how they were divided.
        observations: SHA-256 of every captured update; empty where clients were simulated.
        parameters: Trained parameters of the network.
        pictures_per_client: Pictures behind one update.
        leakmap: Version.
        commit: Of leakmap's own source, where it runs from a checkout; else empty.
        python: Version.
        platform: Operating system and architecture of the machine.
        processor: Its name.
        cores: That the process could use.
        device: Where the runs were computed.
        packages: Every installed package as ``name==version``: the lock.
    """

    schema_number: Literal[1] = Field(default=1, alias="schema")
    started: str
    finished: str
    contents: str
    architecture: str
    weights: str
    pictures: str
    observations: tuple[str, ...]
    parameters: int
    pictures_per_client: int
    leakmap: str
    commit: str
    python: str
    platform: str
    processor: str
    cores: int
    device: str
    packages: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the file; nothing in it is run.

        Raises:
            StoreError: there is none, or it does not hold that.
        """
        try:
            return cls.model_validate_json(read_limited(path, WHAT), strict=True)
        except ValidationError as error:
            raise StoreError(refusal(error, str(path), WHAT)) from None
