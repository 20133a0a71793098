"""Client privacy leakage."""

from leakmap.attacker.attacks import attacks
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.settings import Count, Positive, Weight
from leakmap.attacker.matching.terms import TaskLoss


@attacks.add("cpl")
def cpl(
    *, loss: Weight = 0.01, steps: Count = 300, lr: Positive = 1.0, restarts: Count = 1, labels: str = "auto"
) -> GradientMatching:
    """Squared distance and the client's own loss, L-BFGS from tiled noise, in the box.

    Tiles are 4x4; published are 16x16, half of a CIFAR picture.

    Args:
        loss: Weight of the loss; published is 1 beside a matching term that is not scaled by the update.
        steps: Outer iterations, of up to 20 inner ones each.
        lr: Step size of L-BFGS.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule.

    Applies: to small models and single examples.

    Source: Wei et al. 2020, "A Framework for Evaluating Gradient Leakage Attacks in Federated Learning",
    arXiv:2004.10397.
    """
    return GradientMatching(
        distance="squared",
        priors=(),
        terms=(TaskLoss(loss),),
        descent=Descent(lr, "lbfgs", "constant"),
        start="tiles",
        steps=steps,
        restarts=restarts,
        labels=labels,
        leaky_model="convnet,width=16,activation=tanh",
    )
