"""The documentation is run as it stands, and names every algorithm that there is."""

import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from leakmap import LocalRule, Observation, attacks
from leakmap.capturing.files import read_order
from leakmap.cli.main import app
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code
from leakmap.report.catalogue import REGISTRIES, markdown
from leakmap.study.file import tables
from tests.conftest import observed

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "CONTRIBUTING.md", ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
GOING_ON = ("attacks.md", "doctor.md", "observation.md")
"""Pages that go on from a network, a batch or an Observation that their reader has."""
AFTER_COMMANDS = ("review.md",)
"""Pages whose programs read what their commands wrote: they run together."""
FACTS = ROOT / "examples" / "flower" / "facts.toml"


def programs(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def captured(given: dict[str, Any]) -> bool:
    """Whether the file of docs/capture.md is what its variables are."""
    same = Observation.from_file("client-3.safetensors").digest() == given["observation"].digest()
    read = read_order(Path("names.txt")) == ["1.weight", "1.bias"]
    return same and read and (given["kind"], given["steps"]) == ("delta", 5)


PROMISED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "capture.md": captured,
    "python.md": lambda given: (
        given["found"].level == given["audited"].level == "exact"
        and given["result"].galleries == (41,)
        and given["again"] == given["audited"].result
    ),
    "README.md": lambda given: given["found"].level == "exact" and Path("runs/from_python/report.html").is_file(),
}
"""What pages say of their own variables and files."""


@pytest.fixture
def registries():
    """What a page registers is forgotten again."""
    before = [dict(registry._entries) for registry in REGISTRIES if registry.names()]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry._entries = entries


@pytest.mark.parametrize(
    "page", [page for page in PAGES if programs(page) and page.name not in AFTER_COMMANDS], ids=lambda page: page.name
)
def test_the_programs_of_a_page_run_one_after_the_other_as_written(page, task, tmp_path, monkeypatch, registries):
    client, observation = observed("mlp,hidden=32", task, rule=LocalRule(mode="eval"), count=1)
    going_on = {"network": client.network, "batch": client.batch, "observation": observation}
    given: dict[str, Any] = going_on if page.name in GOING_ON else {}
    monkeypatch.chdir(tmp_path)
    Path("facts.toml").write_text(FACTS.read_text(encoding="utf-8"), encoding="utf-8")
    if page.name == "flower.md":
        pytest.importorskip("flwr", reason="Flower is not installed: pip install 'leakmap[flower]'")
    for program in programs(page):
        with warnings.catch_warnings():
            if "from flwr" in program:
                warnings.simplefilter("ignore")  # of what Flower imports
            exec(compile(program, page.name, "exec"), given)
    assert page.name not in PROMISED or PROMISED[page.name](given)


def lines(page: Path) -> list[str]:
    """The commands of a page, each with its comment in one line."""
    return re.findall(r"^    ((?:leakmap|make|python|\.venv|pip) ?.*)$", page.read_text().replace("\\\n", " "), re.M)


def typed(line: str) -> list[str]:
    """The words after ``leakmap``, without what the shell takes; empty for another program."""
    words = shlex.split(line, comments=True)
    program, *rest = words[: words.index(">")] if ">" in words else words
    return rest if program.removeprefix(".venv/bin/") == "leakmap" else []


def commands():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for line in lines(page):
            if words := typed(line):
                yield pytest.param(words, id=f"{page.name}: {line}")


@pytest.mark.parametrize("words", [*commands()])
def test_every_command_line_is_one_that_leakmap_takes(words):
    group = typer.main.get_command(app)
    if words[0].startswith("--") or words[1:] == ["--help"]:  # answers and ends
        at = group if words[0].startswith("--") else group.commands[words[0]]
        assert words[-1] in [option for p in at.get_params(typer.Context(at)) for option in p.opts]
        return
    command, *options = words
    read = group.commands[command].make_context(command, options)
    spec = read.params.get("attack")
    if spec and not is_user_code(Spec.parse(spec).name):
        attacks.build(spec)


TOUR = [
    page
    for page in PAGES
    if page.parent.name == "howto" or page.name in ("index.md", "quickstart.md", "concepts.md", "coming-from.md")
]
"""Pages for who is new, with commands to type as they stand."""
YOURS = re.compile(r"\b[A-Z]{3,}\b|my_project/|client-\d\b|leakmap audit$|baseline\.json|^pip|^make")
"""Of commands that need what only the reader has, or set something up."""
TIME = re.compile(r"#.*?\b(\d+|an) (s|min|h|hour)\b")
SECONDS = {"s": 1, "min": 60, "h": 3600, "hour": 3600}
ROUGHLY = re.compile(r"#.*(\bminutes\b|\bhours\b|first line says how long|time that remains|as long as)")
"""What else says how long a command takes: it depends on the machine, or the command itself says so."""
IN_PROSE = re.compile(
    r"\b(s|minutes|hours?) (of|on) (one core|computing|two cores)|of computing each|how long it still"
)
"""What a page of results says of the time that its numbers took."""
EXAMPLES = sorted((ROOT / "examples").rglob("README.md"))


def seconds(line: str) -> float:
    found = TIME.search(line)
    return (int(found[1]) if found[1].isdigit() else 1) * SECONDS[found[2]] if found else 0


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_reader_is_told_how_long_each_command_takes(page):
    untold = [line for line in lines(page) if not seconds(line) and not YOURS.search(line.split("#")[0].strip())]
    if page in (ROOT / "README.md", *TOUR):
        assert not untold
    elif page.parent.name != "results" or not IN_PROSE.search(" ".join(page.read_text(encoding="utf-8").split())):
        assert not [line for line in untold if not ROUGHLY.search(line)]


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_shows_a_command_a_picture_or_a_table_on_its_first_screen(page):
    before = re.split(r"^(?:    \S|```|!\[|\||::: )", page.read_text(encoding="utf-8"), maxsplit=1, flags=re.M)
    assert len(before) == 2
    assert len(before[0].split()) <= 100


@pytest.mark.slow
@pytest.mark.parametrize("page", TOUR, ids=lambda page: page.name)
def test_a_page_for_new_readers_does_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for file, program, command in re.findall(
        r"^```python\n(?:# (\S+)\n)?(.*?)^```|^    (leakmap [^\n]*)$", text, re.S | re.M
    ):
        if file:
            Path(file).write_text(program)
        elif program:
            exec(compile(program, page.name, "exec"), {})
        elif 0 < seconds(command) <= 600 and not YOURS.search(command.split("#")[0]):
            told = command.partition("#")[0]
            run = f"{shlex.quote(sys.executable)} -m {told}"
            ended = subprocess.run(run, shell=True, capture_output=True, text=True, timeout=1500)
            assert ended.returncode == ("--gate" in told), ended.stderr[-2000:]


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


PROSE = [
    page
    for page in sorted(ROOT.rglob("*.md"))
    if not {".venv", "runs", "node_modules"} & {*page.relative_to(ROOT).parts}
    and not any(part.startswith(".") for part in page.relative_to(ROOT).parts)
]
OLD_WORDS = {
    r"likeness|yardstick|\bemphasis\b|normalis|\bhint(s|ed)?\b": (),
    r"theat(re|er)|\b(cast|scene|scenery|play(s|ed)?)\b": (),
    r"\bkinks?\b": ("engine.md", "glossary.md"),
    r"(?<!--)\bgate\b": ("glossary.md", "ci.md", "pipeline.md", "CHANGELOG.md", "CONTRIBUTING.md"),
}
"""Words that gave way to the field's own, and the pages that explain one of them."""


def prose(page: Path) -> list[str]:
    """The lines of a page that are neither code nor a table."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [line for line in text.splitlines() if not line.startswith(("|", "    "))]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
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
