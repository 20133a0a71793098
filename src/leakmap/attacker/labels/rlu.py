"""Class counts behind several local steps, with the client's training simulated."""

import torch
from torch import Tensor

from leakmap.attacker.buffers import assumed_rule
from leakmap.attacker.gradients import step_weights
from leakmap.attacker.labels import LabelRule, Labels, label_rules
from leakmap.attacker.labels.counting import agreement, largest_remainder, listed, solve_counts
from leakmap.attacker.labels.head import (
    bias_of,
    check_magnitudes,
    check_scale,
    facts_used,
    head_gradient,
    probabilities,
)
from leakmap.client_step import arrange, local_signal
from leakmap.observation.observation import Observation
from leakmap.seeds import generator


@label_rules.add("rlu")
def rlu(*, rounds: int = 3, draws: int = 4) -> LabelRule:
    """Least squares on the expected erroneous confidence, measured by simulating the client on stand-in pictures.

    In the style of RLU: the mean prediction for examples of each class over the local steps is estimated by Monte Carlo
    and makes the mean gradient of the bias linear in the counts. Where the paper moves a Gaussian model of the logits,
    this runs the client's own training on public pictures (of the right class where there are any), else noise, with
    the labels estimated so far. Exact where stand-ins are predicted like the client's examples at every step.

    Args:
        rounds: How often labels are estimated and the client is simulated with them.
        draws: Simulated clients of each round.

    Source: Chen and Vikalo 2024, "Recovering Labels from Local Updates in Federated Learning" (RLU),
    arXiv:2405.00955.
    """

    def rule(observation: Observation, seed: int) -> Labels:
        check_scale(observation)
        check_magnitudes(observation, "rlu")
        total, classes = observation.count or 0, observation.network.task.labels
        head = head_gradient(observation)
        bias = bias_of(head, "rlu")
        source = generator(seed, "label dummies")
        real = torch.full_like(bias, total / classes)
        for _ in range(rounds):
            y = listed(largest_remainder(real.clamp(min=0), total))
            confidence = torch.stack([erroneous_confidence(observation, y, source) for _ in range(draws)]).nanmean(0)
            # A class that no simulated client held has no prediction of its own and takes the mean of the others.
            common = confidence.nanmean(0)
            real = solve_counts(torch.where(confidence.isnan(), common, confidence), bias, observation)
        whole = largest_remainder(real.clamp(min=0), total)
        return Labels(
            listed(whole), "rlu", agreement(real, whole, total * head.noise), facts_used(observation, "rule", "public")
        )

    return rule


def erroneous_confidence(observation: Observation, y: Tensor, source: torch.Generator) -> Tensor:
    """``(classes, classes)`` mean prediction for each class over one simulated local training; NaN for absent ones.

    Args:
        observation: Gives network, rule and public pictures.
        y: ``(count,)`` labels of the simulated client; their order is drawn.
        source: Of randomness.
    """
    network, rule = observation.network, assumed_rule(observation).rule
    classes = network.task.labels
    y = y[torch.randperm(len(y), generator=source).to(y.device)]
    seen: list[Tensor] = []

    loss = network.loss()
    assert loss is not None

    def recorded(outputs: Tensor, part: Tensor) -> Tensor:
        seen.append(probabilities(outputs.detach().double()))
        return loss(outputs, part)

    module = arrange(network.module(), rule, dropout=False)
    local_signal(module, network.weights, _stand_ins(observation, y, source), y, rule, recorded)
    steps = [rule.held_by(step, len(y)).to(y.device) for step in range(rule.steps(len(y)))]
    weights = [
        torch.full((len(held),), weight / len(held), dtype=torch.float64, device=y.device)
        for held, weight in zip(steps, step_weights(rule, len(y)), strict=True)
    ]
    members = torch.cat(weights) * (y[torch.cat(steps)] == torch.arange(classes, device=y.device)[:, None])
    return members @ torch.cat(seen) / members.sum(1, keepdim=True)


def _stand_ins(observation: Observation, y: Tensor, source: torch.Generator) -> Tensor:
    """Model inputs ``(N, C, H, W)``: public pictures of the classes ``y`` where there are any, else any, else noise."""
    network, public = observation.network, observation.public
    if public is None:
        return torch.randn(len(y), *network.task.shape, generator=source).to(network.device, network.dtype)
    fits = (public.labels == y[:, None]).double()
    fits[fits.sum(1) == 0] = 1.0
    chosen = torch.multinomial(fits.cpu(), 1, generator=source)[:, 0]
    return network.task.normalize(public.pictures[chosen.to(y.device)])
