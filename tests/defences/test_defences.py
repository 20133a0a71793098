"""What single defences do, against formulas written out, against Opacus, and what the attacker's rules make of them."""

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leakmap import LocalRule, Observation, Plan, ThreatModel, attack, audit, build_network, label_rules, simulate
from leakmap.attacker.attacks.strongest import strongest_v1
from leakmap.attacker.buffers import assumed_rule
from leakmap.attacker.closed_form import diagnose
from leakmap.attacker.gradients import mean_gradient
from leakmap.attacker.labels import fitting_rules, recover
from leakmap.attacker.matching.context import Guess, SearchContext
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine
from leakmap.attacker.suite import Strongest
from leakmap.auditing.flags import flags_of
from leakmap.auditing.method import promised
from leakmap.client_step import Training
from leakmap.defences import defence_of
from leakmap.defences.accounting import epsilon
from leakmap.errors import BadSetting, ModelError, NotApplicable, ObservationError, UnknownName
from tests.conftest import batch_of, observed

BATCHNORM, DROPPING = "resnet,blocks=1,width=4", "convnet,width=4,dropout=0.3"


def by_example(network, batch, mode="train"):
    """``(N,)`` lists of the gradient of each example alone."""
    module = network.module().train(mode == "train")
    x = network.task.normalize(batch.pictures)
    found = []
    for i in range(len(x)):
        module.zero_grad()
        F.cross_entropy(module(x[i : i + 1]), batch.y[i : i + 1]).backward()
        found.append([parameter.grad.clone() for parameter in module.parameters()])
    return found


def norm_of(tensors):
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


def test_dp_sgd_is_the_mean_of_clipped_gradients(task):
    network, batch = build_network(task, "convnet,width=4"), batch_of(5, task)
    own = by_example(network, batch)
    clip = sorted(map(norm_of, own))[2]
    round = simulate(network, LocalRule(defence=f"dp_sgd,clip={clip},noise=0"), batch)
    factors = [min(1.0, clip / norm_of(gradients)) for gradients in own]
    assert factors.count(1.0) in (2, 3)
    for place, tensor in enumerate(round.update.tensors.values()):
        expected = sum(f * g[place] for f, g in zip(factors, own, strict=True)) / 5
        assert torch.allclose(tensor, expected, atol=1e-6)


@pytest.mark.parametrize("rule", [LocalRule(), LocalRule(accumulate=2)], ids=["at once", "micro-batches"])
def test_a_bound_that_nothing_reaches_changes_nothing(rule, task):
    network, batch = build_network(task, "convnet,width=4"), batch_of(5, task)
    plain = simulate(network, rule, batch).update.tensors
    bounded = simulate(network, replace(rule, defence="dp_sgd,clip=1e6,noise=0"), batch).update.tensors
    assert all(torch.allclose(plain[name], bounded[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize(
    ("specification", "expected"), [("dp_sgd,clip=0.5,noise=2", 0.25), ("clip_noise,clip=0.5,noise=2", 1.0)]
)
def test_the_noise_has_the_promised_standard_deviation(specification, expected, task):
    network, batch = build_network(task, "mlp,hidden=64"), batch_of(4, task)
    noisy, quiet = (
        torch.cat([t.flatten() for t in simulate(network, LocalRule(defence=text), batch).update.tensors.values()])
        for text in (specification, specification.replace("noise=2", "noise=0"))
    )
    noise = noisy - quiet
    assert float(noise.std()) == pytest.approx(expected, rel=0.02)
    assert abs(float(noise.mean())) < 0.02 * expected


def test_dp_sgd_is_that_of_opacus(task):
    opacus = pytest.importorskip("opacus.optimizers", reason="the extra 'dp' is not installed")
    network, batch = build_network(task, "convnet,width=4"), batch_of(4, task)
    own = by_example(network, batch)
    clip = sorted(map(norm_of, own))[1]
    module = network.module()
    for place, parameter in enumerate(module.parameters()):
        parameter.grad_sample = torch.stack([gradients[place] for gradients in own])
    optimizer = opacus.DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=0.1), noise_multiplier=0.0, max_grad_norm=clip, expected_batch_size=4
    )
    optimizer.step()
    rule = LocalRule("delta", lr=0.1, defence=f"dp_sgd,clip={clip},noise=0")
    update = simulate(network, rule, batch).update.tensors
    for name, parameter in module.named_parameters():
        assert torch.allclose(update[name], parameter.detach() - network.weights[name], atol=1e-6), name
    noisy = opacus.DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=0.1), noise_multiplier=2.0, max_grad_norm=1.0, expected_batch_size=4
    )
    for parameter in module.parameters():
        parameter.grad_sample, parameter.grad = torch.zeros(4, *parameter.shape), None
        parameter.summed_grad = None
    noisy.pre_step()
    theirs = torch.cat([parameter.grad.flatten() for parameter in module.parameters()]).std()
    zeros = [torch.zeros_like(parameter) for parameter in module.parameters()]
    gaussian = defence_of("dp_sgd,clip=1.0,noise=2.0").examples
    ours = torch.cat([t.flatten() for t in gaussian.disturbed(zeros, torch.Generator().manual_seed(0), 4)]).std()
    assert float(ours) == pytest.approx(float(theirs), rel=0.1)


@pytest.mark.parametrize(("model", "word"), [(BATCHNORM, "BatchNorm"), (DROPPING, "--dropout 0")])
def test_dp_sgd_refuses_what_mixes_examples_or_drops_at_random(model, word, task):
    network, batch = build_network(task, model), batch_of(2, task)
    with pytest.raises(ModelError, match=word):
        simulate(network, LocalRule(defence="dp_sgd"), batch)
    assert simulate(network, LocalRule(mode="eval", defence="dp_sgd"), batch).update.tensors


def test_dp_sgd_is_refused_before_any_run_of_an_audit():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    module(torch.zeros(2, 3, 16, 16))
    images, labels = torch.rand(120, 3, 16, 16), torch.arange(120) % 2
    with pytest.raises(ModelError, match="GroupNorm"):
        audit(module, images, labels, client=LocalRule(defence="dp_sgd"), victims=1)


@pytest.mark.parametrize(
    "rule", [LocalRule(), LocalRule("delta", epochs=2, batch_size=2, lr=0.1, momentum=0.5)], ids=["gradient", "steps"]
)
def test_the_derivative_of_dp_sgd_is_that_of_its_steps_written_out_with_their_factors_held(rule, task):
    rule = replace(rule, defence="dp_sgd,clip=0.3,noise=0")
    round, observation = observed("convnet,width=4,depth=2", task, rule=rule, threat=ThreatModel("known"), count=3)
    context, network = SearchContext(observation, rule, round.batch.y, 0), round.network
    x = torch.randn(3, *task.shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    training = Training(network.module().train(), network.weights, rule, network.loss())
    parameters, memory, shared = training.start, [], []
    for step in range(rule.steps(3)):
        part, y = training.batch(step, x, round.batch.y)
        losses = torch.stack([training.objective(parameters, part[i : i + 1], y[i : i + 1]) for i in range(len(y))])
        norms = [norm_of(torch.autograd.grad(loss, parameters, retain_graph=True)) for loss in losses]
        factors = torch.tensor([min(1.0, 0.3 / norm) for norm in norms])
        assert float(factors.min()) < 1
        shared = torch.autograd.grad((factors * losses).mean(), parameters, create_graph=True)
        parameters, memory = training.advance(step, 3, parameters, shared, memory)
    if rule.share == "delta":
        shared = [after - before.detach() for after, before in zip(parameters, training.start, strict=True)]
    target = torch.cat([tensor.flatten() for tensor in observation.update.tensors.values()])
    distance = 1 - F.cosine_similarity(torch.cat([tensor.flatten() for tensor in shared]), target, dim=0)
    (expected,) = torch.autograd.grad(distance, x)
    found = Engine(context, DISTANCES["cosine"], kind="exact").value_and_grad(Guess(x.detach(), round.batch.y))
    assert float(found.match) == pytest.approx(float(distance.detach()), abs=1e-5)
    assert torch.allclose(found.gradient[0], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("specification", "most"),
    [
        ("clip_noise,clip=0.1,noise=0.001", 0.1),
        ("dp_sgd,clip=0.5,noise=0.01", 0.2),
        ("quantise,bits=6,rounding=stochastic", 0.02),
    ],
)
def test_the_noise_is_random_and_leaves_most_of_the_update(specification, most, task):
    network, batch = build_network(task, "resnet,blocks=1,width=8,norm=group"), batch_of(4, task)
    rule = LocalRule(defence=specification)
    rounds = (simulate(network, rule, batch, seed).update.tensors.values() for seed in (1, 2))
    first, second = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in rounds)
    assert 0 < 1 - float(F.cosine_similarity(first, second, dim=0)) < 2 * most


def test_topk_sends_the_largest_entries_of_every_tensor(task):
    network, batch = build_network(task, "convnet,width=4"), batch_of(2, task)
    plain = simulate(network, LocalRule(), batch).update.tensors
    sparse = simulate(network, LocalRule(defence="topk,keep=0.2"), batch).update.tensors
    for name, tensor in sparse.items():
        kept = tensor != 0
        assert int(kept.sum()) == math.ceil(0.2 * tensor.numel())
        assert torch.equal(tensor[kept], plain[name][kept])
        assert plain[name][~kept].abs().max() <= tensor[kept].abs().min()


def test_quantising_moves_no_entry_by_more_than_half_a_level_and_stochastic_rounding_is_right_on_average():
    update = [torch.randn(50, 40, generator=torch.Generator().manual_seed(0))]
    level = float(update[0].abs().max()) / 7
    (rounded,) = defence_of("quantise,bits=4").share(update, None)
    assert float((rounded - update[0]).abs().max()) <= level / 2 + 1e-6
    assert len(rounded.unique()) <= 15
    source = torch.Generator().manual_seed(1)
    drawn = [defence_of("quantise,bits=4,rounding=stochastic").share(update, source)[0] for _ in range(400)]
    assert float((torch.stack(drawn).mean(0) - update[0]).abs().max()) < 5 * level / 2 / 400**0.5


@pytest.mark.parametrize(
    ("specification", "error", "word"),
    [
        ("tokp", UnknownName, "topk"),
        ("topk,keep=0", BadSetting, "keep"),
        ("topk,keep=nan", BadSetting, "keep"),
        ("quantise,bits=1", BadSetting, "bits"),
        ("clip_noise,clip=1e999", BadSetting, "clip"),
        ("dp_sgd,noise=-1", BadSetting, "noise"),
        ("sign,bits=1", BadSetting, "takes none"),
        ("code.py:build", UnknownName, "no defence"),
    ],
)
def test_impossible_defences_are_refused_in_one_sentence_and_in_files_too(specification, error, word, task):
    with pytest.raises(error, match=word):
        LocalRule(defence=specification)
    data = observed("mlp,hidden=4", task)[1].to_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    manifest = json.loads(header["__metadata__"]["leakmap"])
    manifest["rule"]["defence"] = specification
    header["__metadata__"]["leakmap"] = json.dumps(manifest)
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    with pytest.raises(ObservationError, match="These bytes"):
        Observation.from_bytes(len(written).to_bytes(8, "little") + written + data[8 + size :])


def test_an_attacker_without_the_rule_assumes_no_defence_and_says_so(task):
    _, observation = observed(
        "convnet,width=4", task, rule=LocalRule(defence="sign"), threat=ThreatModel("known", rule=False)
    )
    assert assumed_rule(observation).rule.defence == "none"
    found = attack(observation, "inverting_gradients,steps=2")
    assert "without a defence" in found.notes["assumed"]
    assert "defence" not in found.notes


@pytest.mark.parametrize("specification", ["clip_noise,clip=0.01,noise=0", "dp_sgd,clip=0.01,noise=0"])
def test_closed_forms_read_through_clipping(specification, task):
    round, observation = observed("mlp,hidden=64", task, rule=LocalRule(defence=specification), count=1)
    for name in ("linear", "spear"):
        found = attack(observation, name)
        assert torch.allclose(found.pictures, round.batch.pictures, atol=1e-3)
        assert found.notes["defence"] == specification


def test_spear_reads_a_batch_whose_examples_were_clipped_one_by_one(task):
    rule = LocalRule(defence="dp_sgd,clip=0.05,noise=0")
    round, observation = observed("mlp,hidden=256", task, rule=rule, threat=ThreatModel("known"), count=3)
    found = attack(observation, "spear").pictures
    nearest = torch.cdist(found.flatten(1), round.batch.pictures.flatten(1)).amin(0)
    assert float(nearest.max()) < 1e-2


@pytest.mark.parametrize(
    ("name", "specification"),
    [
        ("linear", "sign"),
        ("linear", "topk,keep=0.3"),
        ("spear", "sign"),
        ("spear", "topk,keep=0.3"),
        ("spear", "quantise,bits=8"),
        ("spear", "clip_noise,noise=0.01"),
    ],
)
def test_closed_forms_name_the_defence_that_stands_in_their_way(name, specification, task):
    _, observation = observed("mlp,hidden=64", task, rule=LocalRule(defence=specification), count=1)
    with pytest.raises(NotApplicable, match=specification):
        attack(observation, name)


def test_linear_reads_the_rows_that_were_sent_whole(task):
    round, observation = observed("mlp,hidden=64", task, count=1)
    sparse = {name: tensor.clone() for name, tensor in observation.update.tensors.items()}
    name = next(name for name in sparse if name.endswith("bias"))
    weight = f"{name.removesuffix('bias')}weight"
    strongest_row = int(sparse[name].abs().argmax())
    others = torch.arange(len(sparse[name])) != strongest_row
    sparse[weight][others, 0] = 0
    known = replace(
        observation,
        update=replace(observation.update, tensors=sparse),
        rule=LocalRule(defence="topk,keep=0.9"),
    )
    assert torch.allclose(attack(known, "linear").pictures, round.batch.pictures, atol=1e-3)


def test_april_is_out_of_the_way_of_rounding(task):
    network = build_network(task, "vit,prenorm=false,skip=false")
    able = {f.attack for f in diagnose(network, 1, LocalRule(defence="clip_noise,noise=0")) if f.qualifies}
    assert "april" in able
    able = {f.attack for f in diagnose(network, 1, LocalRule(defence="quantise,bits=8")) if f.qualifies}
    assert "april" not in able


@pytest.mark.parametrize(
    ("specification", "rules"),
    [
        ("sign", {"analytic", "yin"}),
        ("topk,keep=0.1", {"analytic", "yin"}),
        ("percentile", {"analytic", "yin"}),
        ("clip_noise", {"bias_corrected", "llg"}),
        ("dp_sgd", {"bias_corrected", "llg"}),
        ("quantise,bits=8", {"counts", "ilrg"}),
    ],
)
def test_label_rules_read_what_a_defence_left(specification, rules, task):
    _, observation = observed("convnet,width=8", task, rule=LocalRule(defence=specification), count=3)
    assert set(fitting_rules(observation)) == rules
    assert recover(observation, "auto", 0).rule in rules
    for name in () if "counts" in rules else ("counts", "ilrg", "rlu"):
        with pytest.raises(NotApplicable, match=specification):
            label_rules.build(name)(observation, 0)


@pytest.mark.parametrize("specification", ["sign", "topk,keep=0.01", "clip_noise,clip=0.1,noise=0", "quantise,bits=2"])
def test_the_label_of_one_example_is_read_through_any_defence(specification, task):
    for seed in range(4):
        rule = LocalRule(defence=specification)
        round, observation = observed("convnet,width=8", task, rule=rule, count=1, seed=seed)
        assert recover(observation, "auto", 0).y.tolist() == round.batch.y.tolist()


def test_a_delta_of_signs_is_only_turned_around(task):
    rule = LocalRule("delta", lr=0.1, weight_decay=0.5, defence="sign")
    _, observation = observed("convnet,width=8", task, rule=rule, count=1)
    for name, tensor in mean_gradient(observation, observation.update.tensors).items():
        assert torch.equal(tensor, -observation.update.tensors[name].double())


def test_epsilon_is_infinite_without_noise_and_impossible_numbers_are_refused():
    for specification in ("none", "sign", "topk", "dp_sgd,noise=0"):
        assert epsilon(specification, batch_size=1, dataset_size=1, rounds=1, delta=1e-5) == math.inf
    with pytest.raises(BadSetting, match="delta"):
        epsilon("dp_sgd", batch_size=2, dataset_size=1, rounds=1, delta=1e-5)


def test_only_sampled_rounds_need_the_accountant_and_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting.pld.privacy_loss_distribution", None)
    with pytest.raises(BadSetting, match=r"leakmap\[dp\]"):
        epsilon("dp_sgd,noise=1.23", batch_size=1, dataset_size=2, rounds=1, delta=1e-5)
    found = promised(Plan("convnet", "samples", LocalRule("delta", epochs=3, defence="dp_sgd,noise=1")))
    assert found.epsilon == epsilon("dp_sgd,noise=1", batch_size=1, dataset_size=1, rounds=3, delta=1e-5)
    assert "one picture" in found.statement
    assert "no guarantee" in promised(Plan("convnet", "samples", LocalRule(defence="svt"))).statement


def test_epsilon_grows_with_rounds_and_falls_with_noise_and_sampling():
    pytest.importorskip("dp_accounting", reason="the extra 'dp' is not installed")

    def of(noise, batch_size=10, dataset_size=100, rounds=10):
        text = f"dp_sgd,noise={noise}"
        return epsilon(text, batch_size=batch_size, dataset_size=dataset_size, rounds=rounds, delta=1e-5)

    assert of(2) < of(1) < of(1, rounds=100)
    assert of(1) < of(1, batch_size=100)


def test_percentile_drops_small_entries_of_all_tensors_together_and_cuts_the_others_off():
    tensors = [torch.randn(30, 5, generator=torch.Generator().manual_seed(0)), torch.tensor(9.0), torch.ones(4) * 1e-4]
    sent = defence_of("percentile,percentile=20,gamma=0.5,steps=3").share(tensors, None)
    cutoff = np.percentile(np.concatenate([t.abs().flatten().numpy() for t in tensors]), 20)
    assert cutoff > 1e-4
    for before, after in zip(tensors, sent, strict=True):
        if not before.ndim:
            assert torch.equal(before, after)
            continue
        expected = np.clip(np.where(before.abs() < cutoff, 0, before), -1.5, 1.5)
        assert np.allclose(after, expected)


def test_svt_sends_as_many_entries_at_most_as_it_draws_and_laplace_noise_on_them():
    tensors = [torch.full((400, 50), 0.3), torch.tensor(9.0)]
    defence = defence_of("svt,fraction=0.2,noise_var=4,gamma=0.1,steps=2")
    sent = defence.share(tensors, torch.Generator().manual_seed(0))
    assert torch.equal(sent[1], tensors[1])
    drawn = sent[0][sent[0] != 0]
    # Of 4,001 draws with replacement among the accepted, about half of all entries: distinct ones.
    accepted = 20_001 / 2
    assert len(drawn) == pytest.approx(accepted * (1 - (1 - 1 / accepted) ** 4001), rel=0.1)
    noise = drawn - 0.2
    assert float(noise.median()) == pytest.approx(0, abs=0.01)
    assert float(noise.abs().mean()) == pytest.approx(2 * (2 * 0.1 / 4), rel=0.1), "the scale of Laplace's distribution"
    unreachable = defence_of("svt,gamma=1e-6,tau=1").share(tensors, torch.Generator().manual_seed(0))
    assert float(unreachable[0].abs().max()) > 0


def test_flower_promises_what_its_noise_and_clipping_norm_do_and_not_what_it_asks_for():
    said = defence_of("flower_local_dp,clipping_norm=2,sensitivity=0.5,epsilon=1,delta=1e-5")
    deviation = 0.5 * math.sqrt(2 * math.log(1.25e5))
    assert said.gaussian.noise * said.gaussian.clip == pytest.approx(deviation)
    sent = said.share([torch.full((200, 100), 1.0)], torch.Generator().manual_seed(0))[0]
    assert float(sent.std()) == pytest.approx(deviation, rel=0.02)
    assert float(sent.mean()) == pytest.approx(2 / 20_000**0.5, abs=4 * deviation / 20_000**0.5)
    found = promised(
        Plan("convnet", rule=LocalRule(defence="flower_local_dp,clipping_norm=2,sensitivity=0.5,epsilon=1,delta=1e-5"))
    )
    assert found.epsilon > 3, "four times the sensitivity that the client takes itself to have"


def test_the_suite_runs_against_a_defended_client(task):
    suite = strongest_v1(steps=3)
    assert isinstance(suite, Strongest)
    for specification in ("sign", "dp_sgd,clip=0.1,noise=0.01"):
        _, observation = observed("mlp,hidden=32", task, rule=LocalRule(defence=specification), count=2)
        found = attack(observation, suite)
        assert not [attempt for attempt in found.attempts if attempt.failed]


def test_a_withheld_defence_is_flagged():
    groups = SimpleNamespace(
        labels=torch.zeros(60).long(),
        distractors=torch.arange(60),
        victims=torch.arange(1)[None],
        nearest=(torch.zeros(1, 1).long(), torch.zeros(1, 1)),
        objects=torch.zeros(0),
    )
    groups.classes = ("a",)
    told, untold = (
        flags_of(Plan("convnet", "samples", LocalRule(defence="sign"), ThreatModel(rule=rule)), groups, None, [])
        for rule in (True, False)
    )
    assert "defence_withheld" not in told
    assert "defence_withheld" in untold
