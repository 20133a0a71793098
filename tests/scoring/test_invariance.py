"""Line-ups that see through poses: a mirrored, turned, shifted or inverted copy is found, and nothing else is."""

import functools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from leakmap.client.data import load_pictures
from leakmap.scoring.invariance import LONGEST, invariant_ncc
from leakmap.scoring.lineup import cross_correlation, rank
from leakmap.scoring.statistics import rank_sum_p
from leakmap.seeds import generator

NOISE = 0.3
"""On copies, in standard deviations of the picture itself: an NCC of .96. Noise of .5 loses faint tiles to a border."""


def shifted(x, down, right, mode):
    padded = F.pad(x, (8, 8, 8, 8), mode=mode)
    return padded[..., 8 - down : padded.shape[-2] - 8 - down, 8 - right : padded.shape[-1] - 8 - right]


POSES = {
    "inverted": lambda x: 1 - x,
    "mirrored": lambda x: x.flip(-1),
    "turned by 90": lambda x: x.rot90(1, (-2, -1)),
    "turned by 180": lambda x: x.rot90(2, (-2, -1)),
    "shifted, edges repeated": lambda x: shifted(x, 8, -8, "replicate"),
    "shifted, black border": lambda x: shifted(x, 0, 8, "constant"),
}


@functools.cache
def candidates(source) -> torch.Tensor:
    pool = load_pictures(source).images / 255
    return pool[torch.randperm(len(pool), generator=generator(0, "poses"))[:100]]


def found(pose, line_up) -> int:
    copies = POSES[pose](line_up[:20])
    contrast = line_up[:20].flatten(1).std(1)[:, None, None, None]
    copies = copies + NOISE * contrast * torch.randn(copies.shape, generator=generator(0, pose))
    likeness = invariant_ncc(copies, line_up)
    assert 0 <= likeness.min() <= likeness.max() <= 1
    return int((likeness.argmax(1) == torch.arange(20)).sum())


def test_a_copy_in_another_pose_is_first_among_a_hundred_of_cifar10(shared):
    line_up = candidates(f"npz:{shared / 'cifar10' / 'cifar10_subset.npz'}")
    assert min(found(pose, line_up) for pose in POSES) >= 19


def test_every_value_is_the_best_ncc_of_an_overlap():
    """Of pictures that are not square: 4 poses. Each shift is cut out and correlated by the plain rule."""
    a, b = torch.rand(2, 2, 3, 8, 12, generator=generator(0, "overlaps"))
    best = torch.zeros(2, 2).double()
    for pose in (a, a.flip(-1), a.flip(-2), a.flip(-1, -2)):
        for down in range(-2, 3):
            for right in range(-3, 4):
                of_a = pose[..., max(0, -down) : 8 - max(0, down), max(0, -right) : 12 - max(0, right)]
                of_b = b[..., max(0, down) : 8 - max(0, -down), max(0, right) : 12 - max(0, -right)]
                best = torch.maximum(best, cross_correlation(of_a, of_b).abs())
    assert invariant_ncc(a, b).numpy() == pytest.approx(best.numpy(), abs=1e-8)


def test_large_pictures_keep_their_plain_value_and_are_found_turned():
    line_up = torch.rand(5, 3, 2 * LONGEST, 2 * LONGEST, generator=generator(0, "large"))
    assert (invariant_ncc(line_up, line_up) >= cross_correlation(line_up, line_up).abs() - 1e-9).all()
    assert invariant_ncc(line_up.rot90(1, (-2, -1)), line_up).argmax(1).tolist() == [0, 1, 2, 3, 4]
    fine = torch.ones(1, 1, 96, 96)
    fine[..., ::2] = 0  # averages to a constant
    assert invariant_ncc(fine, fine) == 1


def test_a_constant_picture_ties_with_everything():
    line_up = torch.rand(11, 3, 16, 16, generator=generator(0, "ties"))
    assert rank(torch.full((1, 3, 16, 16), 0.3), line_up[0], line_up[1:], invariant_ncc) == 6
    assert rank(line_up[:1], line_up[1], line_up[[1, 1, 2]], invariant_ncc) in (2, 3)


def test_noise_and_the_mean_of_a_class_rank_every_candidate_alike():
    pool = candidates("samples")
    source, size, draws = generator(0, "null"), 20, 40
    average = (pool.sum(0) - pool).div(len(pool) - 1)
    ranks = {"noise": [], "mean": []}
    for _ in range(draws):
        order = torch.randperm(len(pool), generator=source)[:size]
        answers = {"noise": torch.rand(3, 32, 32, generator=source), "mean": average[order[0]]}
        for name, answer in answers.items():
            ranks[name].append([rank(answer[None], pool[order[0]], pool[order[1:]], invariant_ncc)])
    for name, of_answer in ranks.items():
        assert rank_sum_p(of_answer, [[size]] * draws) > 0.05, name
        assert np.mean([of_one == [1] for of_one in of_answer]) < 0.2, name
