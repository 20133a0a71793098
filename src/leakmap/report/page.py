"""A page: one HTML file that carries everything, filled in from a template of this package."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, PackageLoader

from leakmap.files import write_text
from leakmap.report.glossary import Terms
from leakmap.units import duration

FLOOR_NAMES = {
    "prior_only": "prior only",
    "swapped": "swapped update",
    "other_client": "another client's reconstruction",
    "mean_picture": "mean picture",
    "nearest_public": "nearest public picture",
}


def write_page(path: Path, template: str, **content: Any) -> Path:
    """Fills in a template and writes it; returns its path."""
    environment = Environment(
        loader=PackageLoader("leakmap", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=number, interval=interval, percent=percent, metric=metric_name, floor=floor, duration=duration
    )
    html = environment.get_template(template).render(floor_names=FLOOR_NAMES, term=Terms(), **content)
    write_text(path, html)
    return path


def today() -> str:
    """The date, UTC, as in 2026-01-31."""
    return datetime.now(UTC).date().isoformat()


def metric_name(name: str) -> str:
    """The name of a metric for readers: ``psnr_in_boxes`` is PSNR in boxes."""
    first, _, rest = name.partition("_")
    return f"{first.upper()} {rest.replace('_', ' ')}".strip()


def floor(floors: Mapping[str, float | None], name: str) -> str:
    """The mean of a floor for readers; in words, where it came to no reconstruction for any client.

    Without a second client there is no other one: a dash.
    """
    if name in floors:
        return number(floors[name])
    return "–" if name == "other_client" else "no reconstruction"


def number(value: float | None, digits: int = 3) -> str:
    """A number for readers; a dash for none."""
    return "–" if value is None else f"{value:.{digits}g}"


class Estimated(Protocol):
    """Anything with an estimate and its interval; None where there is none."""

    @property
    def value(self) -> float | None:
        """The estimate."""
        ...

    @property
    def low(self) -> float | None:
        """Lower end."""
        ...

    @property
    def high(self) -> float | None:
        """Upper end."""
        ...


def interval(estimate: Estimated, digits: int = 3) -> str:
    """``value [low, high]`` for readers."""
    low, high = estimate.low, estimate.high
    middle = number(estimate.value, digits)
    return f"{middle} [{number(low, digits)}, {number(high, digits)}]" if low is not None else f"{middle} (one client)"


def percent(value: float | None) -> str:
    """A share in percent for readers."""
    return "–" if value is None else f"{value:.1%}"
