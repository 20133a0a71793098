"""Two audits side by side: paired, with intervals, and refused where the clients are others."""

import json
import re
import sys

import pytest

from leakmap import LocalRule, Plan, compare
from leakmap.cli.main import command
from leakmap.errors import BadSetting
from leakmap.result.compare import cells
from tests.result.made_up import finished, gain, made_up

CLIENTS = 12


def audit(psnr, first=0, **plan):
    """Twelve clients, the first ones of which are first in their line-ups."""
    rows = [
        finished(i, (1.0 if i < first else 10.0 + i,), (40,), {"psnr": (psnr + i % 4,)}, {"psnr": {"mean": (9.0,)}})
        for i in range(CLIENTS)
    ]
    return made_up(*rows, plan=Plan("mlp", "samples", **plan), metrics={"psnr": gain("mean")})


def row(found, name):
    return next(one for one in found.rows if one.name == name)


def test_what_differs_alike_in_every_client_is_beyond_chance_and_what_does_not_is_not():
    found = compare(audit(12.0), audit(15.5, first=10, rule=LocalRule(mode="eval")))
    assert found.settings == {"rule.mode": ("train", "eval")}
    psnr, first = row(found, "psnr"), row(found, "first in line-up")
    assert (psnr.difference, psnr.low, psnr.high, psnr.beyond_chance) == (3.5, 3.5, 3.5, True)
    assert psnr.p == pytest.approx(4 * 2 / 2**CLIENTS), "Holm over four rows of the least that twelve signs can give"
    assert (first.first, first.second) == (0.0, pytest.approx(10 / 12))
    assert 0 < first.low < first.difference < first.high <= 1
    same = row(found, "exposed clients")
    # Nobody is exposed in either, which of 12 clients leaves up to 30.6 % either way (97.5 % each), not an interval of
    # no width.
    assert (same.difference, same.low, same.beyond_chance) == (0, -same.high, False)
    assert same.high == pytest.approx(1 - 0.0125 ** (1 / CLIENTS))
    back = compare(audit(15.5, first=10), audit(12.0))
    assert row(back, "psnr").difference == -3.5


def test_few_clients_and_lost_ones_are_said():
    few = made_up(*audit(12.0).clients[:3], plan=Plan("mlp", "samples"), metrics={"psnr": gain("mean")})
    found = compare(few, audit(20.0))
    assert found.clients == 3
    assert not any(one.beyond_chance for one in found.rows)
    assert "Of 3 and 12 clients 3 finished in both" in found.notes[0]
    assert any("too few for any difference" in note for note in found.notes)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"data": "npz:x.npz"}, {"image_size": 16}, {"batch_size": 2}])
def test_other_clients_are_refused_with_what_differs(changes):
    plan = {"data": "samples", "model": "mlp"} | changes
    other = made_up(*audit(12.0).clients, plan=Plan(**plan))
    with pytest.raises(BadSetting, match=f"different clients .*{next(iter(changes))}"):
        compare(audit(12.0), other)


def test_pictures_of_other_classes_are_refused():
    changed = made_up(
        *(one.model_copy(update={"classes": ("dog",)}) for one in audit(12.0).clients), plan=audit(1.0).plan
    )
    with pytest.raises(BadSetting, match="data has changed"):
        compare(audit(12.0), changed)


def test_the_command_prints_the_same_as_a_table_as_markdown_and_as_json(monkeypatch, capsys, tmp_path):
    one, other = audit(12.0), audit(15.5, first=10)
    for name, result in (("a", one), ("b", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(result.as_json())
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["leakmap", "compare", *words])
        with pytest.raises(SystemExit) as stop:
            sys.exit(command())
        return stop.value.code, *capsys.readouterr()

    found = compare(one, other)
    code, out, _ = call("a", "b/result.json")
    assert code == 0
    assert out.startswith("Beyond chance differ: first in line-up, line-up score, psnr.")
    assert max(map(len, out.splitlines())) <= 80
    for each in found.rows:
        assert " ".join(cells(each)) in re.sub(r" +", " ", out)
    assert call("a", "b", "--markdown")[1] == found.markdown("a", "b")
    assert "| psnr | 13.5 | 17 | +3.5 [+3.5, +3.5] |" in found.markdown()
    assert json.loads(call("a", "b", "--json")[1]) == json.loads(found.model_dump_json())
    assert "give one" in call("a", "b", "--json", "--markdown")[2]
    assert "c" in call("a", "c")[2]
