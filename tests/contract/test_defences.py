"""Every registered defence keeps the same contract, and the attacker knows it."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from leakmap import LocalRule, Observation, attack, build_network, defences, simulate
from leakmap.attacker.matching.context import Guess, SearchContext
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine
from leakmap.client_step import arrange, local_signal
from leakmap.defences import NONE, defence_of
from leakmap.threat import ThreatModel, observe
from tests.conftest import batch_of, matching_term, pictures

QUIET = [
    "none",
    "clip_noise,clip=0.1,noise=0",
    "dp_sgd,clip=0.5,noise=0",
    "topk,keep=0.1",
    "quantise,bits=2",
    "quantise,bits=3",
    "sign",
]
NOISY = {
    "clip_noise,clip=0.1,noise=0.001": 0.1,
    "dp_sgd,clip=0.5,noise=0.01": 0.2,
    "quantise,bits=6,rounding=stochastic": 0.02,
}
"""With the distance that their noise may leave at the truth."""
RULES = {
    "gradient": LocalRule(),
    "inference mode": LocalRule(mode="eval"),
    "four steps": LocalRule("delta", epochs=2, batch_size=2, lr=0.1),
    "adam": LocalRule("delta", optimizer="adam", epochs=2),
}
GROUPNORM = "resnet,blocks=1,width=8,norm=group"


def defended(specification, task, rule=RULES["gradient"], model=GROUPNORM, seed=0):
    """A defended client's round, and the context of an attacker who knows the defence."""
    round = simulate(build_network(task, model), replace(rule, defence=specification), batch_of(4, task), seed)
    observation = observe(round, ThreatModel("known"))
    return round, SearchContext(observation, observation.rule, round.batch.y, 0)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def sent(round):
    return flat(round.update.tensors.values())


def test_every_defence_is_tried_here():
    assert {text.partition(",")[0] for text in (*QUIET, *NOISY)} == set(defences.names())


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
@pytest.mark.parametrize("specification", QUIET)
def test_distance_at_the_truth_is_zero_without_noise(specification, rule, task):
    round, context = defended(specification, task, rule)
    assert matching_term(context, task.normalize(round.batch.pictures)) < 1e-6
    assert matching_term(context, task.normalize(pictures(4, task, 9))) > 1e-3


@pytest.mark.parametrize("rule", [RULES["gradient"], RULES["four steps"]], ids=["gradient", "four steps"])
@pytest.mark.parametrize("specification", list(NOISY))
def test_distance_at_the_truth_is_that_of_the_noise(specification, rule, task):
    round, context = defended(specification, task, rule)
    quiet = replace(round, update=replace(round.update, tensors=without_noise(round, specification)))
    noise = 1 - float(F.cosine_similarity(sent(round), sent(quiet), dim=0))
    found = matching_term(context, task.normalize(round.batch.pictures))
    assert 0 < found < NOISY[specification]
    if "stochastic" not in specification and rule.share == "gradient":
        assert found == pytest.approx(noise, rel=1e-3)


def without_noise(round, specification):
    silent = specification.replace("stochastic", "nearest").replace("noise=0.001", "noise=0").replace("0.01", "0")
    return simulate(round.network, replace(round.rule, defence=silent), round.batch).update.tensors


def test_a_client_without_a_defence_sends_the_same_bits_as_before(task):
    for rule in RULES.values():
        round, context = defended(NONE, task, rule)
        network, x = round.network, task.normalize(round.batch.pictures)
        plain = local_signal(arrange(network.module(), rule), network.weights, x, round.batch.y, rule, network.loss())
        assert all(torch.equal(round.update.tensors[name], tensor) for name, tensor in plain.tensors.items())
        assert context.rule == rule


@pytest.mark.parametrize("specification", [*QUIET, *NOISY])
def test_shapes_stay_and_noise_follows_the_seed(specification, task):
    (first, _), (again, _), (other, _) = (defended(specification, task, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(sent(first), sent(again))
    assert torch.equal(sent(first), sent(other)) == (specification in QUIET)
    assert all(tensor.shape == first.network.weights[name].shape for name, tensor in first.update.tensors.items())
    assert all(tensor.dtype == first.network.weights[name].dtype for name, tensor in first.update.tensors.items())


@pytest.mark.parametrize("specification", [*QUIET, *NOISY])
def test_an_attack_on_the_file_form_knows_the_defence_and_repeats_itself(specification, task, tmp_path):
    _, context = defended(specification, task)
    context.observation.to_file(tmp_path / "client.safetensors")
    read = Observation.from_file(tmp_path / "client.safetensors")
    assert read.rule is not None
    assert read.rule.defence == specification
    found = [attack(o, "inverting_gradients,steps=3", seed=1) for o in (context.observation, read)]
    assert torch.equal(found[0].pictures, found[1].pictures)
    assert found[0].notes.get("defence", NONE) == specification


@pytest.mark.parametrize("rule", [RULES["gradient"], RULES["four steps"]], ids=["gradient", "four steps"])
@pytest.mark.parametrize("specification", [*QUIET, *NOISY])
def test_both_derivatives_of_a_defended_match_agree(specification, rule, task):
    _, context = defended(specification, task, rule)
    guess = Guess(torch.randn(4, *task.shape, generator=torch.Generator().manual_seed(1)), context.y)
    exact, frozen = (
        Engine(context, DISTANCES["cosine"], kind=kind).value_and_grad(guess).gradient[0]
        for kind in ("exact", "frozen")
    )
    assert float(exact.norm()) > 0
    assert float(F.cosine_similarity(exact.flatten(), frozen.flatten(), dim=0)) > 0.999


@pytest.mark.parametrize("specification", [*QUIET, *NOISY])
def test_the_docstring_names_its_source(specification):
    assert "Source:" in (defences.constructor(specification.partition(",")[0]).__doc__ or "")


@pytest.mark.parametrize("specification", [*QUIET, *NOISY])
def test_a_silent_update_stays_silent(specification):
    """Tensors of zeros, as frozen or dead layers give, divide nothing by zero."""
    zeros = [torch.zeros(3, 4), torch.zeros(2)]
    assert all(torch.equal(a, b) for a, b in zip(defence_of(specification).share(zeros, None), zeros, strict=True))
    simulated = defence_of(specification).simulate(zeros, zeros)
    assert all(torch.isfinite(tensor).all() for tensor in (*simulated.tensors, *(simulated.slopes or ())))
