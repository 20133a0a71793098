"""The report of a study: what is pooled, what stands in the page and in its figures."""

import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess

import pytest
import torch
from PIL import Image

from leakmap import Spec, ThreatModel
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.errors import UsageError
from leakmap.plan.plan import Plan
from leakmap.report import study_charts
from leakmap.report.pooling import ABSENT, arranged, axes_of, ladder, pooled, tiles
from leakmap.report.study import Cell, write_study
from leakmap.scoring.statistics import share_of_cases
from tests.report.synthetic import cell

THREATS = {
    "rule": ThreatModel(buffers=False, public=0),
    "buffers": ThreatModel(public=0),
    "labels": ThreatModel("known", public=0),
}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def study(**options):
    """Two architectures, two modes, two threat models, two seeds; only pre-activation leaks, more in inference mode."""
    return [
        cell(
            {"model.preact": preact, "client.mode": mode, "threat": threat, "seed": seed},
            preact * (0.5 + 0.4 * (mode == "eval")),
            threat=THREATS[threat],
            **{"clients": 6} | options,
        )
        for preact in (False, True)
        for mode in ("train", "eval")
        for threat in ("rule", "buffers")
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report and its folder."""
    folder = tmp_path_factory.mktemp("study")
    path = write_study(
        folder / "report.html", "Which <b>knob</b>?", study(), study="title = '</pre><script>alert(1)</script>'",
        command="leakmap study which.toml", figures=folder / "figures",
    )  # fmt: skip
    return path


def data_in(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope="module")
def real():
    """A real audit."""
    plan = Plan("mlp,hidden=16", "samples", image_size=16, victims=2, attack=Spec("linear"))
    return perform(plan, prepare(plan))


def test_a_study_of_one_real_audit_can_be_written(tmp_path, real):
    cells = [Cell({"model.name": "mlp", "seed": 0}, real.result, real.rows)]
    text = write_study(tmp_path / "r.html", "One", cells, study="", command="x", figures=tmp_path).read_text()
    assert "nothing to compare" in text
    assert html.escape(real.result.command) in text
    assert {f.name for f in tmp_path.iterdir()} == {"r.html", "heat_map.svg", "heat_map.png"}


def test_axes_of_the_model_are_rows_the_client_is_columns_and_seeds_are_pooled():
    arrangement = arranged(axes_of(study(pictures=False)))
    assert [axis.short for axis in arrangement.rows] == ["preact"]
    assert [axis.short for axis in arrangement.columns] == ["mode", "threat"]
    assert [axis.short for axis in arrangement.pooled] == ["seed"]


def test_a_wide_study_pools_what_does_not_fit_in_the_columns():
    cells = [
        cell({"model.width": 8, "threat": threat, "attack": attack, "batch": batch}, 0.1, clients=2, pictures=False)
        for threat in "abcd"
        for attack in "efgh"
        for batch in (1, 2)
    ]
    arrangement = arranged(axes_of([*cells, cell({"model.width": 9}, 0.1, clients=2)]))
    assert [axis.name for axis in arrangement.columns] == ["threat", "batch"]
    assert [axis.name for axis in arrangement.pooled] == ["attack"]


def test_an_axis_that_does_not_apply_has_a_level_of_its_own():
    cells = [cell({"model": "mlp"}, 0.1, clients=2), cell({"model": "resnet", "model.preact": True}, 0.1, clients=2)]
    assert axes_of(cells)[1].levels == (True, ABSENT)


def test_seeds_are_pooled_with_an_interval_over_the_clients_of_both():
    one, two = (cell({"model.preact": True, "seed": seed}, 0.6, clients=8, pictures=False) for seed in (0, 1))
    tile = pooled([one, two])
    hits = [c.result.line_up.attack.hits for c in (one, two)]
    assert (tile.hits, tile.n, tile.clients) == (sum(hits), 16, 16)
    assert tile.first == share_of_cases(sum(hits), 16, 16)


def test_the_same_clients_in_another_architecture_do_not_narrow_the_interval():
    same = [cell({"model.preact": preact, "seed": 0}, 0.6, clients=8, pictures=False) for preact in (True, False)]
    assert (pooled(same).n, pooled(same).clients) == (16, 8)


def test_the_colour_is_logarithmic_in_the_rate_over_chance():
    always = pooled([cell({"seed": 0}, 1.0, clients=10, pictures=False)])
    never = pooled([cell({"seed": 0}, 0.0, clients=10, pictures=False)])
    assert always.depth == pytest.approx(1)
    assert never.hits == 0
    assert never.depth == 0
    one_of_ten = pooled([cell({"seed": 0}, 0.0, clients=9), cell({"seed": 1}, 1.0, clients=1)])
    assert (one_of_ten.hits, one_of_ten.n) == (1, 10)
    assert one_of_ten.depth == pytest.approx(0.5)


def test_an_audit_without_a_finished_client_is_shown_and_not_counted(tmp_path):
    cells = [cell({"model.preact": p}, 0.5, clients=4, failed=4 * p) for p in (False, True)]
    rows, columns, found = tiles(cells, arranged(axes_of(cells)))
    tile = found[rows[1], columns[0]]
    assert (tile.n, tile.first, tile.inconclusive) == (0, None, True)
    text = write_study(tmp_path / "r.html", "x", cells, study="", command="", figures=tmp_path).read_text()
    assert "no client finished" in text
    assert text.count("NonFinite: loss</li>") == 4


def test_the_ladder_goes_from_the_least_granted_and_compares_the_same_cells():
    cells = study(pictures=False)
    extra = cell({"model.preact": True, "client.mode": "train", "threat": "labels", "seed": 0}, 0.9,
                 threat=THREATS["labels"], clients=6, pictures=False)  # fmt: skip
    found = ladder([extra, *cells], axes_of([extra, *cells]))
    assert [rung.attacker for rung in found.rungs] == ["C", "E", "E+"]
    assert found.rungs[2].granted[-1] == "labels"
    assert found.matched
    assert found.audits == 3
    assert [set(rung.tiles) for rung in found.rungs] == [{"training mode"}] * 3
    whole = ladder(cells, axes_of(cells))
    assert whole.audits == 16
    assert set(whole.rungs[0].tiles) == {"training mode", "inference mode"}


def test_the_page_needs_no_network_and_runs_no_script_but_its_own(written):
    text = written.read_text()
    own = re.search(r"<script>(.*)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "alert(1)</script>" not in text
    assert "<b>knob" not in text
    addresses = set(re.findall(r"https?://[^\"'<> )]+", text))
    assert all("w3.org" in a or "purl.org" in a or "creativecommons" in a for a in addresses)
    assert not re.search(r"<(link|iframe|object)|src=\"(?!data:)|innerHTML|eval\(", text)


def test_the_page_can_be_read_without_its_script(written):
    text = written.read_text()
    for section in ("map", "effects", "ladder", "cells", "cost", "study"):
        assert f'<h2 id="{section}">' in text
    assert text.count("<svg") == 3
    assert text.count("Made up: model.preact=") >= 16
    assert "leakmap study which.toml" in text
    assert "model.preact: no → yes" in text
    assert "What this does not say" in text


def test_the_data_of_the_page_holds_every_audit_with_its_panel(written):
    data = data_in(written.read_text())
    assert [(axis["short"], axis["role"]) for axis in data["axes"]] == [
        ("preact", "rows"), ("mode", "columns"), ("threat", "columns"), ("seed", "pooled"),
    ]  # fmt: skip
    assert len(data["audits"]) == 16
    audit = data["audits"][-1]
    assert audit["at"] == [1, 1, 1, 1]
    assert (audit["n"], audit["clients"], audit["seed"]) == (6, [0, 1, 2, 3, 4, 5], "seed 1")
    assert audit["command"].startswith("leakmap audit")
    assert [[row[0] for row in table["rows"]] for table in audit["tables"]] == [
        ["this update", "this update, any pose", "swapped update", "other clients (deranged)", "planted control"],
        ["colour alone", "layout alone", "detail alone"],
        ["PSNR", "SSIM"],
    ]
    assert len(audit["gallery"]["captions"]) == 6


def test_the_gallery_shows_each_picture_in_its_place(tmp_path):
    cells = [cell({"seed": 0}, 0.5, clients=3)]
    text = write_study(tmp_path / "r.html", "x", cells, study="", command="").read_text()
    image = Image.open(io.BytesIO(base64.b64decode(re.search(r'id="pictures-0">(.*?)<', text)[1])))
    assert image.size == (6 * 32, 3 * 32)
    shown = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(96, 192, 3)
    tile = shown[64:96, 32:64].permute(2, 0, 1) / 255
    client = data_in(text)["audits"][0]["gallery"]["clients"][2] - 1
    assert (tile - cells[0].rows[client]["reconstruction"]).abs().max() < 0.003


def test_many_large_pictures_stay_small(tmp_path, monkeypatch):
    cells = [cell({"seed": 0}, 0.3, clients=4, side=200)]
    monkeypatch.setattr("leakmap.report.study.LOSSLESS_BYTES", 1000)
    monkeypatch.setattr("leakmap.report.study.PIXELS", 24 * 40**2)
    text = write_study(tmp_path / "r.html", "x", cells, study="", command="").read_text()
    image = Image.open(io.BytesIO(base64.b64decode(re.search(r'id="pictures-0">(.*?)<', text)[1])))
    assert image.size == (6 * 40, 4 * 40)


def test_a_study_without_pictures_says_so_instead_of_failing(tmp_path):
    text = write_study(tmp_path / "r.html", "x", study(pictures=False), study="", command="").read_text()
    assert "No pictures are kept." in text
    assert 'id="pictures-' not in text
    assert all(audit["gallery"] is None for audit in data_in(text)["audits"])


def test_every_figure_is_written_as_svg_and_png(written):
    folder = written.parent / "figures"
    assert {f.name for f in folder.iterdir()} == {
        f"{name}.{suffix}" for name in ("heat_map", "effects", "ladder") for suffix in ("svg", "png")
    }
    assert (folder / "ladder.svg").read_text().lstrip().startswith("<?xml")
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert image.size[0] > 600


def test_the_colours_of_the_page_are_those_of_the_figures(written):
    assert all(f"--r{i}: {colour};" in written.read_text() for i, colour in enumerate(study_charts.RAMP))


def test_an_empty_study_is_refused(tmp_path):
    with pytest.raises(UsageError, match="at least one"):
        write_study(tmp_path / "r.html", "x", [], study="", command="")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")
def test_the_map_is_drawn_in_a_browser_and_its_tiles_open_with_the_exact_interval(tmp_path, written):
    opened = tmp_path / "opened.html"
    text = re.sub(r"<meta http-equiv[^>]*>", "", written.read_text())
    shares = [(0, 24, 5), (7, 24, 5), (24, 24, 5), (11, 96, 36)]
    click = (
        "<script>document.querySelectorAll('.tile.deep')[0].click();"
        f"document.body.dataset.shares = {[[*share] for share in shares]}.map(x => shareInterval(...x))</script></body>"
    )
    opened.write_text(text.replace("</body>", click))

    def dom(path):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                   "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout

    assert dom(written).count('<button class="tile') == 2 * 4
    panel = re.sub(r"<[^>]+>", "", re.search(r"<dialog.*?</dialog>", dom(opened), re.S)[0])
    hits, n = map(int, re.search(r"ranked first: (\d+) of (\d+),", panel).groups())
    expected = share_of_cases(hits, n, 12)
    low, high = map(float, re.search(r"interval ([\d.]+)% to ([\d.]+)%", panel).groups())
    assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=0.06)
    assert "Made up: model.preact=True" in panel
    ends = [float(end) for end in re.search(r'data-shares="([^"]*)"', dom(opened))[1].split(",")]
    there = [share_of_cases(*share) for share in shares]
    assert ends == pytest.approx([end for share in there for end in (share.low, share.high)], abs=1e-9)
