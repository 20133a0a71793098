"""What other clients' reconstructions reach, which an exposed picture must exceed."""

import pytest
import torch

from leakmap import Batch
from leakmap.auditing.bars import bars_of, held
from leakmap.scoring.regions import cut
from leakmap.scoring.verdict import Client


def noise(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


BETWEEN = torch.tensor([24, 0, 40, 64])


def fared(floors=None):
    return Client((1.0,), (20,), {"psnr": (20.0,), "ssim": (0.9,)}, {"psnr": {}, "ssim": floors or {}})


def letterboxed(seed):
    pictures = torch.full((1, 3, 64, 64), 0.5)
    pictures[..., 24:40, :] = noise(1, 3, 16, 64, seed=seed)
    return pictures


def test_the_bars_of_a_letterbox_make_no_pictures_alike():
    pictures = [letterboxed(seed) for seed in range(3)]
    truths = [Batch(one, torch.zeros(1, dtype=torch.int64), BETWEEN[None]) for one in pictures]
    line_up = [noise(19, 3, 16, 64, seed=9)]
    rows = [{"reconstruction": one, "mean picture": torch.zeros_like(one)} for one in pictures]
    found = bars_of([held(fared(), truth, line_up) for truth in truths], rows)
    assert all(bars["ssim"][0] < 0.3 for bars in found)
    whole = [Batch(one, torch.zeros(1, dtype=torch.int64)) for one in pictures]
    line_up = [torch.cat([letterboxed(seed) for seed in range(9, 28)])]
    assert all(bars["ssim"][0] > 0.5 for bars in bars_of([held(fared(), one, line_up) for one in whole], rows))


def test_a_floor_that_is_an_exchange_does_not_void_it():
    """Two clients whose reconstructions show each other's picture as well: exchanged, both would be visible."""
    picture = noise(1, 3, 16, 16, seed=0)
    truth = Batch(picture, torch.zeros(1, dtype=torch.int64))
    others = fared({"other_client": (0.8,), "swapped": (0.8,)})
    own = held(others, truth, [noise(19, 3, 16, 16, seed=1)])
    row = {"reconstruction": picture, "mean picture": torch.zeros_like(picture)}
    assert [bars["ssim"] for bars in bars_of([own, own], [row, row])] == [(torch.inf,), (torch.inf,)]


@pytest.mark.parametrize("area", [None, BETWEEN])
def test_what_is_held_is_cut_as_it_is_scored(area):
    picture = letterboxed(0)
    own = held(fared(), Batch(picture, torch.zeros(1, dtype=torch.int64), None if area is None else area[None]), [])
    assert torch.equal(own.truths[0], cut(picture[0], area))
