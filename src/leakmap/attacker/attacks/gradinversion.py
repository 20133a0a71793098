"""GradInversion."""

from leakmap.attacker.attacks import attacks
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.priors import Norm, TotalVariation
from leakmap.attacker.matching.settings import Count, Positive, StatisticsWeight, Weight
from leakmap.attacker.matching.statistics import Statistics


@attacks.add("gradinversion")
def gradinversion(
    *,
    tv: Weight = 1e-4,
    norm: Weight = 1e-6,
    weight: StatisticsWeight = 1e-3,
    group: Weight = 1e-3,
    noise: Weight = 0.01,
    steps: Count = 20_000,
    lr: Positive = 0.1,
    restarts: Count = 4,
    labels: str = "auto",
) -> GradientMatching:
    """Squared distance, running statistics, seeds pulled to their mean, Langevin noise.

    The seeds are not registered to each other before they are averaged, and the best single seed is returned. The
    matching term is scaled by the update's norm, so that published weights carry over only in their order.

    Args:
        tv: Weight of the total variation.
        norm: Weight of the mean square of the pictures.
        weight: Of the statistics, ten times that in the first layer.
        group: Weight of the distance to the mean of all seeds.
        noise: Standard deviation of the noise, in steps.
        steps: Iterations.
        lr: Step size of Adam.
        restarts: Seeds.
        labels: ``auto``, or the name of a label rule; the publication takes ``yin``.

    Applies: where the model has BatchNorm with running statistics, best trained ones.

    Source: Yin et al. 2021, "See through Gradients: Image Batch Recovery via GradInversion", arXiv:2104.07586.
    """
    return GradientMatching(
        distance="squared",
        priors=(TotalVariation(tv), Norm(norm)),
        terms=(Statistics("running", weight, first=10.0),),
        descent=Descent(lr, sign="none", warmup=50, noise=noise),
        group=group,
        steps=steps,
        restarts=restarts,
        labels=labels,
        leaky_model="convnet,norm=batch",
    )
