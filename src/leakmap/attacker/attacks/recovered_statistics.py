"""The paper's first attack: the client's returned BatchNorm buffers give the statistics of its batches away."""

from dataclasses import replace

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import inverting_gradients
from leakmap.attacker.buffers import client_passes
from leakmap.attacker.matching.descent import Schedule, Sign
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.settings import (
    FADE,
    STEP,
    TV,
    VARIATION,
    Count,
    Fraction,
    LearningRate,
    StatisticsWeight,
    Whole,
)
from leakmap.attacker.matching.statistics import Statistics
from leakmap.errors import NotApplicable
from leakmap.observation.observation import Observation


@attacks.add("recovered_statistics")
def recovered_statistics(
    *,
    weight: StatisticsWeight = 1e-3,
    tv: TV = VARIATION,
    fade: Fraction = FADE,
    steps: Count = 400,
    lr: LearningRate = STEP,
    schedule: Schedule = "cosine",
    sign: Sign = "none",
    restarts: Count = 1,
    top: Whole = 0,
    median_every: Whole = 0,
    labels: str = "auto",
) -> GradientMatching:
    """Cosine matching, and the batch statistics that the change of the client's running statistics reveals.

    The change is undone with each layer's own momentum; after several passes the simulated passes are mixed as the
    client's buffers mixed them. In inference mode the buffers do not move and the term falls away, which is noted.

    Args:
        weight: Of the statistics; the paper's search chose 1.6e-4.
        tv: Weight of the total variation; the paper's search chose 0.052.
        fade: Fraction of that weight that is left at the end; it falls as the step size does.
        steps: Iterations of each restart; the paper takes 10,000.
        lr: Step size of Adam; the paper takes 0.1.
        schedule: Of the step size; the paper takes ``step``.
        sign: What Adam is fed of the gradient.
        restarts: Independent starts.
        top: Match only so many tensors, those with the largest norms; 0: all.
        median_every: Iterations between two 3x3 median filters; 0: none.
        labels: ``auto``, or the name of a label rule.

    Applies: where the client returns BatchNorm buffers and trained in training mode.

    Source: Valadi et al. 2025, arXiv:2508.19819 ("GIA Running"); compare Hatamizadeh et al. 2022, arXiv:2202.06924.
    """
    plain = inverting_gradients(
        tv=tv,
        fade=fade,
        steps=steps,
        lr=lr,
        schedule=schedule,
        sign=sign,
        restarts=restarts,
        top=top,
        median_every=median_every,
        labels=labels,
    )
    return replace(
        plain,
        terms=(Statistics("recovered", weight),),
        leaky_model="convnet,norm=batch",
        unless=buffers_stood_still,
    )


def buffers_stood_still(observation: Observation) -> str:
    """Why the client's buffers tell no statistics; empty if they do."""
    if observation.buffers is None:
        return "the client's buffers are not granted"
    try:
        mode = client_passes(observation).mode
    except NotApplicable as error:
        return str(error)
    if mode is None:
        return "there is no BatchNorm layer"
    return "" if mode == "train" else "the client ran in inference mode"
