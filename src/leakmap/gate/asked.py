"""What is asked of the gate, checked before an audit, and answered once there is a result."""

import os
from dataclasses import dataclass
from pathlib import Path

from leakmap.errors import BadSetting
from leakmap.gate.baseline import check_comparable, read_baseline
from leakmap.gate.files import place_of, write_junit, write_markdown, write_sarif
from leakmap.gate.finding import LOWEST, Finding, found, gate_level
from leakmap.plan.plan import Plan
from leakmap.result.result import Result
from leakmap.scoring.verdict import Level

SUMMARY = "GITHUB_STEP_SUMMARY"
"""Environment variable in which a hosted runner names the file of its summary."""


@dataclass(frozen=True)
class Files:
    """The files that pipelines read; None: it is not written.

    Args:
        junit: JUnit XML.
        sarif: SARIF 2.1.0.
        markdown: A table, which is also appended to the summary of a hosted runner.
    """

    junit: Path | None = None
    sarif: Path | None = None
    markdown: Path | None = None

    @property
    def given(self) -> list[Path]:
        """Those that are written."""
        return [path for path in (self.junit, self.sarif, self.markdown) if path is not None]

    def write(self, finding: Finding, place: str) -> None:
        """Writes them.

        Args:
            finding: What the gate found.
            place: The file that SARIF points to where the model has none.
        """
        for path in self.given:
            path.parent.mkdir(parents=True, exist_ok=True)
        if self.junit is not None:
            write_junit(finding, self.junit)
        if self.sarif is not None:
            write_sarif(finding, self.sarif, place_of(finding, place))
        if self.markdown is not None:
            summary = os.environ.get(SUMMARY)
            write_markdown(finding, self.markdown, Path(summary) if summary else None)


@dataclass(frozen=True)
class Asked:
    """What is asked of the gate.

    Args:
        level: Its level.
        files: What it writes.
        place: The file that SARIF points to where the model has none.
        baseline: The earlier result, if there is one.
        path: Its file.
    """

    level: Level
    files: Files
    place: str
    baseline: Result | None = None
    path: Path = Path()

    def answered(self, result: Result) -> Finding:
        """What the gate found; writes the files.

        Raises:
            BadSetting: the baseline is of an audit of another kind.
        """
        if self.baseline is not None:
            check_comparable(self.baseline, self.path, result.plan)
        finding = found(self.level, result, self.baseline, self.path)
        self.files.write(finding, self.place)
        return finding


def asked(
    gate: str | None, baseline: Path | None, files: Files, plan: Plan, folder: Path, *, real: bool
) -> Asked | None:
    """What is asked of the gate, checked before the audit; None where nothing is.

    Args:
        gate: Its level; with a baseline alone the lowest one that says that something leaks.
        baseline: The ``result.json`` of an earlier audit.
        files: What it writes.
        plan: The audit to come.
        folder: Of its results.
        real: Whether captured clients are audited, whose plan follows from their files.

    Raises:
        UsageError: there is no such level, a file has no gate to tell of, or the baseline does not fit.
    """
    if gate is None and baseline is None:
        if files.given:
            raise BadSetting("--junit, --sarif and --markdown say what a gate found: give --gate LEVEL or --baseline.")
        return None
    level = LOWEST if gate is None else gate_level(gate)
    if directory := next((path for path in files.given if path.is_dir()), None):
        raise BadSetting(f"{directory} is a folder; give the path of a file to write.")
    place = (folder / "result.json").as_posix()
    if baseline is None:
        return Asked(level, files, place)
    earlier = read_baseline(baseline)
    if not real:
        check_comparable(earlier, baseline, plan)
    return Asked(level, files, place, earlier, baseline)
