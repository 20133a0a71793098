"""The files of a gate for pipelines: JUnit, SARIF and a table in Markdown."""

import json
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import junitparser

from leakmap.errors import plain
from leakmap.files import write_text
from leakmap.gate.finding import INCONCLUSIVE, REACHED, Finding
from leakmap.gate.rules import FLAGS, LEVELS, About, about_flag
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code
from leakmap.report import told
from leakmap.result.clients import FinishedClient
from leakmap.version import __version__

SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"


def write_junit(finding: Finding, path: Path) -> None:
    """Writes a suite of tests: the gate, then every client, of which the exposed ones fail where the gate does."""
    result = finding.result
    suite = junitparser.TestSuite(f"leakmap {plain(result.plan.model)}")
    suite.add_testcase(_gate_case(finding))
    exposed = {one.client: one.level for one in reversed(result.exposure.found)} if result.exposure else {}
    for client in result.clients:
        case = junitparser.TestCase(f"client {client.client + 1}", classname="leakmap.client")
        if not isinstance(client, FinishedClient):
            case.time = 0.0
            case.result = [junitparser.Error(plain(client.failure), "LostClient")]
        else:
            case.time = round(client.seconds, 3)
            if client.client in exposed and finding.code == REACHED:
                case.result = [junitparser.Failure(f"exposed ({exposed[client.client]})", exposed[client.client])]
        suite.add_testcase(case)
    for name, text in result.flags.items():
        suite.add_property(plain(f"flag.{name}"), plain(text))
    report = junitparser.JUnitXml("leakmap")
    report.add_testsuite(suite)
    report.update_statistics()
    write_text(path, report.tostring().decode("utf-8") + "\n")


def _gate_case(finding: Finding) -> junitparser.TestCase:
    case = junitparser.TestCase(f"gate {finding.gate}", classname="leakmap.gate", time=0.0)
    if finding.code == REACHED:
        case.result = [junitparser.Failure(plain(finding.line), finding.level)]
    elif finding.code == INCONCLUSIVE:
        case.result = [junitparser.Error(plain(finding.line), "inconclusive")]
    case.system_out = plain("\n".join([finding.line, *_statements(finding)]))
    return case


def write_sarif(finding: Finding, path: Path, place: str) -> None:
    """Writes a log of SARIF 2.1.0: a rule for every level and flag, a result for the verdict and each raised flag.

    Args:
        finding: What the gate found.
        path: The file.
        place: The file that results point to, such as that of the model.
    """
    known: dict[str, About] = {**LEVELS, **FLAGS, **{flag: about_flag(flag) for flag in finding.result.flags}}
    places = list(known)
    location = {"physicalLocation": {"artifactLocation": {"uri": _uri(place)}, "region": {"startLine": 1}}}

    def result(rule: str, kind: str, level: str, text: str) -> dict[str, Any]:
        return {
            "ruleId": rule,
            "ruleIndex": places.index(rule),
            "kind": kind,
            "level": level,
            "message": {"text": plain(text)},
            "locations": [location],
            "partialFingerprints": {"leakmap/v1": plain(f"{rule} {finding.result.plan.model}")},
        }

    statements = [finding.line, *_statements(finding)]
    verdict = result(finding.level, *_severity(finding), " ".join(statements))
    flags = [result(name, "fail", "note", text) for name, text in finding.result.flags.items()]
    run = {
        "tool": {
            "driver": {
                "name": "leakmap",
                "version": __version__,
                "rules": [_rule(name, about) for name, about in known.items()],
            }
        },
        "invocations": [{"executionSuccessful": True, "exitCode": finding.code}],
        "columnKind": "unicodeCodePoints",
        "results": [verdict, *flags],
    }
    log = {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    write_text(path, json.dumps(log, indent=2) + "\n")


def _severity(finding: Finding) -> tuple[str, str]:
    """Kind and level of the verdict's result."""
    if finding.code == REACHED:
        return "fail", "error"
    if finding.code == INCONCLUSIVE:
        return "fail", "warning"
    return ("pass", "none") if finding.level == "none_found" else ("fail", "note")


def _rule(name: str, about: About) -> dict[str, Any]:
    return {
        "id": name,
        "name": "".join(word.capitalize() for word in name.split("_")),
        "shortDescription": {"text": about.short},
        "help": {"text": f"{about.short} {about.advice}", "markdown": f"**{about.short}** {about.advice}"},
        "defaultConfiguration": {"level": "error" if name in ("exact", "visual", "partial") else "warning"},
    }


def place_of(finding: Finding, otherwise: str) -> str:
    """The file that a pipeline's results point to: that of the user's own model, or another one."""
    name = Spec.parse(finding.result.plan.model).name
    return name.partition(":")[0] if is_user_code(name) else otherwise


def _uri(place: str) -> str:
    path = PurePath(place)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())


def markdown(finding: Finding) -> str:
    """What the gate found as a table that a pipeline's summary shows."""
    result = finding.result
    rows = [("verdict", finding.level), ("gate", f"{finding.gate}: {finding.answer}, exit code {finding.code}")]
    if counted := told.counts(result):
        rows += [("counted", counted), ("of such clients", finding.limit)]
    if result.line_up.attack is not None:
        line_up = result.line_up.attack
        rows += [("first in the line-up", f"{line_up.hits} of {line_up.n}; {line_up.chance:.1%} expected by chance")]
    rows += [("attacker", f"{result.knowledge.attacker}, {result.plan.attack}"), ("client", result.plan.model)]
    rows += [("against the baseline", finding.why)] if finding.why else []
    rows += [(f"flag {name}", text) for name, text in result.flags.items()]
    lines = [f"## leakmap: {_cell(finding.level)}", "", _cell(told.headline(result)), "", "| | |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join([*lines, "", f"Repeat with `{_cell(result.command).replace('`', '')}`", ""])


def write_markdown(finding: Finding, path: Path, summary: Path | None = None) -> None:
    """Writes the table, and appends it to the summary of a hosted runner where there is one.

    Args:
        finding: What the gate found.
        path: The file.
        summary: The runner's.
    """
    text = markdown(finding)
    write_text(path, text)
    if summary is not None:
        with summary.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}")


def _cell(text: str) -> str:
    """A text in one cell of a table, without markup of its own."""
    one_line = " ".join(plain(text).split())
    return "".join(f"\\{c}" if c in "\\|<>[]*_`" else c for c in one_line)


def _statements(finding: Finding) -> list[str]:
    result = finding.result
    return [told.headline(result), *filter(None, (result.verdict.worst, result.verdict.typical))]
