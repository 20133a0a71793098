"""From coarse to fine."""

from leakmap.attacker.attacks import attacks
from leakmap.attacker.matching.decoders import Pixels
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.priors import TotalVariation
from leakmap.attacker.matching.settings import TV, Count, LearningRate


@attacks.add("multiscale")
def multiscale(
    *,
    tv: TV = 1e-2,
    stages: Count = 7,
    steps: Count = 14_000,
    lr: LearningRate = 0.1,
    restarts: Count = 1,
    labels: str = "auto",
) -> GradientMatching:
    """Cosine matching in stages, from an eighth of the resolution to all of it.

    Coarse pictures are scaled up in front of the network, so that any architecture can be attacked; the published
    random shifts of the candidate are left out, as they move it away from what the client held.

    Args:
        tv: Weight of the total variation.
        stages: Resolutions, evenly spaced on a logarithmic scale.
        steps: Iterations of each restart, over all stages.
        lr: Step size of Adam.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: to every differentiable model.

    Source: Ghiasi et al. 2022, "Plug-In Inversion", arXiv:2201.12961; the settings "multiscale_ghiasi" of breaching.
    """
    scales = [8 ** (i / max(stages - 1, 1) - 1) for i in range(stages)] if stages > 1 else [1.0]
    return GradientMatching(
        priors=(TotalVariation(tv),),
        stages=tuple(Pixels(scale) for scale in scales),
        descent=Descent(lr),
        steps=steps,
        restarts=restarts,
        labels=labels,
    )
