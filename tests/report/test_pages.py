"""What people read first in every page, and that everybody can read it: words, structure, contrast, phones."""

import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from importlib.resources import files

import matplotlib
import pytest
from matplotlib.figure import Figure

from leakmap import report
from leakmap.plan.plan import Plan
from leakmap.report import charts, study_charts, summary
from leakmap.report.glossary import Terms, glossary
from leakmap.report.pooling import Axis
from leakmap.report.study import write_study
from leakmap.report.study_answer import answer
from leakmap.report.watch import write_watch
from leakmap.result.watched import CheckedFact, Digests, Watched
from leakmap.scoring.effects import Effect
from leakmap.scoring.statistics import Interval
from leakmap.units import duration
from tests.report.synthetic import cell
from tests.result.made_up import made_up, verdict

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
LEVELS = ("inconclusive", "none_found", "statistical", "partial", "visual", "exact")


def watched(n, level, score, findings=()):
    return Watched(
        name=f"round-{n}/client-0", round=n, client=HOSTILE, file="f", digests=Digests(checking="a", auditing="b"),
        level=level, rank_score=score, gain=10 * score - 5, findings=findings, note="a note", report="r/report.html",
    )  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report of two audits, of a study and of a watched folder, in which others' names are hostile."""
    folder = tmp_path_factory.mktemp("pages")
    leaks = cell({"model": "leaks", "seed": 0}, 0.9, clients=14, batch=2)
    quiet = cell({"model": "quiet", "seed": 0}, 0.0, clients=5, failed=1)
    result = leaks.result.model_copy(update={"command": HOSTILE, "flags": {"a_flag": HOSTILE}})
    sections = [report.Section(result, leaks.rows, HOSTILE), report.Section(quiet.result, quiet.rows)]
    wrong = CheckedFact(name="mode", level="wrong", sentence=HOSTILE)
    rows = [watched(n, level, n / 6, (wrong,) if n == 2 else ()) for n, level in enumerate(LEVELS, 1)]
    return {
        "audit": report.write(folder / "audit.html", sections, introduction=HOSTILE, date="2026-01-31"),
        "study": write_study(folder / "study.html", HOSTILE, [leaks, quiet], study=HOSTILE, command=HOSTILE),
        "watch": write_watch(folder, rows, HOSTILE),
    }


class Outline(HTMLParser):
    """What of a page matters to those who do not see it."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.ids, self.links, self.wrong, self.open, self.tags = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        in_figure = "svg" in self.open
        self.tags.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "a" and "summary" in self.open:
            self.wrong.append("a link in a summary")
        if found.get("id") and not in_figure:
            self.ids.append(found["id"])
        if (target := found.get("href", "")).startswith("#") and not in_figure:
            self.links.append(target[1:])
        needed = {"img": "alt", "th": "scope", "html": "lang", "svg": "role"}.get(tag)
        if needed and not found.get(needed):
            self.wrong.append(f"{tag} without {needed}")
        if any(name.startswith("on") for name in found):
            self.wrong.append(f"{tag} with a handler")
        if tag not in ("meta", "img", "br", "use", "path", "rect", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass


@pytest.mark.parametrize("name", ["audit", "study", "watch"])
def test_a_page_has_an_outline_escapes_others_names_and_needs_no_network(pages, name):
    text = pages[name].read_text()
    found = Outline(text)
    assert found.wrong == []
    assert found.headings[0] == 1
    assert found.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(found.headings, found.headings[1:], strict=False))
    assert found.tags.count("main") == found.tags.count("header") == 1
    assert len(set(found.ids)) == len(found.ids)
    assert set(found.links) <= set(found.ids)
    assert text.count("<svg") == len(re.findall(r"<svg[^>]*>\s*<title>[^<]+</title>", text))
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert escape(HOSTILE) in text or escape(HOSTILE).replace("&#x27;", "&#39;") in text
    assert name == "study" or "script" not in found.tags
    assert not re.search(r"<(link|iframe|object)|src=\"(?!data:)|@import|url\(['\"]?http", text)


def colours(text, scheme):
    """The variables of a style sheet in light or dark."""
    light, _, dark = text.partition("prefers-color-scheme: dark")
    pairs = re.findall(r"--([\w-]+): (#[0-9a-f]+);", light)
    return dict(pairs + (re.findall(r"--([\w-]+): (#[0-9a-f]+);", dark) if scheme == "dark" else []))


def contrast(one, other):
    """Of WCAG 2.2, 1.4.3."""

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        linear = [v / 12.92 if (v := int(digits[i : i + 2], 16) / 255) <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
                  for i in (0, 2, 4)]  # fmt: skip
        return sum(part * value for part, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_verdict_and_all_text_has_a_contrast_of_at_least_4_5(scheme):
    of = colours(files("leakmap.report").joinpath("style.css").read_text(), scheme)
    pairs = [(of["on-tone"], of[level]) for level in LEVELS]
    pairs += [(of[text], of[paper]) for text in ("ink", "soft", "link") for paper in ("paper", "wash")]
    tiles = colours(files("leakmap.report").joinpath("study.css").read_text(), scheme)
    pairs += [(tiles["on-pale"], tiles[f"r{i}"]) for i in (0, 1)]
    pairs += [(tiles["on-deep"], tiles[f"r{i}"]) for i in (3, 4)]
    assert min(contrast(*pair) for pair in pairs) >= 4.5
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert study_charts.DEEP > 0.5


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ((1, 100), ["1", "2", "5", "10", "20", "50", "100"]),
        ((1e-7, 2e6), ["10⁻⁶", "0.01", "1", "100", "10000", "10⁶"]),
        ((0.26, 0.34), ["0.26", "0.28", "0.3", "0.32", "0.34"]),
        ((1.4e-6, 3e-6), ["1.6·10⁻⁶", "2·10⁻⁶", "2.4·10⁻⁶", "2.8·10⁻⁶"]),
    ],
)
def test_logarithmic_axes_are_labelled_with_numbers(ends, told):
    with matplotlib.rc_context(charts.STYLE):
        axes = (figure := Figure(layout="constrained")).subplots()
        axes.set_xscale("log")
        axes.set_xlim(ends)
        charts.label_decades(axes.xaxis)
        text = charts.inline(figure)
    labels = re.findall(r">([^<>]+)</text>", text)
    assert set(told) <= set(labels)
    assert "mathdefault" not in text


def test_the_answer_is_a_plain_sentence_with_counts_beside_chance():
    leaks = cell({"model": "a", "seed": 0}, 0.6, clients=12, pictures=False).result
    own = leaks.line_up.attack
    assert leaks.verdict.level == "partial"
    assert summary.answer(leaks) == (
        f"From what one client sends, a server could pick {own.hits} of 12 pictures out of a line-up; "
        "chance would give 0.12."
    )
    tallies = summary.tallies(leaks)
    assert [(t.hits, t.n) for t in tallies[:2]] == [(0, 12), (own.hits, 12)]
    assert "100 candidates; 0.12 expected by chance" in tallies[1].note
    assert [level for level, _, here in summary.ladder(leaks) if here] == ["partial"]
    bare = cell({"model": "b", "seed": 0}, 1.0, clients=12, pictures=False).result
    assert bare.verdict.level == "visual"
    assert summary.answer(bare).endswith("could recover 12 of 12 pictures so that they can be recognised.")
    assert "no client has all of its runs" in summary.answer(made_up(verdict=verdict("inconclusive", "no_clients")))
    null = made_up(plan=Plan("resnet", null=True))
    assert summary.answer(null).startswith("Null audit, every update came from other pictures")


def test_what_was_granted_and_what_to_do_are_in_words():
    quiet = cell({"model": "a", "seed": 0}, 0.0, clients=6, pictures=False).result
    has, lacks = summary.known(quiet)
    assert any("running statistics of BatchNorm" in one for one in has)
    assert lacks == ["public pictures of the same kind", "the class of each picture"]
    steps = summary.steps(quiet)
    assert steps[0].commands == ("--labels known --public auto",)
    assert any(step.commands == ("--victims 36",) for step in steps)
    assert "Too few clients" in summary.answer(quiet)
    unfinished = made_up(verdict=verdict("inconclusive", "flag"), unfinished=3)
    assert summary.steps(unfinished)[0].commands == (unfinished.command,)


def test_a_study_answers_which_axis_makes_the_difference(pages):
    cells = [cell({"model.width": w, "seed": 0}, 0.1, clients=2, pictures=False) for w in (8, 16)]
    axes = [Axis("model.width", "width", (8, 16)), Axis("client.mode", "mode", ("train", "eval"))]
    effects = [
        Effect("model.width", 8, 16, Interval(-0.1, -0.2, 0.1), 0.4, 4, 12),
        Effect("client.mode", "train", "eval", Interval(0.4, 0.3, 0.5), 0.001, 4, 12),
    ]
    told = answer(cells, axes, effects, []).sentence
    assert told == "What makes the largest difference: mode (eval leaks more than train). Not clear of chance: width."
    assert answer(cells, axes, effects[:1], []).sentence == "No difference is clear of chance: width."
    assert answer(cells, axes, [], []).sentence.startswith("Nothing can be compared")
    text = pages["study"].read_text()
    assert "too few clients" in text
    assert duration(0.0346 * 3600) == "2 min"


def test_a_page_explains_the_terms_that_it_links(pages):
    text = pages["audit"].read_text()
    linked = {unescape(one) for one in re.findall(r'class="term" href="#term-([^"]+)"', text)}
    assert len(linked) > 12
    assert linked == set(re.findall(r'<div id="term-([^"]+)">', text))
    assert "`" not in "".join(glossary().values())
    with pytest.raises(KeyError):
        Terms()("No such term")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open pages with")
def test_on_a_phone_no_page_is_wider_than_the_screen(pages, tmp_path):
    texts = [re.sub("<meta http-equiv[^>]*>", "", page.read_text()) for page in pages.values()]
    frame = '<iframe style="width: 390px; height: 800px" srcdoc="{}"></iframe>'
    frames = "".join(frame.format(escape(text)) for text in texts)
    measure = (
        "<script>onload = () => document.body.dataset.wide = [...document.querySelectorAll('iframe')]"
        ".map(f => f.contentDocument.documentElement.scrollWidth)</script>"
    )
    (tmp_path / "phones.html").write_text(f"<body>{frames}{measure}")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=3000", "--dump-dom", (tmp_path / "phones.html").as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    widths = [int(one) for one in re.search(r'data-wide="([^"]*)"', dom)[1].split(",")]
    assert len(widths) == 3
    assert max(widths) <= 390
