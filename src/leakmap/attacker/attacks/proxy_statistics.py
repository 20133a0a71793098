"""The paper's second attack: public pictures stand in for the statistics of the client's batches."""

from dataclasses import replace
from typing import Literal

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import inverting_gradients
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
from leakmap.observation.observation import Observation


@attacks.add("proxy_statistics")
def proxy_statistics(
    *,
    weight: StatisticsWeight = 1e-3,
    form: Literal["paper", "calibrated"] = "paper",
    batches: Whole = 0,
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
    """Cosine matching, and the statistics that public pictures have in front of every normalization layer.

    For BatchNorm a mean and a variance of each channel; for LayerNorm, GroupNorm and InstanceNorm two numbers a layer.

    Args:
        weight: Of the statistics; the paper's search chose 1.6e-4.
        form: ``paper`` sums the norms of the differences; ``calibrated`` weighs each difference by its deviation
            between public batches.
        batches: Public batches of the client's size that are averaged; 0: one for ``paper``, 8 for ``calibrated``.
        tv: Weight of the total variation.
        fade: Fraction of that weight that is left at the end; it falls as the step size does.
        steps: Iterations of each restart; the paper takes 10,000.
        lr: Step size of Adam; the paper takes 0.1.
        schedule: Of the step size; the paper takes ``step``.
        sign: What Adam is fed of the gradient.
        restarts: Independent starts.
        top: Match only so many tensors, those with the largest norms; 0: all.
        median_every: Iterations between two 3x3 median filters; 0: none.
        labels: ``auto``, or the name of a label rule.

    Applies: where the model has normalization layers and there are public pictures of the same kind, at least one
    batch.

    Source: Valadi et al. 2025, arXiv:2508.19819 ("GIA Estimate"); the calibrated form is this project's.
    """
    batches = batches or (8 if form == "calibrated" else 1)
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
        terms=(Statistics("proxy", weight, form, batches=batches),),
        leaky_model="convnet,norm=batch",
        unless=nothing_public,
    )


def nothing_public(observation: Observation) -> str:
    """Why there is nothing to measure public statistics on; empty if there is."""
    return "" if observation.public is not None else "no public pictures are granted"
