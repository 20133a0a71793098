"""What the gate found: a line for people, an exit code for pipelines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leakmap.errors import BadSetting
from leakmap.gate.baseline import Comparison, compared
from leakmap.report import told
from leakmap.result.result import Result
from leakmap.scoring.verdict import BROKEN, LEVELS, Level

NOT_REACHED, REACHED, INCONCLUSIVE = 0, 1, 2
"""Exit codes."""
GATES: Sequence[Level] = LEVELS[1:]
"""Levels that a gate may have: an audit that failed as a measurement is below none of them."""
LOWEST: Level = "statistical"
"""The lowest level that says that something leaks."""
Answer = Literal["reached", "not reached", "worse", "not worse", "inconclusive", "defence broken"]


@dataclass(frozen=True)
class Finding:
    """What the gate found.

    Args:
        gate: Its level.
        result: Of the audit.
        comparison: With the baseline; None without one.
    """

    gate: Level
    result: Result
    comparison: Comparison | None = None

    @property
    def level(self) -> Level:
        """Of the verdict."""
        return self.result.verdict.level

    @property
    def at_gate(self) -> bool:
        """Whether the verdict is at the level of the gate or above."""
        return self.level != "inconclusive" and LEVELS.index(self.level) >= LEVELS.index(self.gate)

    @property
    def answer(self) -> Answer:
        """In a word; a broken defence fails every gate, unless the baseline has it too."""
        if BROKEN in self.result.flags and not (self.comparison is not None and self.comparison.broken):
            return "defence broken"
        if self.level == "inconclusive" or (self.comparison is not None and not self.comparison.enough):
            return "inconclusive"
        if self.comparison is None:
            return "reached" if self.at_gate else "not reached"
        return "worse" if self.at_gate and self.comparison.risen else "not worse"

    @property
    def code(self) -> int:
        """The exit code."""
        codes = {"not reached": NOT_REACHED, "not worse": NOT_REACHED, "inconclusive": INCONCLUSIVE}
        return codes.get(self.answer, REACHED)

    @property
    def why(self) -> str:
        """What the comparison with a baseline rests on, as a sentence; empty without one."""
        found = self.comparison
        if found is None or self.level == "inconclusive":
            return ""
        if not found.enough:
            return f"Only {found.clients} clients finished in both audits, too few to tell a difference from noise."
        if risen := found.risen:
            return "Risen: " + ", ".join(f"{m.name} {m.before:.3g} to {m.now:.3g} (p {m.p:.2g})" for m in risen) + "."
        least = min(found.measures, key=lambda m: m.p)
        return f"Nothing rose by more than noise (least p {least.p:.2g}, of {least.name})."

    @property
    def line(self) -> str:
        """All of it in one line."""
        head = f"gate {self.gate}: {self.answer}"
        if self.comparison is not None:
            head += f"{' than' if 'worse' in self.answer else ', beside'} {self.comparison.path}"
            head += f" ({self.comparison.level} there, {self.level} here)"
        elif self.level != self.answer:
            head += f" ({self.level})"
        counted = told.counts(self.result)
        parts = [f"{head}: {counted}", self.limit] if counted else [head]
        parts += [self.why[:1].lower() + self.why[1:].rstrip(".")] if self.why else []
        return "; ".join([*parts, f"exit code {self.code}"])

    @property
    def limit(self) -> str:
        """What the counts say of all such clients; empty if no client finished."""
        found = self.result.exposure
        if found is None:
            return ""
        share = found.client_share
        least = f"{share.low:.1%} to " if share.low else "at most "
        return f"{least}{share.high:.1%} of such clients (95 %)"


def gate_level(text: str) -> Level:
    """The level that a gate was given as.

    Raises:
        BadSetting: there is no such level.
    """
    for level in GATES:
        if text == level:
            return level
    raise BadSetting(f"--gate takes one of {', '.join(GATES)}; got {text!r}.")


def found(gate: Level, result: Result, baseline: Result | None = None, path: Path = Path()) -> Finding:
    """What the gate finds in a result.

    Args:
        gate: Its level: with a baseline the least level at which being worse counts.
        result: Of the audit.
        baseline: Of an earlier one.
        path: Of the baseline.
    """
    if baseline is None:
        return Finding(gate, result)
    return Finding(gate, result, compared(baseline, path, result, broken=BROKEN in baseline.flags))
