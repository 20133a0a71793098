"""The documentation is run as it stands, and names every algorithm that there is."""

import re
from pathlib import Path

import pytest

from leakmap.catalogue import REGISTRIES, markdown

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("place", [0, 1])
def test_the_programs_of_the_python_page_run(place, tmp_path, monkeypatch, capsys):
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(programs[place], f"python.md program {place}", "exec"), {})
    shown = capsys.readouterr().out
    assert "exact" in shown if place == 0 else "of (41,)" in shown


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_the_catalogue_has_every_name_with_a_summary_and_its_settings(registry):
    heading = f"## {registry.kind.replace('_', ' ').capitalize()}\n"
    page = markdown().partition(heading)[2].partition("\n## ")[0]
    for name in registry.names():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert len(row.split("|")[2]) > 10
        assert all(f"`{setting}" in row for setting in registry.settings(name))


def test_the_attack_of_the_contributing_page_keeps_the_contract(task):
    from leakmap import attack
    from leakmap.attacker.attacks import attacks
    from tests.conftest import observed

    source = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    exec(compile(source.group(1), "CONTRIBUTING.md", "exec"), {})
    try:
        found = attack(observed("convnet,width=8", task)[1], "doe,steps=2")
        assert found.pictures.shape == (2, *task.shape)
    finally:
        del attacks._entries["doe"]
