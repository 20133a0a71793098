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
from tests.contract.examples import examples

EXAMPLES = [each.values[0][1] for each in examples(defences)]
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


def without_noise(round):
    """What the same client would send if nothing of its defence were random."""
    network, x = round.network, round.network.task.normalize(round.batch.pictures)
    module = arrange(network.module(), round.rule)
    quiet = local_signal(module, network.weights, x, round.batch.y, round.rule, network.loss(), noise_seed=None)
    return flat(quiet.tensors.values())


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
@pytest.mark.parametrize("specification", EXAMPLES)
def test_distance_at_the_truth_is_that_of_the_noise(specification, rule, task):
    """Without noise 0."""
    round, context = defended(specification, task, rule)
    noise = 1 - float(F.cosine_similarity(sent(round).double(), without_noise(round).double(), dim=0))
    found = matching_term(context, task.normalize(round.batch.pictures))
    assert found == pytest.approx(noise, rel=1e-3, abs=1e-6)
    assert matching_term(context, task.normalize(pictures(4, task, 9))) > found + 1e-3


def test_a_client_without_a_defence_sends_the_same_bits_as_before(task):
    for rule in RULES.values():
        round, context = defended(NONE, task, rule)
        network, x = round.network, task.normalize(round.batch.pictures)
        plain = local_signal(arrange(network.module(), rule), network.weights, x, round.batch.y, rule, network.loss())
        assert all(torch.equal(round.update.tensors[name], tensor) for name, tensor in plain.tensors.items())
        assert context.rule == rule


@pytest.mark.parametrize("specification", EXAMPLES)
def test_shapes_stay_and_noise_follows_the_seed(specification, task):
    (first, _), (again, _), (other, _) = (defended(specification, task, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(sent(first), sent(again))
    assert torch.equal(sent(first), sent(other)) == torch.equal(sent(first), without_noise(first))
    assert all(tensor.shape == first.network.weights[name].shape for name, tensor in first.update.tensors.items())
    assert all(tensor.dtype == first.network.weights[name].dtype for name, tensor in first.update.tensors.items())


@pytest.mark.parametrize("specification", EXAMPLES)
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
@pytest.mark.parametrize("specification", EXAMPLES)
def test_both_derivatives_of_a_defended_match_agree(specification, rule, task):
    _, context = defended(specification, task, rule)
    guess = Guess(torch.randn(4, *task.shape, generator=torch.Generator().manual_seed(1)), context.y)
    exact, frozen = (
        Engine(context, DISTANCES["cosine"], kind=kind).value_and_grad(guess).gradient[0]
        for kind in ("exact", "frozen")
    )
    assert float(exact.norm()) > 0
    assert float(F.cosine_similarity(exact.flatten(), frozen.flatten(), dim=0)) > 0.999


@pytest.mark.parametrize("name", defences.names())
def test_the_docstring_names_its_source(name):
    assert "Source:" in (defences.constructor(name).__doc__ or "")


@pytest.mark.parametrize("specification", EXAMPLES)
def test_a_silent_update_stays_silent(specification):
    """Tensors of zeros, as frozen or dead layers give, divide nothing by zero."""
    zeros = [torch.zeros(3, 4), torch.zeros(2)]
    assert all(torch.equal(a, b) for a, b in zip(defence_of(specification).share(zeros, None), zeros, strict=True))
    simulated = defence_of(specification).simulate(zeros, zeros)
    assert all(torch.isfinite(tensor).all() for tensor in (*simulated.tensors, *(simulated.slopes or ())))
