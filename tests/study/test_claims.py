import copy

import numpy as np
import pytest

from leakmap.errors import BadSetting
from leakmap.report.study import Cell
from leakmap.result.evidence import LineUps
from leakmap.scoring.statistics import rank_sum_p
from leakmap.study.claims import SEARCH, read_claim
from leakmap.study.judging import judge_claim as judge_columns
from leakmap.study.judging import speakers
from leakmap.study.paper_runs import parts_of
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


def judge_claim(claim, cells):
    """For attacks that search."""
    return judge_columns(claim, {SEARCH: cells})[0]


def judged(low, high, **changes):
    claim = read_claim({**copy.deepcopy(CLAIM), **changes}, AXES)
    return judge_claim(claim, [cell(0, *low), cell(1, *high)])


def test_a_clear_difference_in_the_expected_direction_holds():
    found = judged((spread(10), CHANCE), ([v + 2 + (i % 3) / 5 for i, v in enumerate(spread(10))], FIRST))
    assert found.outcome == "holds"
    assert found.compared[0].effect.low > 1.9
    assert found.compared[0].beside["rank"].value > 0.4


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
    assert (found.outcome, found.compared[0].says) == ("not informative", "open")


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
    open_ = judge_claim(claim, [cell(1, spread(12), half)])
    assert open_.outcome == "not informative"
    low, high = open_.compared[0].effect.low, open_.compared[0].effect.high
    assert (round(low, 3), round(high, 3)) == (0.187, 0.813)  # Clopper and Pearson, 5 of 10


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
        ({"value": "lpips"}, "one of rank"),
        ({"rule": "sideways"}, "rule"),
        ({"contrasts": []}, "contrasts"),
        ({"contrasts": [{"name": "x", "terms": [[1, {"knob": 7}]]}]}, "knob = 7"),
        ({"contrasts": [{"name": "x", "terms": [[1, {"knob": 1}], [-1, {"seed": 0}]]}]}, "different axes"),
        ({"verdict": "good"}, "verdict"),
        ({"tried": [{"label": "search", "attack": "linear"}]}, "label of its own"),
        ({"tried": [{"label": "a|b", "attack": "linear"}]}, "label"),
        ({"tried": [{"label": "a", "attack": "linear", "at": {"knob": 7}}]}, "knob = 7"),
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


def test_given_sources_replace_those_of_their_kind():
    parts = parts_of("paper", "cpu", ["npz:a.npz", "coco:b"], ["C1", "C9"])
    assert [{cell.plan.data for cell in part.study.cells} for part in parts] == [{"npz:a.npz"}, {"coco:b"}]
    assert {cell.plan.data for cell in parts_of("paper", "cpu", ["coco:b"], ["C1"])[0].study.cells} == {"samples"}


def test_a_paper_scale_or_claim_that_does_not_exist_is_named():
    with pytest.raises(BadSetting, match="no paper 'papre'"):
        parts_of("papre", "cpu")
    with pytest.raises(BadSetting, match="no claim 'C99'"):
        parts_of("paper", "cpu", wanted=["C99"])


def both(search, fitted, **changes):
    """The columns of a claim over cells ``(psnrs, ranks)`` of the search and of another attack, low then high."""
    tried = {"tried": [{"label": "fitted", "attack": "learned_inverse"}]}
    claim = read_claim({**copy.deepcopy(CLAIM), **tried, **changes}, AXES)
    cells = {SEARCH: search, "fitted": fitted}
    return judge_columns(
        claim, {label: [cell(knob, *own) for knob, own in enumerate(pair) if own] for label, pair in cells.items()}
    )


def test_a_claim_about_searches_may_not_hold_for_every_attack():
    stronger = [value + 3 for value in spread(10)]
    high = [value + 2 + (i % 3) / 5 for i, value in enumerate(spread(10))]
    search, of_any = both([(spread(10), CHANCE), (high, FIRST)], [(stronger, FIRST), None])
    assert (search.outcome, of_any.outcome) == ("holds", "does not hold")
    assert of_any.compared[0].spoke == {"fitted": CLIENTS, "search": CLIENTS}
    assert of_any.compared[0].effect.value < 0


def test_where_ways_of_searching_are_compared_the_search_speaks_in_both_columns():
    high = [value + 2 + (i % 3) / 5 for i, value in enumerate(spread(10))]
    contrasts = [{**copy.deepcopy(CLAIM["contrasts"][0]), "of_searching": True}]
    columns = both([(spread(10), CHANCE), (high, FIRST)], [([50.0] * CLIENTS, FIRST), None], contrasts=contrasts)
    assert columns[0] == columns[1]


def test_a_weaker_attack_with_more_clients_does_not_speak():
    values = {"search": {0: 5.0, 1: 6.0, 2: 5.0, 3: 6.0}, "fitted": dict.fromkeys(range(20), 1.0)}
    assert speakers(values) == dict.fromkeys(range(4), "search")
    values["fitted"] = dict.fromkeys(range(20), 9.0)
    assert speakers(values) == dict.fromkeys(range(20), "fitted")


def test_which_attack_speaks_for_a_client_is_chosen_on_others():
    """Attacks that are noise: the best one of each client is above chance, the one chosen elsewhere is not."""
    random, means = np.random.default_rng(0), []
    for _ in range(400):
        noise = {label: dict(enumerate(random.normal(size=20))) for label in ("a", "b", "c", "d")}
        means.append(np.mean([noise[label][client] for client, label in speakers(noise).items()]))
    error = np.std(means) / 20
    assert abs(np.mean(means)) < 3 * error
    values = {"a": {0: 100.0, 1: 0.0, 2: 100.0, 3: 0.0}, "b": {0: 0.0, 1: 1.0, 2: 0.0, 3: 1.0}}
    assert speakers(values) == {0: "b", 2: "b", 1: "a", 3: "a"}


def test_what_would_have_been_found_is_told():
    low, high = spread(10), [value + 1 + (i % 3) / 5 for i, value in enumerate(spread(10))]
    found = judged((low, CHANCE), (high, FIRST)).compared[0]
    differences = np.array(high) - np.array(low)
    error = differences.std(ddof=1) / CLIENTS**0.5
    assert found.detectable == pytest.approx((2.262 + 0.883) * error, rel=1e-3)  # quantiles of t with 9 degrees


def test_near_chance_is_shown_by_two_one_sided_tests():
    near = {"value": "over_chance", "rule": "within", "margin": 0.15}
    near["contrasts"] = [{"name": "near", "terms": [[1.0, {"knob": 1}]]}]
    claim = read_claim({**CLAIM, **near}, AXES)
    middle = [50.5 + 8 * (i % 3 - 1) for i in range(CLIENTS)]
    assert judge_claim(claim, [cell(1, spread(10), middle)]).outcome == "holds"
    assert judge_claim(claim, [cell(1, spread(10), CHANCE)]).outcome == "not informative"  # spread too widely
    assert judge_claim(claim, [cell(1, spread(10), FIRST)]).outcome == "does not hold"


def test_clients_that_differ_between_cells_are_not_paired():
    """Cells whose clients agree perfectly: paired, the difference has no spread; unpaired, it has theirs."""
    low, high = [10.0 + i for i in range(CLIENTS)], [11.0 + i for i in range(CLIENTS)]
    contrasts = [{**copy.deepcopy(CLAIM["contrasts"][0]), "paired": False}]
    paired = judged((low, FIRST), (high, FIRST)).compared[0].effect
    welch = judged((low, FIRST), (high, FIRST), contrasts=contrasts).compared[0].effect
    assert paired.high - paired.low == pytest.approx(0)
    assert welch.low < 0 < welch.value == pytest.approx(1)


def test_exposed_pictures_are_counted_with_their_exact_interval():
    exposed = {"value": "exposed", "rule": "below", "margin": 0.4}
    exposed["contrasts"] = [{"name": "exposed", "terms": [[1.0, {"knob": 1}]]}]
    found = judge_claim(read_claim({**CLAIM, **exposed}, AXES), [cell(1, spread(10), FIRST)])
    assert found.outcome == "holds"
    assert found.compared[0].effect.high == pytest.approx(0.3085, abs=1e-4)  # 0 of 10
