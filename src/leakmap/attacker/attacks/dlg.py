"""The first attacks: squared distance and L-BFGS, with searched or inferred labels."""

from dataclasses import replace

from leakmap.attacker.attacks import attacks
from leakmap.attacker.matching.decoders import Pixels
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.settings import Count, Positive


@attacks.add("dlg")
def dlg(*, steps: Count = 300, lr: Positive = 1.0, restarts: Count = 1) -> GradientMatching:
    """Deep leakage from gradients: pictures and soft labels searched together with L-BFGS, no prior, no box.

    The line search (strong Wolfe) is not in the publication; without it most runs leave the finite numbers.

    Args:
        steps: Outer iterations, of up to 20 inner ones each.
        lr: Step size of L-BFGS.
        restarts: Independent starts.

    Applies: to small smooth models (sigmoid, tanh) and single examples; rarely converges elsewhere.

    Source: Zhu et al. 2019, "Deep Leakage from Gradients", arXiv:1906.08935.
    """
    return GradientMatching(
        distance="squared",
        priors=(),
        stages=(Pixels(box=False),),
        descent=Descent(lr, "lbfgs", "constant"),
        soft_labels=True,
        steps=steps,
        restarts=restarts,
        leaky_model="convnet,width=16,activation=tanh",
    )


@attacks.add("idlg")
def idlg(*, steps: Count = 300, lr: Positive = 1.0, restarts: Count = 1, labels: str = "auto") -> GradientMatching:
    """Improved deep leakage: as dlg, with labels that are inferred first.

    Args:
        steps: Outer iterations, of up to 20 inner ones each.
        lr: Step size of L-BFGS.
        restarts: Independent starts.
        labels: ``auto``, or the name of a label rule; the publication reads the sign of the last layer, one example.

    Applies: as dlg.

    Source: Zhao et al. 2020, "iDLG: Improved Deep Leakage from Gradients", arXiv:2001.02610.
    """
    return replace(dlg(steps=steps, lr=lr, restarts=restarts), soft_labels=False, labels=labels)
