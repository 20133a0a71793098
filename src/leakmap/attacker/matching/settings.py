"""The types that settings of attacks share: what a value may be, and where a rehearsal looks for it."""

from typing import Annotated

from pydantic import Field

from leakmap.registry.spec import Tunable

Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**7)]
Whole = Annotated[int, Field(ge=0)]
TV = Annotated[Weight, Tunable(1e-3, 3.0)]
LearningRate = Annotated[Positive, Tunable(1e-2, 10.0)]
StatisticsWeight = Annotated[Weight, Tunable(1e-4, 1.0)]

VARIATION, FADE, STEP = 0.3, 0.03, 3.0
"""Weight of the total variation, the share of it that is left at the end, and step size of Adam: the setting with the
best mean rank over networks in ``benchmarks.descent``."""
