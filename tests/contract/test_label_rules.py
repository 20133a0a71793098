"""Every registered label rule keeps the same contract."""

from dataclasses import replace

import pytest
import torch

from leakmap import LocalRule, ThreatModel, label_rules
from leakmap.errors import NotGranted
from tests.conftest import observed


@pytest.fixture(params=label_rules.names())
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("share", ["gradient", "delta"])
def test_one_example_is_read_exactly_on_many_networks(name, mode, share, task):
    for seed in range(10):
        rule = LocalRule(share=share, mode=mode)
        round, observation = observed("resnet,blocks=1-1,width=8", task, rule=rule, count=1, seed=seed)
        found = label_rules.build(name)(observation, seed)
        assert found.y.tolist() == round.batch.y.tolist()
        assert 0 <= found.confidence <= 1


def test_needs_the_number_of_examples(name, task):
    _, observation = observed("convnet,width=8", task, count=1)
    with pytest.raises((NotGranted, Exception), match="count|one example"):
        label_rules.build(name)(replace(observation, count=None), 0)


def test_counts_are_exact_with_repeated_classes_when_the_mean_prediction_is_true(task):
    """n = B (p - db) is an identity: with the client's own mean prediction as stand-in it cannot be wrong."""
    import leakmap.attacker.labels.counts as module

    for seed in range(5):
        round, observation = observed("convnet,width=8", task, count=16, seed=seed)
        own = round.network.module()(task.normalise(round.batch.pictures)).softmax(1).mean(0).detach()
        head = module.head_gradient(observation)
        counts = module.largest_remainder((16 * (own - head.bias)).clamp(min=0), 16)
        assert torch.equal(counts, torch.bincount(round.batch.y, minlength=task.classes))


def test_granted_labels_and_counts_win_over_any_rule(task):
    from leakmap.attacker.labels import recover

    round, known = observed("convnet,width=8", task, threat=ThreatModel("known"), count=3)
    assert torch.equal(recover(known, "auto", 0).y, round.batch.y)
    _, counted = observed("convnet,width=8", task, threat=ThreatModel("counts"), count=3)
    assert torch.equal(recover(counted, "auto", 0).y, round.batch.y.sort().values)


def test_the_docstring_names_its_source(name):
    assert "Source:" in (label_rules.constructor(name).__doc__ or "")
