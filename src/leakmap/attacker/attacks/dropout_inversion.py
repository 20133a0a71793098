"""Dropout masks searched together with the pictures."""

from dataclasses import replace

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import inverting_gradients
from leakmap.attacker.buffers import assumed_rule
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.masks import open_masks
from leakmap.attacker.matching.settings import TV, Count, LearningRate, Weight
from leakmap.observation.observation import Observation


@attacks.add("dropout_inversion")
def dropout_inversion(
    *,
    tv: TV = 1e-2,
    masks: Weight = 1e-4,
    steps: Count = 400,
    lr: LearningRate = 0.3,
    restarts: Count = 1,
    labels: str = "auto",
) -> GradientMatching:
    """Cosine matching over pictures and the client's unknown dropout masks, one mask for each use of each layer.

    Dropout and stochastic depth are covered; the dropout inside attention is simulated by its expectation. Without
    active dropout it is plain cosine matching.

    Args:
        tv: Weight of the total variation.
        masks: Weight that pulls the share of dropped values to the rate of each layer.
        steps: Iterations of each restart; published are 20,000.
        lr: Step size of Adam; published is 0.1.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: where dropout is active; every mask value is one more unknown.

    Source: Scheliga et al. 2023, "Dropout is NOT All You Need to Prevent Gradient Leakage", arXiv:2208.06163.
    """
    plain = inverting_gradients(tv=tv, fade=1.0, steps=steps, lr=lr, sign="hard", restarts=restarts, labels=labels)
    return replace(plain, masks=masks, unless=dropout_is_off)


def dropout_is_off(observation: Observation) -> str:
    """Why there are no masks to search; empty if there are."""
    rule = assumed_rule(observation).rule
    return "" if open_masks(observation.network.module(), rule).layers else "there is no active dropout"
