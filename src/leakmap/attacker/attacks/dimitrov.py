"""Federated averaging over several epochs in an unknown order."""

from leakmap.attacker.attacks import attacks
from leakmap.attacker.buffers import assumed_rule
from leakmap.attacker.matching.decoders import PixelsOfEpochs
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.priors import SamePictures, TotalVariation
from leakmap.attacker.matching.settings import TV, Count, LearningRate, Weight
from leakmap.attacker.matching.weighting import ByDepth
from leakmap.observation.observation import Observation


@attacks.add("dimitrov")
def dimitrov(
    *,
    tv: TV = 1e-2,
    same: Weight = 1.0,
    by_depth: bool = False,
    steps: Count = 400,
    lr: LearningRate = 0.1,
    restarts: Count = 1,
    labels: str = "auto",
) -> GradientMatching:
    """Cosine matching of all local steps, other pictures for each epoch, tied by an order-invariant prior.

    The pictures of all epochs are matched to each other at the end and averaged. Without the local rule, or with one
    epoch, it is plain cosine matching.

    Args:
        tv: Weight of the total variation; published is 2e-4.
        same: Weight of the order-invariant prior; published is 6.075 for another scale of the matching term.
        by_depth: Whether the first tensors weigh exponentially more, as published.
        steps: Iterations of each restart.
        lr: Step size of Adam.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: to clients that shuffle mini-batches over several epochs; its cost grows with their number.

    Source: Dimitrov et al. 2022, "Data Leakage in Federated Averaging", arXiv:2206.12395.
    """
    return GradientMatching(
        priors=(TotalVariation(tv), SamePictures(same)),
        stages=(PixelsOfEpochs(),),
        weighting=ByDepth("exponential") if by_depth else None,
        descent=Descent(lr),
        steps=steps,
        restarts=restarts,
        labels=labels,
        unless=order_is_known,
    )


def order_is_known(observation: Observation) -> str:
    """Why there are no epochs to tell apart; empty if there are."""
    rule, count = assumed_rule(observation).rule, observation.count or 1
    mixed = rule.shuffle and rule.epochs > 1 and (rule.batch_size or count) < count
    return "" if mixed else "no mini-batches are shuffled from epoch to epoch"
