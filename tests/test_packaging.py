"""The wheel holds all that leakmap needs where there is no repository: studies and glossary beside the modules."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import leakmap
from leakmap.study.shipped import paths

ROOT = Path(__file__).parents[1]
OUTSIDE = """
from leakmap.report.glossary import glossary
import leakmap
print(len(leakmap.studies()), len(glossary()), leakmap.__file__)
"""


def test_a_wheel_works_from_an_empty_folder(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as file:
        inside = set(file.namelist())
        (metadata,) = (file.read(name).decode() for name in inside if name.endswith(".dist-info/METADATA"))
        file.extractall(tmp_path / "installed")
    own = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "leakmap").rglob("*.*")}
    assert {name for name in own if "__pycache__" not in name and not (ROOT / "src" / name).is_dir()} <= inside
    assert {f"leakmap/study/studies/{name}.toml" for name in paths()} <= inside
    assert not re.findall(r"\]\((?!https://)[^)]*\)", metadata), "a package index shows README without its repository"
    assert "platform engineers (docs/howto/platform.md)" in metadata
    (empty := tmp_path / "empty").mkdir()
    known = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    ran = subprocess.run(
        [sys.executable, "-c", OUTSIDE], cwd=empty, env=known, check=True, capture_output=True, text=True
    )
    studies, words, where = ran.stdout.split(maxsplit=2)
    assert int(studies) == len(paths())
    assert int(words) > 60
    assert str(tmp_path / "installed") in where


def test_version_and_title_are_those_of_this_release():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\n## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited
    assert cited.group(1) == project["version"]
    assert leakmap.__version__ == project["version"]
