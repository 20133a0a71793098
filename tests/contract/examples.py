"""What the contracts try every algorithm with: its own file says."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from leakmap.errors import UsageError
from leakmap.registry.registry import Example, Registry


def examples(registry: Registry, *, objects: bool | None = None) -> list:
    """Name and example of everything in a registry; of what is for objects or for classes alone if that is given."""
    return [
        pytest.param((name, example), id=example if isinstance(example, str) else name)
        for name in registry.names()
        if objects is None or registry.of_objects(name) == objects
        for example in registry.examples(name)
    ]


def specification(example: Example, folder: Path) -> str:
    """The example as it is typed; skips where something that it takes is not here, such as a data set."""
    if isinstance(example, str):
        return example
    try:
        return example(folder)
    except UsageError as error:
        pytest.skip(str(error))


@contextmanager
def installed() -> Iterator[None]:
    """Skips where the library that something takes is an extra that is not installed."""
    try:
        yield
    except UsageError as error:
        if isinstance(error.__context__, ImportError):
            pytest.skip(str(error))
        raise
