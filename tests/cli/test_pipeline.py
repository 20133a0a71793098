"""The example of a pipeline: its steps are run as a hosted runner would, as far as they need no network."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import junitparser
import pytest
import yaml

from leakmap.evidence.verify import verify_bundle

EXAMPLE = Path(__file__).parents[2] / "examples" / "ci"


@pytest.mark.timeout(600)
def test_the_steps_of_the_workflow_run_and_stop_the_pipeline(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "ci")
    with (tmp_path / "ci" / "leakmap.toml").open("a") as defaults:
        defaults.write("workers = 0\n")  # processes of its own take longer to start than these runs take
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "leakmap").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m leakmap "$@"\n')
    (programs / "leakmap").chmod(0o755)
    summary = tmp_path / "summary.md"
    there = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": str(summary)}

    workflow = yaml.safe_load((EXAMPLE / "workflow.yml").read_text())
    (job,) = workflow["jobs"].values()
    (install, audit) = (step["run"] for step in job["steps"] if "run" in step)
    assert install.startswith("python -m pip install")  # the only step that needs a network
    assert {step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step} == {
        "actions/checkout", "actions/setup-python", "actions/upload-artifact", "github/codeql-action/upload-sarif",
    }  # fmt: skip

    def ran() -> subprocess.CompletedProcess[str]:
        words = ["bash", "-e", "-c", audit]  # as a hosted runner runs a step
        return subprocess.run(words, cwd=tmp_path, env=there, capture_output=True, text=True, timeout=280)

    first = ran()
    assert first.returncode == 1, first.stderr
    assert "gate partial: reached (exact): 9 of 9 clients" in first.stderr
    assert junitparser.JUnitXml.fromfile(str(tmp_path / "reports" / "junit.xml")).failures == 10
    uploads = next(step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))["with"]["path"].split()
    uploads.append(next(step for step in job["steps"] if "upload-sarif" in step.get("uses", ""))["with"]["sarif_file"])
    assert all((tmp_path / path).is_file() for path in uploads)
    assert "gate | partial: reached" in summary.read_text()
    assert verify_bundle(tmp_path / "reports" / "evidence.zip").problems == ()
    with zipfile.ZipFile(tmp_path / "reports" / "evidence.zip") as evidence:
        assert b"<img" not in evidence.read("report.html")

    shutil.copy(tmp_path / "reports" / "audit" / "result.json", tmp_path / "ci" / "baseline.json")
    (programs / "leakmap").write_text(
        '#!/bin/sh\necho "$*" >> calls\nexit 3\n'
    )  # what it is called with, and no result
    assert ran().returncode == 3
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.startswith("audit --config ci/leakmap.toml --out reports/audit ")
    assert call.endswith(" --baseline ci/baseline.json")
