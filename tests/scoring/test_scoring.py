"""Line-up, statistics and verdict, on cases whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from leakmap import Batch, Reconstruction, metrics, score
from leakmap.scoring.lineup import MIXED, cross_correlation, ncc, pick_distractors, rank
from leakmap.scoring.match import matched
from leakmap.scoring.statistics import mean_interval, paired_p, rank_one_p, rank_sum_p, share_of_cases, spread
from leakmap.scoring.verdict import LEVELS, Client, Evidence, judge, line_up
from tests.conftest import pictures

G = 100


def client(rank: float, psnr: float = 10.0, ssim: float = 0.1, floor: float = 12.0) -> Client:
    floors = {"psnr": {"prior_only": (floor,), "swapped": (9.0,)}, "ssim": {"prior_only": (0.2,), "swapped": (0.1,)}}
    return Client((rank,), (G,), {"psnr": (psnr,), "ssim": (ssim,)}, floors)


def clients(ranks, **scores):
    return [client(r, **scores) for r in ranks]


def posed(group, rank):
    """The same in a line-up of any pose in which every picture has this rank."""
    return [replace(one, pose_ranks=(float(rank),)) for one in group]


LEAKY_CONTROL = clients([1] * 6)
NULL = clients([50, 30, 80, 12, 95, 60, 44, 71])
LOW = clients([5, 9, 3, 20, 7, 11, 2, 30])
LOWISH, LOW_AS_WELL = clients([20, 5, 30, 35, 40, 10, 35, 50]), clients([30, 45, 20, 10, 60, 15, 40, 42])
ONE_OF_12 = [*clients([60, 30, 80, 12, 95, 60, 44, 71, 20, 55, 37]), client(1, psnr=60.0, ssim=1.0)]
SEEN = [*ONE_OF_12[:11], client(1, psnr=20.0, ssim=0.8)]
SAME_CAMERA = clients([1] * 5 + [4] * 7)
HARDLY_SEEN = [client(rank, ssim=0.15) for rank in (60, 30, 80, 12, 95, 60, 44, 71, 20, 55, 37)]
HARDLY_SEEN.append(client(1, psnr=10.0, ssim=0.8))
NULL12 = clients([50, 30, 80, 12, 95, 60, 44, 71, 20, 66, 38, 89])


def test_psnr_is_the_mean_over_pictures_on_0_to_1_and_never_a_sum():
    truth = torch.zeros(2, 3, 16, 16)
    off = torch.stack([torch.full((3, 16, 16), 0.1), torch.full((3, 16, 16), 0.01)])
    assert metrics.build("psnr")(off, truth).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)
    assert metrics.build("psnr")(truth, truth).tolist() == [60.0, 60.0]


def test_ssim_of_a_perfect_batch_of_four_is_one_and_of_noise_near_its_floor(task):
    truth = pictures(4, task)
    assert metrics.build("ssim")(truth, truth).tolist() == pytest.approx([1.0] * 4)
    noise = torch.rand(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert abs(float(metrics.build("ssim")(noise, noise.flip(0)).mean())) < 0.05


def test_lpips_reads_its_trunk_from_a_file_and_never_from_the_network(shared, task):
    pytest.importorskip("lpips", reason="the extra 'lpips' is not installed")
    weights = shared / "weights" / "squeezenet1_1_imagenet_caffe_fp16.pth"
    metric, truth = metrics.build(f"lpips,net=squeeze,weights={weights}"), pictures(2, task)
    assert metric(truth, truth).abs().max() < 1e-6
    assert (metric(truth.flip(0), truth) < -0.01).all()


def test_matching_is_one_to_one_and_uses_the_right_direction(task):
    truth = pictures(3, task)
    for order in ([1, 2, 0], [2, 0, 1]):
        assert torch.equal(matched(truth[order], truth), truth)
    doubled = truth[[0, 0, 0]]
    assert torch.equal(matched(doubled, truth), doubled)


def test_one_good_reconstruction_is_not_counted_for_every_original(task):
    truth = pictures(4, task)
    answer = Reconstruction(torch.stack([truth[0], *pictures(3, task, seed=5)]), torch.zeros(4).long(), 0.0)
    found = score(answer, Batch(truth, torch.zeros(4).long()), [pictures(9, task, seed=8)] * 4)
    assert sum(value == 60 for value in found.values["psnr"]) == 1


def test_rank_ties_count_half_and_a_constant_answer_is_at_chance(task):
    truth, others = pictures(1, task)[0], pictures(9, task, seed=3)
    assert rank(truth[None], truth, others) == 1
    assert rank(torch.full((1, 3, 16, 16), 0.5), truth, others) == 1 + 9 / 2


def test_cross_correlation_ignores_brightness_and_contrast(task):
    truth = pictures(2, task)
    assert torch.allclose(cross_correlation(truth * 0.5 + 0.2, truth).diag(), torch.ones(2).double(), atol=1e-6)
    assert ncc(truth * 0.5 + 0.2, truth) == pytest.approx(1)


@pytest.mark.parametrize("size", [1, 4])
def test_the_line_up_is_at_chance_without_leakage_for_every_batch_size(size, task):
    """Truth and distractors are exchangeable: also when several reconstructions compete."""
    ranks = []
    for seed in range(300):
        pool = torch.rand(20 + size, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        ranks.append(rank(pool[20:], pool[0], pool[1:20]))
    assert abs(np.mean(ranks) - 10.5) < 4 * 5.77 / np.sqrt(300)
    assert abs(np.mean([r == 1 for r in ranks]) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 300)


def test_distractors_are_of_the_same_class_and_mixed_only_where_it_has_hardly_any():
    labels = torch.tensor([0] * 60 + [1] * 10 + [2] * 3)
    pool = torch.arange(73)
    assert set(labels[pick_distractors(labels, 0, pool, 99, 0)].tolist()) == {0}
    assert len(pick_distractors(labels, 0, pool, 30, 0)) == 30
    assert labels[pick_distractors(labels, 1, pool, 99, 0)].tolist() == [1] * 10
    assert len(pick_distractors(labels, 2, pool, 99, 0)) == MIXED


def test_line_ups_of_a_class_share_no_distractor_while_there_are_enough():
    labels, pool = torch.zeros(60, dtype=torch.int64), torch.arange(60)
    turns = [set(pick_distractors(labels, 0, pool, 20, 0, turn=t).tolist()) for t in range(3)]
    assert not turns[0] & turns[1]
    assert turns[0] | turns[1] | turns[2] == set(range(60))


def test_the_exact_binomial_interval_is_the_textbook_one():
    found = share_of_cases(2, 8, 8)
    assert (found.low, found.high) == pytest.approx((0.0319, 0.6509), abs=1e-4)
    assert share_of_cases(0, 12, 12).low == 0
    assert share_of_cases(12, 12, 12).high == 1


def test_pictures_of_one_client_do_not_count_as_independent():
    assert share_of_cases(8, 16, 4).low < share_of_cases(8, 16, 16).low
    assert rank_sum_p([(1, 1, 1, 1)], [(20, 20, 20, 20)]) == pytest.approx(1 / 20)
    assert rank_sum_p([(1, 1)], [(10, 100)]) == pytest.approx(1 / 100)
    assert rank_sum_p([(1, 10)], [(10, 100)]) == pytest.approx(1 / 10)


def test_the_rank_sum_test_is_exact_and_takes_line_ups_of_several_sizes():
    ten = [(10,), (10,)]
    assert rank_sum_p([[1], [1]], ten) == pytest.approx(1 / 100)
    assert rank_sum_p([[1], [2]], ten) == pytest.approx(3 / 100)
    assert rank_sum_p([[10], [10]], ten) == pytest.approx(1)
    assert rank_sum_p([[1], [1]], [(10,), (20,)]) == pytest.approx(1 / 200)
    many = rank_sum_p([[45]] * 250, [(100,)] * 250)
    assert many == pytest.approx(rank_sum_p([[45]] * 199, [(100,)] * 199), abs=0.02)


def test_no_p_value_is_smaller_than_its_rate_on_null_ranks():
    rng = np.random.default_rng(1)
    for sizes in ([100] * 12, [20] * 5, [7, 50, 23, 100, 11]):
        draws = [[[int(rng.integers(1, g + 1))] for g in sizes] for _ in range(300)]
        rate = np.mean([rank_sum_p(ranks, [(g,) for g in sizes]) < 0.05 for ranks in draws])
        assert rate < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize("sizes", [[(10, 100)], [(3, 50, 20), (100, 7), (12, 12)], [(5, 90)] * 7])
def test_line_ups_of_several_sizes_of_few_clients_err_as_rarely_however_alike_the_pictures_are(sizes):
    rng = np.random.default_rng(4)
    for alike in (True, False):
        draws = [[(rng.random(1) if alike else rng.random(len(own))) for own in sizes] for _ in range(800)]
        ranks = [[1 + np.floor(at * own) for at, own in zip(draw, sizes, strict=True)] for draw in draws]
        ps = np.array([rank_sum_p([own.tolist() for own in each], sizes) for each in ranks])
        for alpha in (0.02, 0.1):
            assert np.mean(ps <= alpha) < alpha + 3 * np.sqrt(alpha / 800)


@pytest.mark.parametrize(("clients", "pictures"), [(9, 4), (12, 8), (30, 16)])
def test_how_alike_a_clients_pictures_are_changes_power_and_not_the_rate_of_false_alarms(clients, pictures):
    rng = np.random.default_rng(3)
    others, draws, alpha = 60, 1500, 0.02
    galleries, wider = [[others + 1] * pictures] * clients, spread([[range(others)] * pictures] * clients)
    allowed = alpha + 3 * np.sqrt(alpha / draws)

    def rates(alike, shift=0.0):
        """Of alarms by the sum of ranks and by first ranks: one constant reconstruction, the same distractors."""
        own = np.sqrt(alike) * rng.standard_normal((draws, clients, 1))
        truths = own + np.sqrt(1 - alike) * rng.standard_normal((draws, clients, pictures)) + shift
        pools = np.sort(rng.standard_normal((draws, others)), axis=1)
        ranks = np.array([1 + others - np.searchsorted(p, truth) for p, truth in zip(pools, truths, strict=True)])
        by_sum = np.mean([rank_sum_p(each.tolist(), galleries, wider) < alpha for each in ranks])
        first = (ranks == 1).sum(2)
        return by_sum, np.mean([rank_one_p(hits.tolist(), galleries, wider) < alpha for hits in first])

    assert all(max(rates(alike)) < allowed for alike in (0.0, 0.3, 1.0))
    independent, dependent = rates(0.0, 0.4), rates(1.0, 0.4)
    assert independent[0] > 1.5 * dependent[0]


def test_line_ups_that_share_distractors_cause_no_more_false_alarms_where_all_reconstructions_are_the_same():
    rng = np.random.default_rng(2)
    assert spread([[range(100 * i, 100 * i + 7 * i + 4)] for i in range(13)]) == 1
    for clients, others, alpha in ((12, 12, 0.02), (40, 60, 0.01)):
        galleries, wider = [[others + 1]] * clients, spread([[range(others)]] * clients)
        assert wider == pytest.approx(1 + (clients - 1) / (others + 2))
        # The same reconstruction for all: how alike a picture is to it is one number, whoever asks.
        truths, pools = rng.random((2000, clients, 1)), rng.random((2000, 1, others))
        drawn = 1 + (pools > truths).sum(2)
        false = alpha + 3 * np.sqrt(alpha / 2000)
        rates = [np.mean([rank_sum_p(r[:, None], galleries, s) < alpha for r in drawn]) for s in (1.0, wider)]
        assert rates[0] > false > rates[1] > alpha / 2
        firsts = (drawn == 1).sum(1)
        for hits in (1, 3):  # beta-binomial is exact here
            p = rank_one_p([1] * hits + [0] * (clients - hits), galleries, wider)
            assert np.mean(firsts >= hits) == pytest.approx(p, abs=4 * np.sqrt(p / 2000))


def test_the_sign_flip_test_cannot_be_small_with_few_clients():
    assert paired_p([1.0] * 4) == pytest.approx(1 / 16)
    assert paired_p([1.0] * 10) == pytest.approx(1 / 1024)
    assert paired_p([-1.0] * 10) == pytest.approx(1)
    assert paired_p([]) == paired_p([0.0, 0.0]) == 1


def test_one_client_gives_no_interval():
    assert mean_interval([3.0]).low == -np.inf


def test_null_audits_reach_statistical_in_at_most_five_percent():
    rng, alarms, runs = np.random.default_rng(0), 0, 150
    for _ in range(runs):
        evidence = Evidence(clients(rng.integers(1, G + 1, 12)), clients(rng.integers(1, G + 1, 12)), LEAKY_CONTROL)
        alarms += LEVELS.index(judge(evidence).level) >= LEVELS.index("statistical")
    assert alarms / runs <= 0.05


VERDICTS = {
    "nothing": (Evidence(NULL, NULL, LEAKY_CONTROL), "none_found"),
    "nothing, and the control was not found": (Evidence(NULL, NULL, NULL[:6]), "inconclusive"),
    "nothing, and no control": (Evidence(NULL, NULL, []), "inconclusive"),
    "nothing, on a degenerate update": (
        Evidence(NULL, NULL, LEAKY_CONTROL, blocking={"degenerate_update": "x"}),
        "inconclusive",
    ),
    "ranks low on a degenerate update": (
        Evidence(LOW, NULL, LEAKY_CONTROL, blocking={"flag": "x"}),
        "inconclusive",
    ),
    "no run finished": (Evidence([], [], LEAKY_CONTROL), "inconclusive"),
    "one visible picture of ten": (
        Evidence(clients([1, *[60] * 9], ssim=0.6), clients([50] * 10), LEAKY_CONTROL),
        "visual",
    ),
    "a fact about the clients is wrong": (
        Evidence(clients([1] * 8, psnr=60.0), NULL, LEAKY_CONTROL, void={"does_not_replay": "x"}),
        "inconclusive",
    ),
    "reconstructions fit other clients as well": (
        Evidence(clients([1] * 12, ssim=0.7), NULL12, LEAKY_CONTROL, deranged=clients([1] * 12)),
        "inconclusive",
    ),
    "an exact recovery although controls leak": (
        Evidence(clients([1] * 8, psnr=60.0), clients([1] * 8), LEAKY_CONTROL, deranged=clients([1] * 8)),
        "exact",
    ),
    "one client of twelve": (Evidence(ONE_OF_12, NULL12, LEAKY_CONTROL), "exact"),
    "one client of twelve, while runs failed": (
        Evidence(ONE_OF_12, NULL12, LEAKY_CONTROL, blocking={"failed_runs": "x"}),
        "exact",
    ),
    "one client of twelve is visible": (Evidence(SEEN, NULL12, LEAKY_CONTROL), "visual"),
    "one client of twelve is visible, of another camera": (
        Evidence(SEEN, NULL12, LEAKY_CONTROL, SAME_CAMERA),
        "inconclusive",
    ),
    "one client of twelve is visible, of another camera, and all are found in another pose": (
        Evidence(posed(SEEN, 1), posed(NULL12, 50), LEAKY_CONTROL, posed(SAME_CAMERA, 50)),
        "partial",
    ),
    "one client of twelve is visible, of another camera, and the others are not found in another pose": (
        Evidence(HARDLY_SEEN, posed(NULL12, 50), LEAKY_CONTROL, posed(SAME_CAMERA, 50)),
        "inconclusive",
    ),
    "one client of twelve is visible, of another camera, behind a broken defence": (
        Evidence(SEEN, NULL12, LEAKY_CONTROL, SAME_CAMERA, broken=("Above.",)),
        "statistical",
    ),
    "ranks a little low": (Evidence(LOWISH, LOW_AS_WELL, LEAKY_CONTROL), "statistical"),
    "ranks a little low in mixed line-ups": (Evidence(LOWISH, LOW_AS_WELL, LEAKY_CONTROL, mixed=True), "none_found"),
    "ranks low in mixed line-ups, better than swapped": (Evidence(LOW, NULL, LEAKY_CONTROL, mixed=True), "statistical"),
    "inverted and mirrored pictures": (
        Evidence([replace(c, pose_ranks=(1.0,)) for c in clients([50] * 8)], NULL, LEAKY_CONTROL),
        "partial",
    ),
    "the class alone is recognised": (
        Evidence(clients([1] * 6 + [20] * 6), clients([1] * 5 + [20] * 7), LEAKY_CONTROL),
        "inconclusive",
    ),
    "a leak on top of a recognised class": (
        Evidence(clients([1] * 12), clients([15] * 12), LEAKY_CONTROL),
        "partial",
    ),
    "ranks low, none first": (Evidence(LOW, NULL, LEAKY_CONTROL), "statistical"),
    "two first of eight": (Evidence(clients([1, 1, 60, 70, 40, 90, 30, 55]), NULL, LEAKY_CONTROL), "partial"),
    "leak without a leaking control": (Evidence(clients([1] * 8), NULL, NULL[:6]), "partial"),
    "visible": (Evidence(clients([1] * 8, ssim=0.7), NULL, LEAKY_CONTROL), "visual"),
    "a smooth picture, floor as good": (
        Evidence(clients([40] * 8, ssim=0.7), NULL, LEAKY_CONTROL),
        "statistical",
    ),
    "exact": (Evidence(clients([1] * 8, psnr=35.0), NULL, LEAKY_CONTROL), "exact"),
    "exact, floor as well": (
        Evidence(clients([1] * 8, psnr=35.0, floor=36.0), NULL, LEAKY_CONTROL),
        "partial",
    ),
    "the swapped update ranks as well": (Evidence(clients([1] * 8), clients([1] * 8), LEAKY_CONTROL), "inconclusive"),
}


@pytest.mark.parametrize("case", list(VERDICTS))
def test_verdicts(case):
    evidence, level = VERDICTS[case]
    verdict = judge(evidence)
    assert verdict.level == level
    assert verdict.reasons
    assert not any(word in " ".join(verdict.reasons).lower() for word in ("safe", "anonymous", "private"))


def test_line_up_sums_up():
    found = line_up(clients([1, 1, 3, 50]))
    assert (found.hits, found.n, found.median_rank, found.chance) == (2, 4, 2.0, 0.01)
    assert found.above_chance


def test_a_broken_defence_is_a_finding_whatever_the_attack_shows_and_void_evidence_is_none():
    weak = Evidence(NULL, NULL, LEAKY_CONTROL, NULL, broken=("Above.",))
    for evidence in (weak, replace(weak, swapped=LOW), replace(weak, control=()), replace(weak, blocking={"a": "A."})):
        found = judge(evidence)
        assert (found.level, found.rule, found.reasons[0]) == ("statistical", "ceiling", "Above.")
    assert judge(replace(weak, clients=ONE_OF_12, swapped=NULL12, deranged=NULL12)).level == "exact"
    assert judge(replace(weak, void={"v": "V."})).level == "inconclusive"
