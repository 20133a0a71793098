"""No defence."""

from leakmap.defences import NONE, Defence, defences


@defences.add(NONE)
def none() -> Defence:
    """The update as it is.

    Source: federated averaging, McMahan et al. 2017, arXiv:1602.05629.
    """
    return Defence()
