"""The page of the map."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.cases import Entry

PAGE = Path("docs/results/atlas.md")


def page(found: Mapping[str, Entry]) -> str:
    """The page."""
    return f"# The map\n\n{len(found)} cells.\n"
