"""Label recovery: exactness, repeated labels, several local steps, soft labels, and which rule is chosen."""

import statistics
from dataclasses import replace

import pytest
import torch

from leakmap import Batch, LocalRule, Spec, Task, ThreatModel, build_network, label_rules, observe, simulate
from leakmap.attacker.labels import fitting_rules, recover
from leakmap.attacker.labels.counting import counts_from_mean_label, greedy, largest_remainder, listed, solve_counts
from leakmap.attacker.labels.head import head_gradient
from leakmap.errors import NotApplicable, NotGranted
from leakmap.observation.contents import Public
from leakmap.seeds import generator
from tests.conftest import observed, pictures

TINY = "convnet,width=4,depth=2"


def skewed(count: int, task: Task, seed: int) -> torch.Tensor:
    """Labels of which one class has about half."""
    source = generator(seed, "skewed")
    y = torch.randint(task.classes, (count,), generator=source)
    y[torch.rand(count, generator=source) < 0.4] = seed % task.classes
    return y


def seen(model: str, task: Task, y: torch.Tensor, rule: LocalRule, seed: int, public: int = 0):
    network = build_network(task, model, seed=seed)
    round = simulate(network, rule, Batch(pictures(len(y), task, seed), y), seed)
    proxies = Public(pictures(32, task, 99), torch.arange(32) % task.classes)
    return observe(round, ThreatModel(public=public), proxies)


def overlap(found: torch.Tensor, y: torch.Tensor, task: Task) -> float:
    """Multiset overlap."""
    a, b = (torch.bincount(labels, minlength=task.classes) for labels in (found, y))
    return 1 - 0.5 * float((a - b).abs().sum()) / len(y)


def test_the_label_of_one_example_is_always_right(task):
    small = replace(task, shape=(3, 4, 4))
    for seed in range(100):
        network = build_network(small, "convnet,width=2,depth=1,norm=batch", seed=seed)
        batch = Batch(pictures(1, small, seed), torch.tensor([seed % task.classes]))
        for mode in ("train", "eval"):
            found = recover(observe(simulate(network, LocalRule(mode=mode), batch), ThreatModel()), "auto", seed)
            assert found.y.tolist() == batch.y.tolist()
            assert found.rule == "idlg"
            assert found.confidence == pytest.approx(1)


def test_counts_are_exact_with_repeated_classes_when_the_mean_prediction_is_true(task):
    """n = B (p - db) is an identity: with the client's own mean prediction as stand-in it cannot be wrong."""
    for smoothing in (0.0, 0.1):
        smooth = replace(task, loss=Spec("cross_entropy", {"label_smoothing": smoothing}))
        for seed in range(5):
            y = skewed(16, task, seed)
            observation = seen(TINY, smooth, y, LocalRule(), seed)
            x = smooth.normalize(pictures(16, task, seed))
            own = observation.network.module()(x).softmax(1).mean(0).double()
            bias = head_gradient(observation).bias
            real = counts_from_mean_label(own - bias, observation)
            assert torch.allclose(real, torch.bincount(y, minlength=task.classes).double(), atol=1e-4)
            confusion = own.expand(task.classes, -1)
            assert torch.allclose(solve_counts(confusion, bias, observation), real, atol=1e-3)


@pytest.mark.parametrize("rule", ["llg", "bias_corrected"])
def test_greedy_rules_return_one_class_several_times(rule, task):
    """A batch "iDLG" that takes the B most negative classes can never return one class twice."""
    y = torch.tensor([0, 2, 2, 2])
    found = label_rules.build(rule)(seen(TINY, replace(task, classes=10), y, LocalRule(), 0), 0)
    assert found.y.tolist() == y.tolist()


def test_the_greedy_second_stage_takes_the_impact_off_the_class_that_it_gave_out():
    """With the impact taken off another class, the most negative one would get every remaining label."""
    signal = torch.tensor([-0.5, -0.3, 0.1, 0.2])
    assert greedy(signal, -0.1, 0.0, 8).tolist() == [5, 3, 0, 0]
    assert greedy(signal, -0.1, torch.tensor([0.0, 0.0, 0.1, 0.2]), 8).tolist() == [5, 3, 0, 0]
    assert greedy(signal, -0.1, 0.0, 1).tolist() == [1, 0, 0, 0]


def test_sets_are_filled_up_with_lower_confidence(task):
    y = torch.tensor([1, 1, 1, 3])
    for rule in ("analytic", "yin"):
        found = label_rules.build(rule)(seen(TINY, task, y, LocalRule(), 0), 0)
        assert set(found.y.tolist()) == {1, 3}
        assert found.confidence == 0.5


@pytest.mark.parametrize("model", [TINY, "mlp,hidden=32", "resnet,blocks=1,width=8"])
def test_ilrg_is_exact_on_untrained_networks_with_few_examples(model, task):
    wide = replace(task, classes=10)
    for seed in range(5):
        y = torch.randperm(10, generator=generator(seed, "y"))[:2].repeat_interleave(torch.tensor([1, 3])).sort().values
        found = label_rules.build("ilrg")(seen(model, wide, y, LocalRule(mode="eval"), seed), seed)
        assert torch.equal(found.y, y)


@pytest.mark.parametrize("rule", ["dimitrov", "rlu"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rules_for_local_steps_beat_counts(rule, momentum, task):
    local = LocalRule(share="delta", epochs=6, batch_size=8, lr=0.1 * (1 - momentum), momentum=momentum)
    better, plain = [], []
    for seed in range(5):
        y = skewed(16, task, seed)
        observation = seen("mlp,hidden=16", task, y, local, seed, public=32)
        for name, scores in ((rule, better), ("counts", plain)):
            scores.append(overlap(label_rules.build(name)(observation, seed).y, y, task))
    assert statistics.mean(better) > statistics.mean(plain) + 0.02
    assert statistics.mean(better) > 0.85


def test_rlu_simulates_the_steps_that_a_client_takes_that_drops_its_last_batch(task):
    """Of ten examples the last two are in no step."""
    y = torch.tensor([0] * 4 + [1] * 4 + [2] * 2)
    local = LocalRule(share="delta", epochs=2, batch_size=4, lr=0.05, drop_last=True)
    found = label_rules.build("rlu")(seen("mlp,hidden=16", task, y, local, 0, public=32), 0)
    assert found.y.bincount(minlength=3)[:2].min() >= 4


def test_weight_decay_is_taken_off(task):
    y = skewed(16, task, 0)
    local = LocalRule(share="delta", lr=0.01, weight_decay=0.5)
    observation = seen(TINY, task, y, local, 0, public=32)
    assert torch.equal(label_rules.build("counts")(observation, 0).y, y.sort().values)


def test_counts_without_a_bias_measure_the_features(task):
    for seed in range(5):
        y = skewed(16, task, seed)
        observation = seen("mlp,hidden=64,bias=false", task, y, LocalRule(), seed, public=32)
        assert overlap(label_rules.build("counts")(observation, seed).y, y, task) >= 15 / 16


@pytest.mark.parametrize("model", [TINY, "mlp,hidden=16,bias=false"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_soft_label_of_one_example_is_recovered(model, smoothing, task):
    smooth = replace(task, classes=10, loss=Spec("cross_entropy", {"label_smoothing": smoothing}))
    for seed in range(5):
        found = label_rules.build("soft")(seen(model, smooth, torch.tensor([seed]), LocalRule(), seed), 0)
        truth = torch.full((1, 10), smoothing / 10)
        truth[0, seed] += 1 - smoothing
        assert found.y.tolist() == [seed]
        assert found.probabilities is not None
        assert torch.allclose(found.probabilities, truth, atol=1e-4)
        assert found.confidence > 0.999


def test_a_mixed_label_is_recovered(task):
    """Mixup is two gradients of one picture, added."""
    wide = replace(task, classes=10)
    one, other = (seen(TINY, wide, torch.tensor([c]), LocalRule(), 0) for c in (2, 7))
    mixed = {name: 0.7 * t + 0.3 * other.update.tensors[name] for name, t in one.update.tensors.items()}
    found = label_rules.build("soft,shape=mixup")(replace(one, update=replace(one.update, tensors=mixed)), 0)
    assert found.probabilities is not None
    assert found.probabilities[0, [2, 7]].tolist() == pytest.approx([0.7, 0.3], abs=1e-4)


def test_the_rule_that_fits_is_chosen(task):
    step, steps = LocalRule(share="delta"), LocalRule(share="delta", epochs=3)
    adam, unknown = LocalRule(share="delta", optimizer="adam"), ThreatModel(rule=False)
    cases = [
        (1, steps, None, "idlg"),
        (4, LocalRule(), None, "counts"),
        (4, LocalRule(), unknown, "counts"),
        (4, step, None, "counts"),
        (4, steps, None, "dimitrov"),
        (4, steps, unknown, "bias_corrected"),
        (4, adam, None, "analytic"),
    ]
    for count, rule, threat, expected in cases:
        _, observation = observed(TINY, task, rule=rule, threat=threat, count=count)
        assert fitting_rules(observation)[0] == expected
        assert recover(observation, "auto", 0).rule in fitting_rules(observation)


def test_the_most_confident_of_the_fitting_rules_wins(task):
    observation = seen(TINY, task, skewed(8, task, 0), LocalRule(), 0)
    found = [label_rules.build(name)(observation, 0) for name in fitting_rules(observation)]
    assert recover(observation, "auto", 0).confidence == max(labels.confidence for labels in found)


def test_without_a_bias_the_rules_that_need_one_are_passed_over(task):
    _, observation = observed("mlp,hidden=16,bias=false", task, count=4)
    assert recover(observation, "auto", 0).rule == "counts"


def test_a_model_without_a_linear_head_is_refused(task):
    _, observation = observed(TINY, task, count=4)
    headless = {n: t for n, t in observation.update.tensors.items() if t.ndim == 4}
    with pytest.raises(NotApplicable, match="final linear layer"):
        recover(replace(observation, update=replace(observation.update, tensors=headless)), "auto", 0)


def test_granted_labels_and_counts_win_over_any_rule(task):
    round, known = observed(TINY, task, threat=ThreatModel("known"), count=3)
    assert torch.equal(recover(known, "auto", 0).y, round.batch.y)
    _, counted = observed(TINY, task, threat=ThreatModel("counts"), count=3)
    assert torch.equal(recover(counted, "auto", 0).y, round.batch.y.sort().values)
    assert recover(counted, "auto", 0).rule == "granted counts"


def test_rounding_keeps_the_sum():
    for total in (1, 7, 16):
        whole = largest_remainder(torch.tensor([0.2, 3.7, 0.0, 1.1]), total)
        assert int(whole.sum()) == total
        assert listed(whole).shape == (total,)


@pytest.mark.parametrize(
    ("model", "rule", "granted", "refusing", "reading"),
    [
        ("mlp,hidden=16,bias=false", LocalRule(), True, "analytic bias_corrected ilrg rlu", "idlg yin counts llg soft"),
        (
            "convnet,width=8",
            LocalRule("delta", optimizer="adam", lr=0.001),
            True,
            "counts llg soft",
            "idlg analytic yin",
        ),
        ("convnet,width=8", LocalRule("delta", lr=0.003), False, "counts dimitrov ilrg llg_star rlu", "idlg llg soft"),
    ],
    ids=["without a bias", "signs of Adam", "a delta of unknown scale"],
)
def test_which_rules_can_read_what(model, rule, granted, refusing, reading, task):
    _, observation = observed(model, task, rule=rule, threat=ThreatModel(rule=granted), count=1)
    for name in refusing.split():
        with pytest.raises((NotApplicable, NotGranted)):
            label_rules.build(name)(observation, 0)
    for name in reading.split():
        assert len(label_rules.build(name)(observation, 0).y) == 1


@pytest.mark.parametrize(
    ("rule", "loss", "chosen", "why"),
    [
        (LocalRule("delta", clip_norm=0.01), {}, ("bias_corrected", "llg"), "its steps are clipped"),
        (LocalRule(), {"class_weights": "1/5/1/3"}, ("analytic", "yin"), "class weights of the loss"),
    ],
    ids=["clipped steps", "class weights"],
)
def test_sizes_that_the_client_changed_are_not_counted_by(rule, loss, chosen, why, task):
    observation = seen(TINY, replace(task, loss=Spec("cross_entropy", loss)), torch.tensor([0, 1, 1, 3]), rule, 0)
    assert recover(observation, "auto", 0).rule in chosen
    for name in ("counts", "ilrg", "rlu"):
        with pytest.raises(NotApplicable, match=why):
            label_rules.build(name)(observation, 0)
