"""What an audit hands back: its result, and the pictures beside it."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from leakmap import report
from leakmap.drawing import card
from leakmap.files import write_text
from leakmap.report.pictures import chosen
from leakmap.result.result import Result
from leakmap.scoring.verdict import Level


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        result: The content of ``result.json``; see docs/result.md.
        rows: For each client, named pictures ``(N, C, H, W)`` in [0, 1]: the original first, then the reconstruction
            and the floors.
    """

    result: Result
    rows: list[dict[str, Tensor]]

    @property
    def level(self) -> Level:
        """The verdict's level."""
        return self.result.verdict.level

    def __repr__(self) -> str:
        return f"<Audit: {self.level}. {self.result.verdict.statement}>"

    def _repr_html_(self) -> str:
        shown = chosen(self.result, self.rows)
        names = ("original", "reconstruction")
        rows = {name: [one for each in shown if (one := each.picture(name)) is not None] for name in names}
        return card("Audit", self.result.told(), rows if shown else None)

    def save(self, folder: Path | str) -> Path:
        """Writes ``result.json`` and the self-contained ``report.html``; returns the path of the report."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "result.json", self.result.as_json() + "\n")
        return report.write(folder / "report.html", [report.Section(self.result, self.rows)])
