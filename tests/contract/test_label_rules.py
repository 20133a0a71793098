"""Every registered label rule keeps the same contract."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from leakmap import Batch, LocalRule, Spec, Task, ThreatModel, Update, build_network, label_rules, simulate
from leakmap.errors import NotApplicable, NotGranted
from leakmap.threat import observe
from tests.conftest import batch_of, observed


@pytest.mark.parametrize("name", [name for name in label_rules.names() if label_rules.of_objects(name)])
def test_a_rule_of_detectors_refuses_classifiers(name, task):
    with pytest.raises(NotApplicable, match="detector"):
        label_rules.build(name)(observed("convnet,width=4", task)[1], 0)


OF_PICTURES = [name for name in label_rules.names() if not label_rules.of_objects(name)]


@pytest.fixture(params=OF_PICTURES)
def name(request) -> str:
    if not reads(request.param, "class", "gradient"):
        pytest.skip("it reads other targets than classes")
    return request.param


@cache
def labelled(target, share):
    """What one client is labelled with, and what the server sees of it."""
    outputs = 1 if target == "binary" else 4
    loss = Spec({"class": "cross_entropy", "regression": "mse"}.get(target, "bce"))
    own = Task((3, 16, 16), outputs, (0.5,) * 3, (0.5,) * 3, target=target, loss=loss)
    y = {
        "class": torch.tensor([2]),
        "binary": torch.tensor([1]),
        "multilabel": torch.tensor([[0, 1, 1, 0]]),
        "regression": torch.tensor([[98.7, -3.0, 0.25, 40.0]]),
    }[target]
    batch = Batch(batch_of(1, own).pictures, y)
    return y, observe(simulate(build_network(own, "convnet,width=8"), LocalRule(share=share), batch), ThreatModel())


@cache
def reads(name, target, share) -> bool:
    """Whether a rule reads this target, rightly; else it says in a sentence that it does not."""
    y, observation = labelled(target, share)
    rule = label_rules.build(name)
    if refuses(rule, observation, NotApplicable, "target"):
        return False
    assert torch.allclose(rule(observation, 0).y, y, rtol=1e-3), name
    return True


@cache
def one_example(mode, share, seed):
    small = Task((3, 8, 8), 4, (0.5, 0.45, 0.4), (0.25, 0.25, 0.3))
    return observed("resnet,blocks=1,width=4", small, rule=LocalRule(share=share, mode=mode), count=1, seed=seed)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("share", ["gradient", "delta"])
def test_one_example_is_read_exactly_on_many_networks(name, mode, share):
    for seed in range(5):
        round, observation = one_example(mode, share, seed)
        found = label_rules.build(name)(observation, seed)
        assert found.y.tolist() == round.batch.y.tolist()
        assert 0 <= found.confidence <= 1
        assert found.rule == name


@pytest.mark.parametrize("rule", [LocalRule(), LocalRule(share="delta", epochs=2, batch_size=4, lr=0.1)], ids=str)
def test_as_many_labels_as_examples_or_one_sentence(name, rule, task):
    _, observation = observed("convnet,width=8", task, rule=rule, threat=ThreatModel(public=8), count=9)
    before = observation.digest()
    build = label_rules.build(name)
    if refuses(build, observation, NotApplicable, "one example"):
        return
    found = build(observation, 0)
    assert found.y.shape == (9,)
    assert found.y.dtype == torch.int64
    assert found.y.tolist() == sorted(found.y.tolist())
    assert found.y.min() >= 0
    assert found.y.max() < task.classes
    assert 0 <= found.confidence <= 1
    assert set(found.used) <= {"rule", "public", "buffers"}
    again = build(observation, 0)
    assert torch.equal(again.y, found.y)
    assert again.confidence == found.confidence
    assert observation.digest() == before


def test_needs_the_number_of_examples(name, task):
    _, observation = observed("convnet,width=8", task, count=1)
    with pytest.raises(NotGranted, match="count"):
        label_rules.build(name)(replace(observation, count=None), 0)


def refuses(rule, observation, kind, word) -> bool:
    """Whether a rule says that it cannot read this, for the reason that ``word`` names."""
    try:
        rule(observation, 0)
    except kind as error:
        assert word in str(error)
        return True
    return False


def exact_or_refused(name, round, observation, kind, word):
    rule = label_rules.build(name)
    assert refuses(rule, observation, kind, word) or rule(observation, 0).y.tolist() == round.batch.y.tolist()


def test_works_without_the_bias_or_says_that_it_needs_one(name, task):
    _, observation = observed("mlp,hidden=16,bias=false", task, count=1)
    rule = label_rules.build(name)
    assert refuses(rule, observation, NotApplicable, "bias") or rule(observation, 0).y.shape == (1,)


def test_a_loss_of_its_own_is_read_where_it_is_cross_entropy_and_refused_where_it_is_not(name, task):
    def seen(loss):
        network = build_network(task, "convnet,width=8", loss=loss)
        return observe(simulate(network, LocalRule(), batch_of(1, task)), ThreatModel())

    own = seen(lambda outputs, y: nn.functional.nll_loss(outputs.log_softmax(1), y))
    assert label_rules.build(name)(own, 0).y.tolist() == [0]
    with pytest.raises(NotApplicable, match="cross entropy"):
        label_rules.build(name)(seen(lambda outputs, y: nn.functional.multi_margin_loss(outputs, y)), 0)


@pytest.mark.parametrize("share", ["gradient", "delta"])
def test_every_rule_reads_some_targets_and_refuses_others_in_a_sentence(share):
    read = {
        (rule, target)
        for rule in OF_PICTURES
        for target in ("class", "binary", "multilabel", "regression")
        if reads(rule, target, share)
    }
    assert {rule for rule, _ in read} == set(OF_PICTURES)
    assert {target for _, target in read} == {"class", "binary", "multilabel", "regression"}


def test_the_head_is_the_layer_that_the_loss_sees_not_the_one_that_is_declared_last(name, task):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(32, 4), nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.Sigmoid())
            self.unused = nn.Linear(32, 4)

        def forward(self, x):
            return self.head(self.body(x))

    observation = observe(simulate(build_network(task, Unused()), LocalRule(), batch_of(1, task, 2)), ThreatModel())
    assert label_rules.build(name)(observation, 0).y.tolist() == [2]
    tensors = {n: t * 0 if n.startswith("head") else t for n, t in observation.update.tensors.items()}
    with pytest.raises(NotApplicable, match="'head', is zero"):
        label_rules.build(name)(replace(observation, update=Update("gradient", tensors)), 0)


def test_takes_the_signs_of_adam_or_refuses_them(name, task):
    rule = LocalRule(share="delta", optimizer="adam", lr=0.001)
    round, observation = observed("convnet,width=8", task, rule=rule, count=1)
    exact_or_refused(name, round, observation, NotApplicable, "adam")


def test_takes_a_delta_of_unknown_scale_or_asks_for_the_rule(name, task):
    rule = LocalRule(share="delta", lr=0.003)
    round, observation = observed("convnet,width=8", task, rule=rule, threat=ThreatModel(rule=False), count=1)
    exact_or_refused(name, round, observation, NotGranted, "rule")


def test_noise_in_the_update_lowers_the_confidence(name, task):
    three = observed("convnet,width=4,depth=2", task, count=3)[1]
    count = 1 if refuses(label_rules.build(name), three, NotApplicable, "one example") else 3
    clean, noisy = [], []
    for seed in range(5):
        _, observation = observed("convnet,width=4,depth=2", replace(task, classes=10), count=count, seed=seed)
        source = torch.Generator().manual_seed(seed)
        update = {n: t + 3 * torch.randn(t.shape, generator=source) for n, t in observation.update.tensors.items()}
        blurred = replace(observation, update=replace(observation.update, tensors=update))
        clean.append(label_rules.build(name)(observation, seed).confidence)
        noisy.append(label_rules.build(name)(blurred, seed).confidence)
    assert sum(noisy) < 0.85 * sum(clean)


def test_the_docstring_names_its_source(name):
    assert "Source:" in (label_rules.constructor(name).__doc__ or "")


def test_the_observation_stays_as_it_was_also_behind_batchnorm_in_training_mode(name, task):
    for rule in (LocalRule(), LocalRule("delta", epochs=2)):
        _, observation = observed("resnet,blocks=1-1,width=8", task, rule=rule, threat=ThreatModel(public=8), count=4)
        before = observation.digest()
        try:
            label_rules.build(name)(observation, 0)
        except NotApplicable:
            continue
        assert observation.digest() == before
