"""The types that settings of attacks share: what a value may be, and where a rehearsal looks for it."""

from typing import Annotated

from pydantic import Field

from leakmap.registry import Tunable

Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
TV = Annotated[Weight, Tunable(1e-4, 1.0)]
LearningRate = Annotated[Positive, Tunable(3e-2, 1.0)]
StatisticsWeight = Annotated[Weight, Tunable(1e-4, 1.0)]
