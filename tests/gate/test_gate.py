"""The gate: its line, its exit code, its baseline, and the files that pipelines read.

``sarif-2.1.0.json`` is the schema of SARIF 2.1.0 as SchemaStore (Apache-2.0) publishes it, in its package schemastore.
"""

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import jsonschema
import junitparser
import pytest

from leakmap import Plan, Spec, ThreatModel
from leakmap.errors import BadSetting, StoreError
from leakmap.gate.baseline import LEAST, check_comparable, read_baseline
from leakmap.gate.files import place_of, write_junit, write_markdown, write_sarif
from leakmap.gate.finding import found, gate_level
from leakmap.gate.rules import FLAGS, LEVELS
from leakmap.result.clients import LostClient
from leakmap.result.evidence import ExposedPicture, ExposureResult
from leakmap.result.part import Rate
from leakmap.scoring.statistics import clopper_pearson
from leakmap.scoring.verdict import LEVELS as EVERY_LEVEL
from tests.result.made_up import finished, gain, made_up, verdict

ROOT = Path(__file__).parents[2]


def audit(ranks, level="none_found", exposed=(), psnr=None, **changes):
    """A result of clients with one picture each, with these ranks of 50, PSNR values and exposed clients."""
    n = len(ranks)
    psnr = psnr or [10.0] * n
    clients = [
        finished(i, (float(rank),), (50,), {"psnr": (value,), "ssim": (0.1,)}, {
            name: {"prior_only": (floor,)} for name, floor in (("psnr", 9.0), ("ssim", 0.1))
        })
        for i, (rank, value) in enumerate(zip(ranks, psnr, strict=True))
    ]  # fmt: skip
    share = Rate.model_validate(clopper_pearson(len(exposed), n))
    pictures = tuple(ExposedPicture(client=i, picture=0, level="exact", psnr=40.0, ssim=0.9) for i in exposed)
    counted = {"clients": len(exposed), "of_clients": n, "pictures": len(exposed), "of_pictures": n}
    exposure = ExposureResult(**counted, client_share=share, picture_share=share, found=pictures)
    metrics = {"psnr": gain("prior_only"), "ssim": gain("prior_only")}
    rule = {"inconclusive": "control", "none_found": "nothing", "exact": "exposure"}.get(level, "ranks")
    plan = Plan("nets.py:build", victims=n, threat=ThreatModel(public=0))
    given = {"verdict": verdict(level, rule), "exposure": exposure, "metrics": metrics, "plan": plan}
    return made_up(*clients, **given | changes)


def chance(n, seed):
    draws = random.Random(seed)
    return [draws.randint(1, 50) for _ in range(n)], [10 + draws.gauss(0, 1) for _ in range(n)]


def test_the_line_says_level_counts_limit_and_exit_code():
    some = audit([1, 7, 30], "exact", exposed=[0])
    assert found("partial", some).line == (
        "gate partial: reached (exact): 1 of 3 clients, 1 of 3 pictures exposed; 0.8% to 90.6% of such clients (95 %); "
        "exit code 1"
    )
    none = found("visual", audit([9, 7, 30], "statistical"))
    assert (none.code, none.answer) == (0, "not reached")
    assert "; at most 70.8% of such clients (95 %); exit code 0" in none.line
    assert found("partial", audit([1], "inconclusive")).line.startswith("gate partial: inconclusive: 0 of 1 client")
    assert found("partial", audit([1], "inconclusive")).code == 2
    broken = found("exact", audit([1, 2], "statistical", flags={"defence_broken": "Above."}))
    assert broken.line.startswith("gate exact: defence broken (statistical): ")
    assert broken.code == 1
    assert found("exact", broken.result, broken.result).answer == "inconclusive"  # two clients tell nothing
    assert [found(gate_level(level), some).code for level in EVERY_LEVEL[1:]] == [1] * 5
    with pytest.raises(BadSetting, match="inconclusive"):
        gate_level("inconclusive")


def test_a_baseline_fails_only_on_what_is_worse_by_more_than_noise(tmp_path):
    path = tmp_path / "result.json"
    ranks, psnr = chance(36, 0)
    before = audit(ranks, psnr=psnr)
    path.write_text(before.as_json())
    assert read_baseline(path) == before

    same = found("statistical", before, before, path)
    assert (same.answer, same.code) == ("not worse", 0)
    raised = audit(ranks, "exact", exposed=[3], psnr=psnr)  # one client more: what chance alone explains
    assert found("statistical", raised, before, path).code == 0
    assert "exact here" in found("statistical", raised, before, path).line
    worse = found("statistical", audit(ranks, "exact", exposed=range(12), psnr=psnr), before, path)
    assert (worse.answer, worse.code) == ("worse", 1)
    assert "risen: exposed clients 0 to 0.333 (p 0.0001)" in worse.line
    assert found("statistical", audit([1] * 36, "partial", psnr=psnr), before, path).code == 1
    assert found("visual", audit([1] * 36, "partial", psnr=psnr), before, path).code == 0  # below the gate
    assert found("statistical", before, audit([1] * 36, "partial", psnr=psnr), path).code == 0  # better
    closer = audit(ranks, "statistical", psnr=[value + 3 for value in psnr])
    assert "gain in PSNR" in found("statistical", closer, before, path).why
    assert found("statistical", audit(ranks, "inconclusive", psnr=psnr), before, path).code == 2


def test_a_baseline_raises_no_alarm_by_noise_alone():
    """Of 100 pairs of unchanged audits with clients of their own, at most 1 % may differ: 5 or more have p 0.004."""
    alarms = 0
    for seed in range(100):
        (before, psnr_before), (now, psnr_now) = (chance(10, 2 * seed + i) for i in range(2))
        earlier, later = (audit(r, "statistical", psnr=p) for r, p in ((before, psnr_before), (now, psnr_now)))
        alarms += found("statistical", later, earlier).code
    assert alarms < 5


def test_what_cannot_be_compared_is_refused(tmp_path):
    path = tmp_path / "result.json"
    before = audit(*chance(12, 0)[:1])
    for change, words in (
        ({"attack": Spec("dlg")}, "attack strongest there and dlg here"),
        ({"threat": ThreatModel(public=0, labels="known")}, "granted labels unknown there and known here"),
        ({"null": True}, "null audit"),
        ({"victims": LEAST - 1}, f"has {LEAST - 1} clients"),
    ):
        with pytest.raises(BadSetting, match=words):
            check_comparable(before, path, replace(before.plan, **change))
    check_comparable(before, path, replace(before.plan, model="mlp", seed=4, data="npz:other.npz"))
    for damaged, words in (
        (audit([1] * 12, "inconclusive").as_json(), "inconclusive"),
        (audit([1] * (LEAST - 1)).as_json(), f"has {LEAST - 1} clients"),
        (before.as_json().replace('"schema": ', '"schema": 1'), "run its command again"),
        ("{}", "does not hold a result"),
    ):
        path.write_text(damaged)
        with pytest.raises(Exception, match=words):
            read_baseline(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match="is no file"):
        read_baseline(path)
    lost = audit([1] * 12, clients=(*before.clients[:4], *(LostClient(client=i, failure="died") for i in range(4, 12))))
    assert found("statistical", lost, before, path).code == 2
    assert "Only 4 clients finished in both audits" in found("statistical", lost, before, path).why


TAGS = {
    "testsuites": {"name", "tests", "failures", "errors", "skipped", "time"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time"},
    "testcase": {"name", "classname", "time"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
    "properties": set(),
    "property": {"name", "value"},
    "system-out": set(),
}
"""Elements and attributes of the format that Jenkins publishes as junit-10.xsd, as far as they are written here."""
HOSTILE = 'a|b `c` <img src=x> [x](y)\n\x1b[31m\x00 "&]]>'


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_the_files_are_what_their_schemas_say(level, tmp_path, monkeypatch):
    exposed = [0] if level in ("visual", "exact") else []
    result = audit([1, 5, 9], level, exposed, flags={"still_falling": HOSTILE, "of_tomorrow": "New."})
    result = result.model_copy(update={"clients": (*result.clients, LostClient(client=3, failure=HOSTILE))})
    finding = found("partial", result)
    write_junit(finding, tmp_path / "j.xml")
    tree = junitparser.JUnitXml.fromfile(str(tmp_path / "j.xml"))
    for element in tree._elem.iter():
        assert element.tag in TAGS
        assert set(element.attrib) <= TAGS[element.tag]
    failing = {1: 1 + len(exposed), 0: 0, 2: 0}[finding.code]
    assert (tree.tests, tree.failures, tree.errors) == (5, failing, 1 + (finding.code == 2))

    write_sarif(finding, tmp_path / "s.sarif", place_of(finding, "out/result.json"))
    log = json.loads((tmp_path / "s.sarif").read_text())
    schema = json.loads((Path(__file__).parent / "sarif-2.1.0.json").read_text())
    jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker()).validate(log)
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert [rules[one["ruleIndex"]] for one in run["results"]] == [level, "still_falling", "of_tomorrow"]
    assert all(rule["help"]["text"] for rule in run["tool"]["driver"]["rules"])
    assert run["results"][0]["level"] == ({1: "error", 2: "warning"}.get(finding.code) or run["results"][0]["level"])
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "nets.py"

    (tmp_path / "summary").write_text("before\n")
    write_markdown(finding, tmp_path / "m.md", tmp_path / "summary")
    page = (tmp_path / "m.md").read_text()
    assert (tmp_path / "summary").read_text() == f"before\n\n{page}"
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 8 + 2
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)
    assert "\x1b" not in page
    assert "<img" not in page.replace("\\<", "")


def test_every_level_and_every_flag_has_its_words():
    assert set(LEVELS) == set(EVERY_LEVEL)
    table = (ROOT / "docs" / "verdict.md").read_text().partition("| flag | rule | effect |")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {word.strip("` ") for row in rows for word in row.split(",")}
    assert len(named) > 15
    assert named <= set(FLAGS)
