"""All that the doctor says about one captured update, in one call."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leakmap.auditing.captured import held_pictures
from leakmap.capturing.typed import read_observation
from leakmap.doctor.checks import check
from leakmap.doctor.finding import Finding
from leakmap.doctor.replay import Replayed
from leakmap.doctor.replay import replay as run_again
from leakmap.errors import BadSetting
from leakmap.observation.observation import Observation
from leakmap.plan.plan import Progress


@dataclass(frozen=True)
class Examination:
    """What became of a captured update's examination.

    Args:
        observation: What was read.
        findings: What each check without pictures came to.
        replayed: What the replay came to; None without pictures.
    """

    observation: Observation
    findings: tuple[Finding, ...]
    replayed: Replayed | None

    @property
    def wrong(self) -> bool:
        """Whether a fact contradicts the update."""
        levels = [finding.level for finding in self.findings]
        return "wrong" in (levels if self.replayed is None else [*levels, self.replayed.level])

    @property
    def conclusion(self) -> str:
        """What follows from findings and replay together, in one or two sentences."""
        if self.replayed is None:
            return concluded(self.findings)
        left = [finding.name for finding in self.findings if finding.level == "wrong"]
        besides = (
            f" The file contradicts itself all the same: {', '.join(left)}." if self.replayed.exact and left else ""
        )
        return _of_the_replay(self.replayed) + besides

    def as_dict(self) -> dict[str, Any]:
        """Conclusion, findings and replay, of values that JSON can hold."""
        return {
            "conclusion": self.conclusion,
            "findings": [asdict(finding) for finding in self.findings],
            "replay": None if self.replayed is None else self.replayed.as_dict(),
        }


def concluded(findings: Sequence[Finding]) -> str:
    """What follows from checks without the client's pictures, in one or two sentences."""
    by_level = {level: [one.name for one in findings if one.level == level] for level in ("wrong", "notice")}
    if by_level["wrong"]:
        return f"The facts contradict the update: {', '.join(by_level['wrong'])}."
    noticed = f"; worth a look: {', '.join(by_level['notice'])}" if by_level["notice"] else ""
    return f"No fact contradicts the update{noticed}. Only a replay (--replay) shows that the facts are right."


def _of_the_replay(replayed: Replayed) -> str:
    if replayed.exact:
        return "The facts are right: the client, run again on its pictures, sends this update."
    if replayed.cause:
        return "The facts are right or nearly so: what is left is of the size of rounding."
    if replayed.level != "wrong":
        return "A replay cannot tell, as two runs of this client differ too much."
    if replayed.explained_by:
        return f"The facts are wrong in {', '.join(change.name for change in replayed.explained_by)}."
    return "The facts do not give this update, and no other fact that was tried does."


def examine(
    file: Path | str,
    *,
    replay: str | None = None,
    model: str | None = None,
    loss: str | None = None,
    fixed: Path | str | None = None,
    progress: Progress = lambda what, fraction: None,
) -> Examination:
    """Checks a captured update and, given the client's own pictures, replays it to find the fact that is wrong.

    Args:
        file: The Observation file.
        replay: Specification of the pictures that the client held, such as ``npz:FILE``.
        model: The user's own ``file.py:function``, where the file names one.
        loss: The user's own ``file.py:function``, where the file names one.
        fixed: Where to write the Observation with the facts that explain the update.
        progress: Called with what is being done and the finished fraction.

    Raises:
        ObservationError: the file is not a sound Observation.
        ModelError: it names code of the user's own, and none was given; or the weights do not fit the code.
        DataError: the pictures cannot be read or do not fit.
        BadSetting: there is nothing to write to ``fixed``.
    """
    observation = read_observation(file, model, loss)
    findings = check(observation)
    replayed = None
    if replay is not None:
        batch = held_pictures(replay, observation.network.task)
        replayed = run_again(observation, batch, lambda fraction: progress("replaying", fraction))
    if fixed is not None:
        if replayed is None or replayed.corrected is None:
            raise BadSetting("Nothing to write with --fixed: the replay found no other facts that explain the update.")
        replayed.corrected.to_file(fixed)
    if replayed is not None and replayed.exact and not replayed.spread:
        findings = [_overruled(finding) for finding in findings]
    return Examination(observation, tuple(findings), replayed)


_UNTESTED = ("buffers", "mode", "steps", "BatchNorm momentum", "precision")
"""Checks of what a replay of the update says nothing about: the buffers that came back, and what rounding costs."""


def _overruled(finding: Finding) -> Finding:
    """A finding beside a replay that gives the update: it contradicts a fact no more."""
    if finding.level != "wrong" or finding.name in _UNTESTED:
        return finding
    sentence = f"The replay overrules this, as with these facts the client sends this update: {finding.sentence}"
    return Finding(finding.name, "notice", sentence)
