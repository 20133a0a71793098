"""The template of a package of one's own, installed, keeps every contract: one file for each of the six kinds."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "examples" / "plugin"
KINDS = ("model", "data", "defence", "attack", "label_rule", "metric")
CALL = """
import sys
import pytest
from leakmap.cli.main import command

pytest.main(sys.argv[1:])
sys.argv = ["leakmap", "list"]
sys.exit(command())
"""


def of_the_page() -> dict[str, str]:
    """The examples of the contributors' page, by kind and under the names that they have in the template."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    registries = {"attacks": "attack", "defences": "defence", "sources": "data"}
    found = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        registry, name = re.search(r'@(\w+)\.add\("(\w+)', block).groups()
        kind = registries[registry]
        found[kind] = re.sub(rf'(["\']){name}\b', rf"\1plugin_{kind}", re.sub(rf"def {name}\(", "def build(", block))
    return found


def install(folder: Path) -> None:
    """The template, as pip installs it, and beside it a distribution that raises when it is imported."""
    shutil.copytree(TEMPLATE, folder / "copy")  # a build leaves files beside the sources
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    ran = subprocess.run([*pip, "--target", folder / "site", folder / "copy"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    information = folder / "site" / "leakmap_plugin_broken-1.0.dist-info"
    information.mkdir()
    (folder / "site" / "leakmap_plugin_broken.py").write_text("raise SystemExit('no licence')")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: leakmap_plugin_broken\nVersion: 1.0\n")
    points = [f"[leakmap.{kind}]\nplugin_broken = leakmap_plugin_broken:build\n" for kind in KINDS]
    (information / "entry_points.txt").write_text("".join(points))


def test_the_template_holds_the_examples_of_the_contributors_page():
    for kind, text in of_the_page().items():
        assert (TEMPLATE / "src" / "leakmap_plugin_example" / f"{kind}.py").read_text(encoding="utf-8") == text


def test_one_file_of_each_kind_keeps_every_contract_beside_a_broken_plug_in(tmp_path):
    install(tmp_path)
    words = f"tests/contract -k plugin -n 0 -p no:cacheprovider --junitxml={tmp_path / 'runs.xml'}".split()
    path = os.pathsep.join((str(tmp_path / "site"), str(ROOT / "src")))
    ran = subprocess.run(
        [sys.executable, "-c", CALL, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    cases = list(ElementTree.parse(tmp_path / "runs.xml").iter("testcase"))
    assert not [case.attrib["name"] for case in cases if len(case)], ran.stdout
    by_room = Counter(case.attrib["classname"].rpartition(".test_")[2] for case in cases)
    assert min(by_room[room] for room in ("models", "data", "defences", "attacks", "label_rules", "metrics")) >= 3
    broken = "plugin_broken of leakmap_plugin_broken"
    for kind in KINDS:
        assert re.search(rf"^{kind} plugin_{kind}", ran.stdout, re.M)
        assert f"{kind} {broken}  could not be loaded: SystemExit: no licence" in ran.stdout
