"""Claims from study files to a page: run one after the other, each kept as a small file."""

import json
import re
import shutil
import sys

import pytest

from leakmap.cli.main import command
from leakmap.errors import StoreError, UnknownName
from leakmap.runs.store import Store
from leakmap.study import claims, paper_runs
from leakmap.study import paper as paper_module
from leakmap.study.judgement import Column, Judgement, path_of, read_judgement
from leakmap.study.paper import reproduce, still_open
from leakmap.study.paper_page import page
from leakmap.study.paper_runs import laid_out, parts_of

STUDY = """
title = "{id}: a made-up claim"
metrics = ["ncc"]
gallery = 20
[claim]
id = "{id}"
statement = "Wide networks leak more."
source = "a test"
expected = "NCC is higher: 95 % interval above 0"
clients = "Six, as no fewer say anything."
value = "ncc"
[[claim.contrasts]]
name = "wide less narrow"
terms = [[1.0, {{ "model.hidden" = {wide} }}], [-1.0, {{ "model.hidden" = 4 }}]]
[[claim.tried]]
label = "longer"
attack = "inverting_gradients,steps=3"
victims = 8
[[claim.tried]]
label = "fitted"
attack = "learned_inverse"
[data]
source = "samples"
image_size = 16
victims = 6
[model]
name = "mlp"
hidden = [4, {wide}]
[threat]
labels = "known"
public = 0
[attack]
name = "inverting_gradients"
steps = 2
[scale.cpu]
"""


@pytest.fixture
def studies(tmp_path, monkeypatch):
    folder = tmp_path / "studies"
    (folder / "paper").mkdir(parents=True)
    for number, wide in ((1, 8), (2, 12)):
        (folder / "paper" / f"c{number}.toml").write_text(STUDY.format(id=f"C{number}", wide=wide))
    monkeypatch.setattr(paper_runs, "folder_of_studies", lambda: folder)
    return folder / "paper"


@pytest.fixture
def no_reports(monkeypatch):
    monkeypatch.setattr(paper_module, "write_study", lambda *_, **__: None)


@pytest.fixture
def no_runs(monkeypatch):
    def run_study(*_, **__):
        raise AssertionError("something was run")

    return lambda: monkeypatch.setattr(paper_module, "run_study", run_study)


def test_claims_are_run_one_after_the_other_and_never_again(studies, tmp_path, no_reports, no_runs):
    out = tmp_path / "out"
    first = laid_out(parts_of("paper", "cpu")[0])
    assert {label: [one.cell.plan.victims for one in own] for label, own in first.cells.items()} == {
        "search": [6, 6], "longer": [8, 8]
    }  # fmt: skip
    assert "needs public" in first.left_out["fitted"]
    # Stopped at the end of the first claim: its outcome is there, whole, and nothing of the second was begun.
    found = reproduce("paper", out, limit=len(first.keys))
    assert [one.judgement is not None for one in found] == [True, False]
    assert "1 of 2 claims were run" in (out / "page.md").read_text()
    judgement = found[0].judgement
    assert judgement.runs == len(first.keys)
    assert set(judgement.any.compared[0].spoke) <= {"search", "longer"}
    assert 6 <= judgement.any.compared[0].clients <= 8
    assert judgement.search.compared[0].spoke == {"search": 12}
    assert judgement.search.compared[0].clients == 6
    assert path_of(out, found[0].claim).stat().st_size < 10_000
    # The rest, on another machine that got the small files only.
    moved = tmp_path / "moved"
    shutil.copytree(out / "claims", moved / "claims")
    assert [one.part.claim.id for one in still_open(parts_of("paper", "cpu"), moved)] == ["C2"]
    told = []
    whole = reproduce("paper", moved, foretold=lambda cells, runs, seconds: told.append(runs))
    assert told == [len(laid_out(parts_of("paper", "cpu")[1]).keys)]
    assert not (set(first.keys) - set(laid_out(parts_of("paper", "cpu")[1]).keys)) & Store(moved).keys()
    assert [one.judgement is not None for one in whole] == [True, True]
    assert whole[0].judgement == judgement
    no_runs()
    assert reproduce("paper", moved) == whole
    assert json.loads((moved / "claims.json").read_text())[1]["judgement"]["id"] == "C2"
    text = (moved / "page.md").read_text()
    assert "## C2: " in text
    assert "| C1 | Wide networks leak more. |" in text
    assert re.search(r"What is missing of fitted: \S+: This attack needs public", text.replace("\n", " "))


def test_a_claim_that_was_changed_is_run_again_and_its_words_may_change(studies, tmp_path, no_reports, monkeypatch):
    out = tmp_path / "out"
    reproduce("paper", out, claims=["C1"])
    path = studies / "c1.toml"
    path.write_text(path.read_text().replace("a test", "another test"))
    assert [one.part.claim.id for one in still_open(parts_of("paper", "cpu"), out)] == ["C2"]
    path.write_text(path.read_text().replace('value = "ncc"', 'value = "psnr"'))
    assert [one.part.claim.id for one in still_open(parts_of("paper", "cpu"), out)] == ["C1", "C2"]
    path.write_text(path.read_text().replace('value = "psnr"', 'value = "ncc"'))
    assert [one.part.claim.id for one in still_open(parts_of("paper", "cpu"), out)] == ["C2"]
    # So does a claim whose rules of judging were changed.
    monkeypatch.setattr(claims, "JUDGED", 99)
    assert [one.part.claim.id for one in still_open(parts_of("paper", "cpu"), out)] == ["C1", "C2"]
    # What the file says of the former claim is on no page.
    assert [one.judgement for one in reproduce("paper", out, claims=["C2"], limit=1)] == [None]
    assert "None of 2 claims was run yet." in (out / "page.md").read_text()


def test_other_pictures_are_another_claim(studies):
    path = studies / "c1.toml"
    digest = laid_out(parts_of("paper", "cpu", wanted=["C1"])[0]).digest
    path.write_text(path.read_text().replace("image_size = 16", "image_size = 20"))
    assert laid_out(parts_of("paper", "cpu", wanted=["C1"])[0]).digest != digest


def test_where_pictures_are_few_there_are_fewer_clients(studies):
    path = studies / "c1.toml"
    path.write_text(path.read_text().replace("victims = 8", "victims = 200"))
    cells = laid_out(parts_of("paper", "cpu", wanted=["C1"])[0]).cells
    assert {one.cell.plan.victims for one in cells["longer"]} == {100}


def test_an_attack_that_does_not_exist_is_no_attack_left_out(studies):
    path = studies / "c1.toml"
    path.write_text(path.read_text().replace('attack = "learned_inverse"', 'attack = "linaer"'))
    with pytest.raises(UnknownName, match="linaer"):
        laid_out(parts_of("paper", "cpu", wanted=["C1"])[0])


def test_the_command_tells_both_outcomes_and_what_is_open(studies, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "out")

    def said(*words):
        monkeypatch.setattr(sys, "argv", ["leakmap", "reproduce", "paper", "--out", out, *words])
        assert command() == 0
        return capsys.readouterr().out

    told = said("--claim", "C1", "--workers", "0")
    row = next(line for line in told.splitlines() if line.startswith("C1"))
    outcomes = [outcome for outcome in ("does not hold", "not informative", "holds") if outcome in row]
    assert outcomes
    left = json.loads(said("--dry-run", "--json"))
    assert left["runs"] == len(laid_out(parts_of("paper", "cpu")[1]).keys)
    assert 0 < left["missing"] < left["runs"]  # the narrow network is in both claims
    assert json.loads(said("--claim", "C1", "--dry-run", "--json"))["runs"] == 0


def column(outcome="holds", **changes):
    one = {
        "name": "wide less narrow", "effect": {"value": 0.1, "low": 0.05, "high": 0.15}, "p": 0.01, "clients": 6,
        "detectable": 0.07, "beside": {"rank": {"value": 0.2, "low": 0.1, "high": 0.3}},
        "spoke": {"search": 12}, "says": "passes",
    }  # fmt: skip
    return {"outcome": outcome, "why": "Every comparison passes.", "compared": [{**one, **changes}]}


def judgement(**changes):
    whole = {
        "id": "C1", "study": "0" * 64, "digest": "0" * 64, "search": column(), "any": column(),
        "left_out": {}, "runs": 30, "seconds": 12.5, "versions": {"leakmap": "0.1.0"},
    }  # fmt: skip
    return {**whole, **changes}


@pytest.mark.parametrize(
    "change",
    [
        {"id": "C1/../../x"},
        {"digest": "x"},
        {"seconds": -1.0},
        {"runs": 1e99},
        {"search": column(name="a | b")},
        {"any": column(p=2.0)},
        {"any": column(effect={"value": "<b>", "low": 0.0, "high": 0.0})},
        {"any": column(spoke={"a\nb": 1})},
        {"any": column(says="perhaps")},
        {"versions": {"leakmap": "`0`"}},
        {"search": {**column(), "why": "see [x](y)\n# heading"}},
        {"extra": 1},
        {"search": None},
    ],
)
def test_a_file_that_leakmap_did_not_write_is_refused_in_a_sentence(studies, tmp_path, change):
    claim = parts_of("paper", "cpu")[0].claim
    path = path_of(tmp_path, claim)
    path.parent.mkdir()
    path.write_text(json.dumps(judgement()))
    assert read_judgement(tmp_path, claim).runs == 30
    path.write_text(json.dumps(judgement(**change)))
    with pytest.raises(StoreError, match="what became of a claim"):
        read_judgement(tmp_path, claim)
    with pytest.raises(StoreError, match="what became of a claim"):
        reproduce("paper", tmp_path, claims=["C1"])


def test_a_file_under_another_name_or_with_other_comparisons_is_not_taken(studies, tmp_path):
    part = parts_of("paper", "cpu")[0]
    path = path_of(tmp_path, part.claim)
    path.parent.mkdir()
    path.write_text(json.dumps(judgement(id="C2")))
    with pytest.raises(StoreError, match="is about the claim C2, not C1"):
        read_judgement(tmp_path, part.claim)
    digest = laid_out(part).digest
    path.write_text(json.dumps(judgement(digest=digest, study=part.digest)))
    assert still_open([part], tmp_path) == []
    path.write_text(json.dumps(judgement(digest=digest, study=part.digest, search=column(name="other"))))
    assert len(still_open([part], tmp_path)) == 1


def test_the_page_has_both_columns_and_the_power_of_what_does_not_hold(studies):
    claim = parts_of("paper", "cpu")[0].claim
    found = Judgement.model_validate(judgement(any=column("does not hold", says="fails")))
    text = page([(claim, found)], command="leakmap reproduce paper")
    row = next(line for line in text.splitlines() if line.startswith("| C1 |"))
    assert row == (
        "| C1 | Wide networks leak more. | **holds** | wide less narrow: NCC 0.1 [0.05, 0.15], n = 6 | "
        "**does not hold** | wide less narrow: NCC 0.1 [0.05, 0.15], n = 6, power 0.07 |"
    )
    assert "Clients: Six, as no fewer say anything." in text
    assert page([(claim, None)], command="x").count("**not run**") == 2


def test_a_column_without_comparisons_has_none_that_decides():
    assert Column(outcome="not run", why="Runs of its cells are missing.", compared=()).deciding is None
