"""Every registered metric: identity is best, and a batch in a 3-cycle order scores as in order."""

import inspect

import pytest
import torch

from leakmap import Batch, Reconstruction, metrics, score
from tests.conftest import pictures


def needs_settings(name: str) -> bool:
    return any(p.default is inspect.Parameter.empty for p in metrics.settings(name).values())


@pytest.fixture(params=[name for name in metrics.names() if not needs_settings(name)])
def name(request) -> str:
    return request.param


def test_identity_is_best_and_noise_lowers_it(name, task):
    metric, truth = metrics.build(name), pictures(3, task)
    noisy = (truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    own, other = metric(truth, truth), metric(noisy, truth)
    assert own.shape == (3,)
    assert (own > other).all()


@pytest.mark.parametrize("order", [[1, 2, 0], [2, 0, 1], [1, 0, 2]])
def test_a_perfect_batch_scores_perfectly_in_any_order(name, order, task):
    truth, y = pictures(3, task), torch.tensor([0, 1, 1])
    answer = Reconstruction(truth[order], y, 0.0)
    distractors = [pictures(5, task, seed=7)] * 3
    found = score(answer, Batch(truth, y), distractors, (name,))
    assert found.values[name] == tuple(metrics.build(name)(truth, truth).tolist())
    assert found.ranks == (1, 1, 1)
    assert torch.equal(found.pictures, truth)


def test_a_single_channel_works(name, task):
    grey = pictures(2, task)[:, :1]
    assert metrics.build(name)(grey, grey).shape == (2,)


def test_the_docstring_names_its_source(name):
    assert "Source:" in (metrics.constructor(name).__doc__ or "")
