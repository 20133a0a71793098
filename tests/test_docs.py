"""The documentation is run as it stands, and names every algorithm that there is."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

from leakmap import LocalRule, attack, attacks
from leakmap.cli.catalogue import REGISTRIES, markdown
from leakmap.cli.main import app
from leakmap.study.file import tables
from tests.conftest import observed, pictures

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("place", [0, 1])
def test_the_programs_of_the_python_page_run(place, tmp_path, monkeypatch, capsys):
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(programs[place], f"python.md program {place}", "exec"), {})
    shown = capsys.readouterr().out
    assert "exact" in shown if place == 0 else "of (41,)" in shown


@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/attacks.md", "docs/defences.md", "docs/engine.md", "docs/observation.md", "docs/tuning.md"],
)
def test_the_snippets_of_a_page_run_one_after_the_other(page, task, tmp_path, monkeypatch):
    """What a page takes for given is supplied, and its long searches are cut short."""
    round, observation = observed("mlp,hidden=32", task, rule=LocalRule(mode="eval"), count=1)
    images = pictures(120, task, 1)
    given = {
        "model": torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(768, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)
        ),
        "images": images,
        "labels": torch.arange(120) % 2,
        "network": round.network,
        "batch": round.batch,
        "distractors": [images[:40]],
        "observation": observation,
    }
    monkeypatch.chdir(tmp_path)
    for program in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S):
        short = program.replace("budget=20", "budget=1").replace('"strongest"', '"strongest,steps=20"')
        exec(compile(short, page, "exec"), given)


def commands():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^    (?:\.venv/bin/)?leakmap (.*)$", text, re.M):
            words = shlex.split(line, comments=True)
            typed = words[: words.index(">")] if ">" in words else words
            yield pytest.param(typed, id=f"{page.name}: {line}")


@pytest.mark.parametrize("words", [*commands()])
def test_every_command_line_is_one_that_leakmap_takes(words):
    command, *options = words
    read = typer.main.get_command(app).commands[command].make_context(command, options)
    if spec := read.params.get("attack"):
        attacks.build(spec)


@pytest.mark.parametrize("kind", tables())
def test_the_page_on_studies_names_every_setting(kind):
    head = "| top |" if kind == "study" else f"| `[{kind}]` |"
    (row,) = (line for line in (ROOT / "docs" / "study.md").read_text().splitlines() if line.startswith(head))
    assert all(f"`{key}`" in row for key in tables()[kind])


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_the_catalogue_has_every_name_with_a_summary_and_its_settings(registry):
    heading = f"## {registry.kind.replace('_', ' ').capitalize()}\n"
    page = markdown().partition(heading)[2].partition("\n## ")[0]
    for name in registry.names():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert len(row.split("|")[2]) > 10
        assert all(f"`{setting}" in row for setting in registry.settings(name))


def test_the_attack_of_the_contributing_page_keeps_the_contract(task):
    source = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    exec(compile(source.group(1), "CONTRIBUTING.md", "exec"), {})
    try:
        found = attack(observed("convnet,width=8", task)[1], "doe,steps=2")
        assert found.pictures.shape == (2, *task.shape)
    finally:
        del attacks._entries["doe"]


def test_the_catalogue_page_is_the_one_that_leakmap_prints():
    assert (ROOT / "docs" / "catalogue.md").read_text() == markdown()


PAGES = [
    page
    for page in sorted(ROOT.rglob("*.md"))
    if not {".venv", "runs", "node_modules"} & {*page.relative_to(ROOT).parts}
    and not any(part.startswith(".") for part in page.relative_to(ROOT).parts)
]
OLD_WORDS = {
    r"likeness|yardstick|\bemphasis\b|normalis|\bhint(s|ed)?\b": (),
    r"theat(re|er)|\b(cast|scene|scenery|play(s|ed)?)\b": (),
    r"\bkinks?\b": ("engine.md", "glossary.md"),
    r"(?<!--)\bgate\b": ("glossary.md",),
}
"""Words that gave way to the field's own, and the pages that explain one of them."""


def prose(page: Path) -> list[str]:
    """The lines of a page that are neither code nor a table."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [line for line in text.splitlines() if not line.startswith(("|", "    "))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_short_lines_and_the_words_of_the_field(page):
    assert max(map(len, prose(page))) <= 160
    text = page.read_text(encoding="utf-8")
    for words, places in OLD_WORDS.items():
        if page.name not in places:
            assert not re.findall(words, text, re.I)


def test_the_glossary_is_in_alphabetical_order_and_names_places_that_exist():
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| .+\. \| (.+) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.M)
    terms = [term.lower() for term, _ in rows]
    assert terms == sorted(set(terms))
    assert len(terms) > 60
    for _, places in rows:
        for place in re.findall(r"`([a-z_/]+(?:\.py|/))`", places):
            assert (ROOT / "src" / "leakmap" / place).exists(), place
        for link in re.findall(r"\(([a-z]+\.md)", places):
            assert (ROOT / "docs" / link).exists(), link
