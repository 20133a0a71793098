"""What an architecture is made of, read off one recorded forward pass, and what that means for leakage.

:func:`read_traits` looks at a network, :func:`advise` says what is known of each trait, and :func:`probe_update`
what a client's update depends on. Nothing is attacked and nothing here is a verdict.
"""

from leakmap.inspection.advice import Advice, advise
from leakmap.inspection.flow import drawn
from leakmap.inspection.inspection import Inspection, inspect_model
from leakmap.inspection.probe import Probe, probe_update
from leakmap.inspection.reading import read_traits
from leakmap.inspection.traits import Noise, Norm, Stage, Stem, Traits

__all__ = [
    "Advice",
    "Inspection",
    "Noise",
    "Norm",
    "Probe",
    "Stage",
    "Stem",
    "Traits",
    "advise",
    "drawn",
    "inspect_model",
    "probe_update",
    "read_traits",
]
