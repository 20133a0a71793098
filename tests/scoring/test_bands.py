"""Line-ups by bands, on reconstructions that hold one band of the truth and nothing else."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from leakmap.client.data import load_pictures
from leakmap.scoring.bands import BANDS, band_ranks
from leakmap.scoring.lineup import rank
from leakmap.scoring.statistics import rank_sum_p
from leakmap.seeds import generator

SIZE, TRUTHS = 20, 40


def grey_band(truth, keep) -> torch.Tensor:
    """Cosine waves of the grey picture for which ``keep`` says so, on a middling grey."""
    waves = dctn(truth.double().mean(0).numpy(), norm="ortho")
    rows, columns = np.indices(waves.shape)
    kept = idctn(np.where(keep(rows, columns), waves, 0), norm="ortho")
    return (0.5 + torch.from_numpy(kept)).float().expand(3, -1, -1)


HELD = {
    "colour": lambda truth: truth.mean((1, 2), keepdim=True).expand_as(truth),
    "layout": lambda truth: grey_band(truth, lambda i, j: (i < 8) & (j < 8) & (i + j > 0)),
    "detail": lambda truth: grey_band(truth, lambda i, j: (i >= 8) | (j >= 8)),
}


@pytest.mark.parametrize("held", HELD)
def test_only_the_band_that_is_held_and_the_whole_are_above_chance(held):
    pool = load_pictures("samples").images / 255
    source, ranks = generator(0, "bands"), {name: [] for name in ("whole", *BANDS)}
    for _ in range(TRUTHS):
        order = torch.randperm(len(pool), generator=source)[:SIZE]
        truth, others = pool[order[0]], pool[order[1:]]
        unrelated = torch.full_like(truth, 0.5)
        found = torch.stack([unrelated, HELD[held](truth)])
        for name, place in {"whole": rank(found, truth, others), **band_ranks(found, truth, others)}.items():
            ranks[name].append([place])
    p = {name: rank_sum_p(of_band, [[SIZE]] * TRUTHS) for name, of_band in ranks.items()}
    assert p[held] < 1e-9
    assert p["whole"] < 0.01  # of colour it knows only what channels differ in
    assert all(p[name] > 0.05 for name in {*HELD} - {held}), p


def test_a_grey_picture_without_anything_is_at_chance_in_every_band_but_brightness():
    line_up = torch.rand(10, 1, 16, 24, generator=generator(0, "grey"))
    line_up[0] = line_up[0] * 0.5
    found = band_ranks(line_up[:1].mean((2, 3), keepdim=True).expand(-1, -1, 16, 24), line_up[0], line_up[1:])
    assert found == {"colour": 1, "layout": 5.5, "detail": 5.5}


def test_a_band_that_is_empty_but_for_rounding_ties_with_everything():
    line_up = torch.rand(10, 3, 32, 32, generator=generator(0, "empty"))
    found = band_ranks(HELD["detail"](line_up[0])[None], line_up[0], line_up[1:])
    assert (found["layout"], found["detail"]) == (5.5, 1)
    found = band_ranks(HELD["layout"](line_up[0])[None], line_up[0], line_up[1:])
    assert (found["layout"], found["detail"]) == (1, 5.5)
