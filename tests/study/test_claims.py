import copy

import pytest

from leakmap.errors import BadSetting
from leakmap.report.study import Cell
from leakmap.result.evidence import LineUps
from leakmap.scoring.statistics import rank_sum_p
from leakmap.study.claims import judge_claim, read_claim
from leakmap.study.paper import page, parts_of, together, write_judged
from leakmap.study.planning import planned
from tests.result.made_up import finished, gain, line_up, made_up

CLAIM = {
    "id": "T1",
    "statement": "The high level leaks more.",
    "source": "a test",
    "expected": "above 0",
    "value": "psnr",
    "contrasts": [{"name": "high less low", "terms": [[1.0, {"knob": 1}], [-1.0, {"knob": 0}]]}],
}
AXES = {"knob": [0, 1], "seed": [0]}
CLIENTS = 10
FLOORS = {"psnr": {"prior_only": (10.0,), "swapped": (9.0,)}}


def cell(knob, psnrs, ranks, control=1e-6, flags=None, unfinished=0):
    clients = [
        finished(i, (rank,), (100,), {"psnr": (psnr,), "ssim": (0.1,)}, FLOORS)
        for i, (psnr, rank) in enumerate(zip(psnrs, ranks, strict=True))
    ]
    own = line_up(rank_sum_p([[rank] for rank in ranks], [[100]] * len(ranks)))
    line_ups = LineUps(
        gallery=(100, 100), attack=own, any_pose=None, swapped=None, deranged=None, control=line_up(control)
    )
    metrics = {"psnr": gain("prior_only")}
    result = made_up(*clients, line_up=line_ups, metrics=metrics, flags=flags or {}, unfinished=unfinished)
    return Cell({"knob": knob, "seed": 0}, result)


def spread(middle):
    return [middle + 0.1 * i for i in range(CLIENTS)]


FIRST, CHANCE = [1.0] * CLIENTS, [5.0 + 10 * i for i in range(CLIENTS)]


def judged(low, high, **changes):
    claim = read_claim({**copy.deepcopy(CLAIM), **changes}, AXES)
    return judge_claim(claim, [cell(0, *low), cell(1, *high)])


def test_a_clear_difference_in_the_expected_direction_holds():
    found = judged((spread(10), CHANCE), ([v + 2 + (i % 3) / 5 for i, v in enumerate(spread(10))], FIRST))
    assert found.outcome == "holds"
    assert found.shown[0].effect.difference.low > 1.9
    assert found.shown[0].ranks.difference.value > 0.4


def test_the_opposite_direction_does_not_hold():
    assert judged((spread(12), FIRST), (spread(10), FIRST)).outcome == "does not hold"


def test_where_nothing_leaks_nothing_is_compared():
    found = judged((spread(10), CHANCE), (spread(10), CHANCE))
    assert found.outcome == "not informative"
    assert "nothing to compare" in found.why


def test_a_difference_between_clients_that_do_not_leak_is_not_held_to_be_leakage():
    found = judged((spread(8), CHANCE), ([v + 2 + (i % 3) / 5 for i, v in enumerate(spread(8))], CHANCE))
    assert found.outcome == "not informative"


def test_a_wide_interval_leaves_it_open():
    low = spread(10)
    found = judged((low, CHANCE), ([v + (3 if i % 2 else -2) for i, v in enumerate(low)], FIRST))
    assert (found.outcome, found.shown[0].says) == ("not informative", "open")


def test_cells_with_missing_runs_are_not_judged():
    cells = [cell(0, spread(10), CHANCE), cell(1, spread(14), FIRST, unfinished=2)]
    assert judge_claim(read_claim(CLAIM, AXES), cells).outcome == "not run"


def test_a_margin_is_what_is_tested_against():
    claim = read_claim(
        {**CLAIM, "value": "first", "margin": 0.5, "contrasts": [{"name": "share", "terms": [[1.0, {"knob": 1}]]}]},
        AXES,
    )
    assert judge_claim(claim, [cell(1, spread(12), FIRST)]).outcome == "holds"
    half = [1.0, 50.0] * (CLIENTS // 2)
    assert judge_claim(claim, [cell(1, spread(12), half)]).outcome == "not informative"


def test_few_clients_say_nothing():
    claim = read_claim(CLAIM, AXES)
    cells = [cell(0, [10.0] * 3, [1.0] * 3), cell(1, [13.0, 13.5, 14.0], [1.0] * 3)]
    assert judge_claim(claim, cells).outcome == "not informative"


def test_a_cell_that_did_not_finish_is_not_judged():
    assert judge_claim(read_claim(CLAIM, AXES), [cell(1, spread(12), FIRST)]).outcome == "not run"


def test_resistance_needs_a_control_that_was_found():
    below = {"rule": "below", "value": "gain", "margin": 1.0}
    below["contrasts"] = [{"name": "gain", "terms": [[1.0, {"knob": 1}]]}]
    claim = read_claim({**CLAIM, **below}, AXES)
    assert judge_claim(claim, [cell(1, [10.0 + 0.01 * i for i in range(CLIENTS)], CHANCE)]).outcome == "holds"
    assert judge_claim(claim, [cell(1, spread(14), FIRST)]).outcome == "does not hold"
    blind = cell(1, [10.0 + 0.01 * i for i in range(CLIENTS)], CHANCE, control=0.5)
    assert judge_claim(claim, [blind]).outcome == "not informative"
    degenerate = cell(1, [10.0] * CLIENTS, CHANCE, flags={"degenerate_update": "It hardly depends on the picture."})
    assert judge_claim(claim, [degenerate]).outcome == "not informative"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"value": "lpips"}, "one of psnr"),
        ({"rule": "sideways"}, "rule"),
        ({"contrasts": []}, "contrasts"),
        ({"contrasts": [{"name": "x", "terms": [[1, {"knob": 7}]]}]}, "knob = 7"),
        ({"contrasts": [{"name": "x", "terms": [[1, {"knob": 1}], [-1, {"seed": 0}]]}]}, "different axes"),
        ({"verdict": "good"}, "verdict"),
    ],
)
def test_what_is_wrong_in_a_claim_is_said_in_a_sentence(change, expected):
    with pytest.raises(BadSetting, match=expected):
        read_claim({**CLAIM, **change}, AXES)


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_every_claim_of_the_paper_is_a_study_that_can_be_planned(scale):
    parts = parts_of("paper", scale)
    assert [part.claim.id for part in parts] == [f"C{i}" for i in range(1, 15)]
    assert all(part.study.title.startswith(part.claim.id) for part in parts)
    if scale == "cpu":
        small = [part for part in parts if part.claim.id in ("C2", "C3", "C5")]
        keys = [{t.key for one in planned(part.study) for t in one.all()} for part in small]
        assert keys[0] == keys[1] == keys[2]
        assert len({t.key for one in planned(together(small)) for t in one.all()}) == len(keys[0])


def test_given_sources_replace_those_of_their_kind():
    parts = parts_of("paper", "cpu", ["npz:a.npz", "coco:b"], ["C1", "C9"])
    assert [{cell.plan.data for cell in part.study.cells} for part in parts] == [{"npz:a.npz"}, {"coco:b"}]
    assert {cell.plan.data for cell in parts_of("paper", "cpu", ["coco:b"], ["C1"])[0].study.cells} == {"samples"}


def test_a_paper_scale_or_claim_that_does_not_exist_is_named():
    with pytest.raises(BadSetting, match="no paper 'papre'"):
        parts_of("papre", "cpu")
    with pytest.raises(BadSetting, match="no claim 'C99'"):
        parts_of("paper", "cpu", wanted=["C99"])


def test_the_page_has_a_line_for_every_claim(tmp_path):
    parts = parts_of("paper", "cpu", wanted=["C3"])
    claim = parts[0].claim
    found = [judge_claim(claim, [])]
    text = page(found, command="leakmap reproduce paper", ran_on="python 3")
    assert f"| C3 | {claim.statement} | **not run** |" in text
    write_judged(tmp_path / "claims.json", found)
    assert '"outcome": "not run"' in (tmp_path / "claims.json").read_text()
