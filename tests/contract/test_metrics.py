"""Every registered metric: identity is best, and a batch in a 3-cycle order scores as in order."""

import pytest
import torch

from leakmap import Batch, Reconstruction, Spec, metrics, score
from tests.conftest import pictures
from tests.contract.examples import examples, installed, specification


@pytest.fixture(params=examples(metrics))
def spec(request, tmp_path) -> str:
    return specification(request.param[1], tmp_path)


def built(spec):
    with installed():
        return metrics.build(spec)


def test_identity_is_best_and_noise_lowers_it(spec, task):
    metric, truth = built(spec), pictures(3, task)
    noisy = (truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    own, other = metric(truth, truth), metric(noisy, truth)
    assert own.shape == (3,)
    assert (own > other).all()


@pytest.mark.parametrize("order", [[1, 2, 0], [2, 0, 1], [1, 0, 2]])
def test_a_perfect_batch_scores_perfectly_in_any_order(spec, order, task):
    metric, name = built(spec), Spec.parse(spec).name
    truth, y = pictures(3, task), torch.tensor([0, 1, 1])
    answer = Reconstruction(truth[order], y, 0.0)
    distractors = [pictures(5, task, seed=7)] * 3
    found = score(answer, Batch(truth, y), distractors, (spec,))
    assert found.values[name] == tuple(metric(truth, truth).tolist())
    assert found.ranks == (1, 1, 1)
    assert torch.equal(found.pictures, truth)


def test_a_single_channel_works(spec, task):
    grey = pictures(2, task)[:, :1]
    assert built(spec)(grey, grey).shape == (2,)


@pytest.mark.parametrize("name", metrics.names())
def test_the_docstring_names_its_source(name):
    assert "Source:" in (metrics.constructor(name).__doc__ or "")
