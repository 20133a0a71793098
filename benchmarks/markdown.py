"""What the pages of benchmarks have in common."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from leakmap.files import write_text
from leakmap.report.markdown import wrapped
from leakmap.runs.run import versions_of
from leakmap.scoring.statistics import mean_interval


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table and an empty one."""
    return [f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *rows)] + [""]


def interval(per_client: list[float], form: str, *, marked: bool = False) -> str:
    """The mean over clients with its 95 % interval; of a single client its value.

    Args:
        per_client: Values.
        form: Of each number.
        marked: Whether it is bold where the interval leaves out 0.
    """
    found = mean_interval(per_client)
    if len(per_client) < 2:
        return f"{found.value:{form}}"
    text = f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"
    return f"**{text}**" if marked and not found.low <= 0 <= found.high else text


def bounds(values: Sequence[float]) -> tuple[float, float, float]:
    """A mean and its 95 % interval, as they are stored."""
    found = mean_interval(values)
    return found.value, found.low, found.high


def ranged(found: Sequence[float], form: str) -> str:
    """A stored value with its interval, each in this form."""
    value, low, high = found
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def versions() -> str:
    """What results on the CPU depend on besides their settings."""
    return ", ".join(f"{name} {version}" for name, version in versions_of(torch.device("cpu")).items())


def measured_with(records: Iterable[Mapping[str, Any]]) -> str:
    """The versions that records name, each once: those of a page may be measured months apart."""
    return " ".join(dict.fromkeys(f"{record['versions']}." for record in records))


def publish(content: str, *paths: Path) -> None:
    """Wraps a page, prints it and writes it to files."""
    content = wrapped(content)
    for path in paths:
        write_text(path, content)
    print(content)
