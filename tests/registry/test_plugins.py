"""One file for each of the six kinds, in a package of its own, keeps every contract."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
KINDS = ("model", "data", "defence", "attack", "label_rule", "metric")
OTHERS = {
    "model": '''
import math
from torch import nn
from leakmap.models import models
from leakmap.problem.task import Task

@models.add("plugin_model")
def build(task: Task) -> nn.Module:
    """One hidden layer."""
    size = math.prod(task.shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, task.classes))
''',
    "label_rule": '''
from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.analytic import labels_of_set
from leakmap.attacker.labels.head import head_gradient

@label_rules.add("plugin_label_rule")
def build() -> LabelRule:
    """The classes whose row of the weight gradient has the lowest sum.

    Source: Zhao et al. 2020, arXiv:2001.02610.
    """

    def rule(observation, seed) -> Labels:
        observation.need("count")
        return labels_of_set(head_gradient(observation).weight.sum(1), observation, "plugin_label_rule")

    return rule
''',
    "metric": '''
from leakmap.scoring.metrics import Metric, metrics

@metrics.add("plugin_metric")
def build() -> Metric:
    """Minus the mean absolute error.

    Source: the usual definition.
    """
    return lambda pictures, originals: -(pictures - originals).abs().flatten(1).mean(1)
''',
}
"""What the contributors' page has no example of."""
CALL = """
import sys
import pytest
from leakmap.cli.main import main

pytest.main(sys.argv[1:])
sys.argv = ["leakmap", "list"]
main()
"""


def files() -> dict[str, str]:
    """The examples of the contributors' page, by kind and under names of their own, and the others."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    registries = {"attacks": "attack", "defences": "defence", "sources": "data"}
    found = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        registry, name = re.search(r'@(\w+)\.add\("(\w+)', block).groups()
        kind = registries[registry]
        found[kind] = re.sub(rf'(["\']){name}\b', rf"\1plugin_{kind}", re.sub(rf"def {name}\(", "def build(", block))
    return found | OTHERS


def lay(folder: Path) -> None:
    """Two installed distributions: one with a module of each kind, one that raises when it is imported."""
    package, broken = folder / "leakmap_plugin_example", folder / "leakmap_plugin_broken.py"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for kind, text in files().items():
        (package / f"{kind}.py").write_text(text, encoding="utf-8")
    broken.write_text("raise SystemExit('no licence')")
    points = {
        package.name: {kind: (f"plugin_{kind}" + ":" * (kind == "data"), f"{package.name}.{kind}") for kind in KINDS},
        broken.stem: dict.fromkeys(KINDS, ("plugin_broken", broken.stem)),
    }
    for distribution, groups in points.items():
        information = folder / f"{distribution}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"[leakmap.{kind}]\n{name} = {module}:build\n" for kind, (name, module) in groups.items()]
        (information / "entry_points.txt").write_text("".join(lines))


def test_one_file_of_each_kind_keeps_every_contract_beside_a_broken_plug_in(tmp_path):
    lay(tmp_path / "site")
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
