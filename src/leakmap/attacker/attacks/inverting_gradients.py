"""Cosine matching: the reference attack by optimisation, in this project's and in the published settings."""

from typing import Literal

from leakmap.attacker.attacks import attacks
from leakmap.attacker.matching.decoders import Pixels
from leakmap.attacker.matching.descent import Descent, Schedule, Sign
from leakmap.attacker.matching.engine import Kind
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.priors import SmoothVariation, TotalVariation
from leakmap.attacker.matching.settings import FADE, STEP, TV, VARIATION, Count, Fraction, LearningRate, Weight, Whole
from leakmap.attacker.matching.spectrum import Likely, Whitened
from leakmap.attacker.matching.starts import Start
from leakmap.attacker.matching.weighting import Largest
from leakmap.attacker.protocol import Attack
from leakmap.errors import BadSetting


@attacks.add("inverting_gradients")
def inverting_gradients(
    *,
    tv: TV = VARIATION,
    fade: Fraction = FADE,
    steps: Count = 400,
    patience: Whole = 0,
    lr: LearningRate = STEP,
    schedule: Schedule = "cosine",
    sign: Sign = "none",
    start: Start = "normal",
    restarts: Count = 1,
    top: Whole = 0,
    median_every: Whole = 0,
    labels: str = "auto",
    mode: Literal["client", "eval"] = "client",
    basis: Literal["pixels", "whitened"] = "pixels",
    likely: Weight = 0.0,
    polish: Whole = 0,
    engine: Kind = "auto",
) -> GradientMatching:
    """Cosine matching with Adam and a total variation that fades.

    Args:
        tv: Weight of the total variation.
        fade: Fraction of that weight that is left at the end; it falls as the step size does.
        steps: Iterations of each restart.
        patience: Iterations in which the lowest matching term must fall by 1 %, or the restart ends; 0: none.
        lr: Step size of Adam.
        schedule: Of the step size.
        sign: What Adam is fed of the gradient.
        start: Where it begins; ``known_pixels``, at the true pixels that are granted, with noise elsewhere.
        restarts: Independent starts.
        top: Match only so many tensors, those with the largest norms; 0: all.
        median_every: Iterations between two 3x3 median filters; 0: none.
        labels: ``auto``, or the name of a label rule.
        mode: ``client`` simulates the client's own mode; the paper forces ``eval``.
        basis: What is free: ``pixels``, or the ``whitened`` waves of pictures, which public pictures are measured for.
        likely: Weight of how far pictures are from the mean and the spectrum of public ones.
        polish: Iterations without total variation at the end, where the matching term is near its floor by then.
        engine: ``exact`` double backward, ``frozen`` differences, or ``auto``: differences while they agree.

    Applies: to every differentiable model; weak in training mode behind deep or post-activation BatchNorm.

    Source: Geiping et al. 2020, "Inverting Gradients", arXiv:2003.14053.
    """
    if basis == "whitened" and median_every:
        raise BadSetting("A median filter smooths pixels, and basis=whitened searches waves; leave one of the two out.")
    return GradientMatching(
        priors=(TotalVariation(tv),),
        fade=fade,
        descent=Descent(lr, schedule=schedule, sign=sign),
        weighting=Largest(top) if top else None,
        median_every=median_every,
        start=start,
        steps=steps,
        patience=patience,
        restarts=restarts,
        labels=labels,
        mode=mode,
        stages=(Whitened() if basis == "whitened" else Pixels(),),
        measured=(Likely(likely),) if likely else (),
        polish=polish,
        engine=engine,
    )


def floor_of_search(attack: Attack) -> GradientMatching:
    """The floor of a closed form: that of the plain search, as without an update no equation is left to solve."""
    return inverting_gradients().blind()


@attacks.add("inverting_gradients_paper")
def inverting_gradients_paper(
    *, tv: Weight = 1e-4, steps: Count = 24_000, restarts: Count = 1, labels: str = "auto"
) -> GradientMatching:
    """Cosine matching as published: inference mode, signed Adam of 0.1 in steps, 24,000 iterations.

    Args:
        tv: Weight of the total variation.
        steps: Iterations of each restart.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: to clients in inference mode; a training-mode client is simulated in the wrong mode.

    Source: Geiping et al. 2020, "Inverting Gradients", arXiv:2003.14053, and the settings of its code.
    """
    return GradientMatching(
        priors=(TotalVariation(tv),),
        descent=Descent(0.1, schedule="step"),
        steps=steps,
        restarts=restarts,
        labels=labels,
        mode="eval",
    )


@attacks.add("inverting_gradients_breaching")
def inverting_gradients_breaching(
    *, tv: Weight = 0.2, steps: Count = 24_000, restarts: Count = 1, labels: str = "auto"
) -> GradientMatching:
    """Cosine matching in the settings of breaching: a stronger total variation that smooths borders too.

    Args:
        tv: Weight of the total variation.
        steps: Iterations of each restart.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: as inverting_gradients.

    Source: Geiping et al. 2020, arXiv:2003.14053, in the settings "invertinggradients" of breaching 0.1.2.
    """
    return GradientMatching(
        priors=(SmoothVariation(tv, p=1.0, q=1.0, opponents=False),),
        descent=Descent(0.1, schedule="step"),
        steps=steps,
        restarts=restarts,
        labels=labels,
    )
