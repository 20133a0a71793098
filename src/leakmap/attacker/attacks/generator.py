"""Pictures painted by a network."""

from leakmap.attacker.attacks import attacks
from leakmap.attacker.matching.decoders import Decoder
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.generators import Pretrained, Untrained
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.priors import TotalVariation
from leakmap.attacker.matching.settings import Count, Positive, Weight


@attacks.add("generator")
def generator(
    *,
    build: str = "",
    tv: Weight = 0.0,
    width: Count = 64,
    steps: Count = 2_000,
    lr: Positive = 1e-3,
    restarts: Count = 1,
    labels: str = "auto",
) -> GradientMatching:
    """Cosine matching over the weights of an untrained network that paints the pictures, or over a generator of yours.

    A pretrained generator is searched in two stages, first its latent input, then its weights. If it was trained on the
    clients' pictures, the result is not evidence; the floor without the update shows what it paints by itself.

    Args:
        build: ``file.py:function`` for a generator of your own: ``function(task)`` returns a module with an attribute
            ``latent`` (shape of one input) that maps ``(N, *latent)`` to pictures in [0, 1]; empty: an untrained one.
        tv: Weight of the total variation.
        width: Channels of the untrained network.
        steps: Iterations of each restart.
        lr: Step size of Adam for weights; latent inputs take 50 times as much.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: to every differentiable model.

    Source: Zhang et al. 2023, "Generative Gradient Inversion via Over-Parameterized Networks"; Ulyanov et al. 2018,
    arXiv:1711.10925; for pretrained ones Jeon et al. 2021, arXiv:2110.14962.
    """
    stages: tuple[Decoder, ...] = (Untrained(width),)
    if build:
        stages = (Pretrained(build, "latent"), Pretrained(build, "weights"))
    return GradientMatching(
        priors=(TotalVariation(tv),) if tv else (),
        stages=stages,
        descent=Descent(lr, sign="none", schedule="constant"),
        steps=steps,
        restarts=restarts,
        labels=labels,
    )
