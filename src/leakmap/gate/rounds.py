"""The file of a watched folder for pipelines."""

from collections.abc import Sequence
from pathlib import Path

import junitparser

from leakmap.errors import plain
from leakmap.files import write_text
from leakmap.result.watched import Watched, pooled_rounds


def write_rounds_junit(rows: Sequence[Watched], path: Path) -> None:
    """Writes a suite of JUnit: all captures together, then each of them, of which the exposed ones fail.

    Args:
        rows: Of :func:`leakmap.doctor.watching.look`.
        path: The file.
    """
    found = pooled_rounds(rows)
    suite = junitparser.TestSuite("leakmap watch")
    together = junitparser.TestCase("all captures together", classname="leakmap.watch", time=0.0)
    alarm = next((one for one in found.alarms if one.kind == "pooled"), None)
    if alarm is not None:
        together.result = [junitparser.Failure(plain(alarm.sentence), "pooled")]
    together.system_out = f"{found.captures} captures, evidence {found.evidence:.3g}, p {found.p:.3g}"
    suite.add_testcase(together)
    for row in rows:
        case = junitparser.TestCase(plain(row.name), classname="leakmap.watch.capture", time=0.0)
        wrong = [finding for finding in row.findings if finding.level == "wrong"]
        if row.exposed:
            case.result = [junitparser.Failure(f"exposed ({row.level})", row.level)]
        elif wrong:
            case.result = [junitparser.Error(plain(wrong[0].sentence), wrong[0].name)]
        elif row.level is None or row.level == "inconclusive":
            case.result = [junitparser.Skipped(plain(row.note or "not scored"), row.level or "not scored")]
        suite.add_testcase(case)
    report = junitparser.JUnitXml("leakmap")
    report.add_testsuite(suite)
    report.update_statistics()
    write_text(path, report.tostring().decode("utf-8") + "\n")
