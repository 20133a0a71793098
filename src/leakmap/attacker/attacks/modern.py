"""The settings "modern" of breaching."""

from leakmap.attacker.attacks import attacks
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.priors import SmoothVariation
from leakmap.attacker.matching.settings import TV, Count, LearningRate, Weight
from leakmap.attacker.matching.terms import Features


@attacks.add("modern")
def modern(
    *,
    tv: TV = 0.1,
    features: Weight = 0.1,
    steps: Count = 24_000,
    lr: LearningRate = 0.1,
    restarts: Count = 1,
    labels: str = "auto",
) -> GradientMatching:
    """Cosine matching with softly signed Adam, warm-up, double-opponent total variation, features of the last layer.

    Args:
        tv: Weight of the total variation.
        features: Weight of the features that the last layer's gradient shows.
        steps: Iterations of each restart.
        lr: Step size of Adam.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: to every differentiable model; the features where the last layer has a bias and a class occurs once.

    Source: Geiping et al., the settings "modern" of breaching 0.1.2.
    """
    return GradientMatching(
        priors=(SmoothVariation(tv),),
        terms=(Features(features),),
        descent=Descent(lr, warmup=50, sign="soft"),
        start="tiles",
        steps=steps,
        restarts=restarts,
        labels=labels,
    )
