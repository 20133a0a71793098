"""Contrasts over the cells of a study, against closed forms and truths that were planted."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from leakmap.errors import BadSetting
from leakmap.scoring.effects import (
    axis_levels,
    contrast,
    holm,
    interaction,
    marginal_effects,
    two_sided_p,
    unpaired,
)
from leakmap.scoring.equivalence import equivalent


@dataclass(frozen=True)
class Cell:
    axes: dict
    values: dict


def crossed(axes, value, clients=range(10), noise=0.0):
    """Every combination of the axes; clients of a seed differ by the same amount in all of its cells."""
    random = np.random.default_rng(0)
    names = list(axes)
    cells = []
    for levels in itertools.product(*axes.values()):
        at = dict(zip(names, levels, strict=True))
        of_client = {c: value(at) + 5 * ((7 * c + at.get("seed", 0)) % 11) + noise * random.normal() for c in clients}
        cells.append(Cell(at, of_client))
    return cells


def values(cell):
    return cell.values


def found(effects, axis, low, high):
    return next(e for e in effects if (e.name, e.low, e.high) == (axis, low, high))


def test_planted_effects_come_back_whatever_the_clients_differ_by():
    axes = {"preact": [False, True], "width": [64, 16, 32], "mode": ["train", "eval"], "seed": [0, 1]}
    cells = crossed(axes, lambda at: 2 * at["preact"] + at["width"] / 16 + 0.5 * (at["mode"] == "eval"))
    effects = marginal_effects(cells, values)
    assert [(e.name, e.low, e.high) for e in effects] == [
        ("preact", False, True), ("width", 16, 32), ("width", 16, 64), ("width", 32, 64), ("mode", "train", "eval"),
    ]  # fmt: skip
    for effect, truth in zip(effects, (2.0, 1.0, 3.0, 2.0, 0.5), strict=True):
        assert effect.difference.value == pytest.approx(truth)
        assert effect.difference.low == pytest.approx(truth)
        assert effect.clients == 20
    assert found(effects, "preact", False, True).pairs == 12
    assert found(effects, "width", 16, 64).pairs == 8


def test_many_cells_do_not_stand_in_for_many_clients():
    """The same clients in ten times as many cells, and nothing new: the interval stays as it is."""

    def interval(count):
        of = lambda at, c: at["on"] * float(np.sin(c))  # noqa: E731
        cells = [
            Cell({"on": on, "other": i}, {c: of({"on": on}, c) for c in range(12)})
            for on in (0, 1)
            for i in range(count)
        ]
        return found(marginal_effects(cells, values), "on", 0, 1).difference

    once, often = interval(1), interval(10)
    assert (once.value, once.low, once.high) == pytest.approx((often.value, often.low, often.high))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for trial in range(40):
        random = np.random.default_rng(trial)
        cells = [Cell({"on": on}, {c: 0.7 * on + random.normal() for c in range(20)}) for on in (0, 1)]
        effect = marginal_effects(cells, values)[0].difference
        covered += effect.low <= 0.7 <= effect.high
    assert covered >= 34


def test_cells_are_compared_only_where_they_agree_on_everything_else():
    """Width 64 was only audited in inference mode, which leaks more: unmatched, width would seem to matter."""
    cells = [
        Cell({"width": 16, "mode": "train"}, dict.fromkeys(range(5), 0.0)),
        Cell({"width": 16, "mode": "eval"}, dict.fromkeys(range(5), 9.0)),
        Cell({"width": 64, "mode": "eval"}, dict.fromkeys(range(5), 9.0)),
    ]
    assert found(marginal_effects(cells, values), "width", 16, 64).difference.value == 0


def test_levels_to_which_other_axes_apply_are_matched_on_what_they_share():
    cells = []
    for mode, shift in (("train", 0.0), ("eval", 1.0)):
        cells.append(Cell({"model": "mlp", "mode": mode}, dict.fromkeys(range(4), 1 + shift)))
        for preact in (False, True):
            at = {"model": "resnet", "preact": preact, "mode": mode}
            cells.append(Cell(at, dict.fromkeys(range(4), 2 + 4 * preact + shift)))
    effect = found(marginal_effects(cells, values), "model", "mlp", "resnet")
    assert (effect.difference.value, effect.pairs) == (3.0, 2)


def test_a_client_that_failed_in_one_cell_is_left_out_of_its_pair():
    cells = [Cell({"on": 0}, {0: 1.0, 1: 1.0, 2: 50.0}), Cell({"on": 1}, {0: 2.0, 1: 2.0})]
    effect = marginal_effects(cells, values)[0]
    assert (effect.difference.value, effect.clients) == (1.0, 2)
    assert marginal_effects([Cell({"on": 0}, {0: 1.0}), Cell({"on": 1}, {1: 1.0})], values) == []


def test_seeds_are_matched_and_never_compared():
    cells = crossed({"on": [0, 1], "seed": [0, 1, 2]}, lambda at: at["on"] * (1 + at["seed"]))
    effects = marginal_effects(cells, values)
    assert [e.name for e in effects] == ["on"]
    assert effects[0].difference.value == pytest.approx(2)
    assert (effects[0].pairs, effects[0].clients) == (3, 30)


def test_the_interaction_of_two_is_half_the_difference_of_the_differences():
    def value(at):
        return 3 * at["a"] + 2 * at["b"] + 4 * at["a"] * at["b"] + at["rest"]

    cells = crossed({"a": [0, 1], "b": [0, 1], "rest": [0, 10]}, value)
    both = interaction(cells, values, {"a": (0, 1), "b": (0, 1)})
    assert both is not None
    assert both.difference.value == pytest.approx(2)
    assert both.name == "a × b"
    assert both.high == [(0, 0), (1, 1)]
    additive = crossed({"a": [0, 1], "b": [0, 1]}, lambda at: 3 * at["a"] + 2 * at["b"], noise=0)
    none = interaction(additive, values, {"a": (0, 1), "b": (0, 1)})
    assert none is not None
    assert none.difference.value == pytest.approx(0)


def test_the_interaction_of_three_finds_what_needs_all_three():
    axes = {"a": [0, 1], "b": [0, 1], "c": [0, 1], "seed": [0, 1]}
    levels = {"a": (0, 1), "b": (0, 1), "c": (0, 1)}
    cells = crossed(axes, lambda at: 8.0 * at["a"] * at["b"] * at["c"])
    all_three = interaction(cells, values, levels)
    assert all_three is not None
    assert all_three.difference.value == pytest.approx(2)
    assert (all_three.pairs, all_three.clients) == (2, 20)
    named = interaction(cells, values, levels, named={"a": 1, "b": 1, "c": 1})
    assert named is not None
    assert named.difference.value == pytest.approx(8)
    other = interaction(cells, values, levels, named={"a": 0, "b": 1, "c": 1})
    assert other is not None
    assert other.difference.value == pytest.approx(-8 / 7)
    two = interaction(cells, values, {"a": (0, 1), "b": (0, 1)})
    assert two is not None
    assert two.difference.value == pytest.approx(2)


def test_an_incomplete_factorial_gives_no_interaction_and_nonsense_is_refused():
    cells = crossed({"a": [0, 1], "b": [0, 1]}, lambda at: 1.0)
    assert interaction(cells[:3], values, {"a": (0, 1), "b": (0, 1)}) is None
    with pytest.raises(BadSetting, match="two different levels"):
        interaction(cells, values, {"a": (1, 1)})
    with pytest.raises(BadSetting, match="no combination"):
        interaction(cells, values, {"a": (0, 1), "b": (0, 1)}, named={"a": 1})


def test_the_sign_flip_test_of_few_clients_is_exact():
    assert two_sided_p([1.0, 2.0, 3.0, 4.0]) == pytest.approx(2 / 2**4)
    assert two_sided_p([-1.0, -2.0, -3.0, -4.0]) == pytest.approx(2 / 2**4)
    assert two_sided_p([0.0, 0.0]) == 1


def test_holm_against_values_worked_out_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_equivalence_is_the_larger_of_two_one_sided_t_tests():
    differences = np.random.default_rng(3).normal(0.1, 1, 30)
    found = equivalent(list(differences), 0.6)
    expected = max(
        stats.ttest_1samp(differences, -0.6, alternative="greater").pvalue,
        stats.ttest_1samp(differences, 0.6, alternative="less").pvalue,
    )
    assert found.p == pytest.approx(expected)
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.9)
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))
    for margin in (0.2, 0.3, 0.4, 0.5, 0.7):
        one = equivalent(list(differences), margin)
        assert one.equivalent == (-margin < one.difference.low and one.difference.high < margin)


def test_a_lack_of_data_is_no_equivalence():
    assert not equivalent([0.0], 1.0).equivalent
    assert equivalent([0.0, 0.0], 1.0).equivalent
    assert not equivalent([2.0, 2.0], 1.0).equivalent
    with pytest.raises(BadSetting, match="must be positive"):
        equivalent([0.0, 0.1], 0.0)


def test_levels_are_ordered_by_size_and_names_as_they_come():
    cells = [Cell({"a": 2, "b": "z", "c": True}, {}), Cell({"a": 1, "b": "y", "c": False}, {})]
    assert axis_levels(cells) == {"a": [1, 2], "b": ["z", "y"], "c": [False, True]}


def test_groups_of_different_clients_are_compared_by_welch():
    random = np.random.default_rng(1)
    a, b = random.normal(1.0, 1.0, 12), random.normal(0.0, 3.0, 30)
    cells = [Cell({"size": 1}, dict(enumerate(a))), Cell({"size": 4}, dict(enumerate(b)))]
    found = unpaired(cells, values, [(1.0, {"size": 1}), (-1.0, {"size": 4})], "one less four")
    told = stats.ttest_ind(a, b, equal_var=False)
    interval = told.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(told.pvalue)
    assert found.clients == 12
    alone = [Cell({"size": 1}, {0: 1.0}), cells[1]]
    assert unpaired(alone, values, [(1.0, {"size": 1}), (-1.0, {"size": 4})]).difference.low == -np.inf
    assert unpaired(cells, values, [(1.0, {"size": 1}), (-1.0, {"size": 9})]) is None


def test_seeds_have_clients_of_their_own_also_where_clients_are_not_paired():
    random = np.random.default_rng(2)
    cells = [
        Cell({"size": size, "seed": seed}, {c: size + 3 * random.normal() for c in range(3)})
        for size in (1, 4)
        for seed in range(4)
    ]
    terms = [(1.0, {"size": 4}), (-1.0, {"size": 1})]
    found = unpaired(cells, values, terms)
    groups = [[one for cell in cells if cell.axes["size"] == size for one in cell.values.values()] for size in (4, 1)]
    assert (found.clients, contrast(cells, values, terms).clients) == (12, 12)
    assert found.p == pytest.approx(stats.ttest_ind(*groups, equal_var=False).pvalue)


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_groups_without_spread_are_no_surer_than_exchanging_their_clients_can_be(noise):
    of = lambda mean, count: {c: mean + noise * (c % 2) for c in range(count)}  # noqa: E731
    cells = [Cell({"size": 1}, of(1.0, 3)), Cell({"size": 4}, of(0.0, 4))]
    two = unpaired(cells, values, [(1.0, {"size": 1}), (-1.0, {"size": 4})])
    assert two.p == pytest.approx(2 / 35)  # of C(7, 3) ways to share the clients out
    assert two.difference.value == pytest.approx(1.0)
    # One group against a margin is what the sign-flip test is for.
    assert unpaired(cells, values, [(1.0, {"size": 1})]).p == pytest.approx(two_sided_p([1.0] * 3))
