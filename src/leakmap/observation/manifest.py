"""The JSON manifest in the header of an Observation file, as typed models: sizes and names are checked before use."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from leakmap.local_rule import COUNT_LIMIT, LocalRule
from leakmap.problem import Target
from leakmap.registry.declared import file_model

SCHEMA = 1
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
DTYPES = {str(dtype): dtype for dtype in (*FLOATS, *WHOLE)}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


_Name = Annotated[str, Field(min_length=1, max_length=512)]
_Numbers = Annotated[list[float], Field(min_length=1, max_length=1024)]


class SpecManifest(_Strict):
    """How an algorithm is written down."""

    name: _Name
    params: dict[str, str | int | float | bool | None] = Field(max_length=64)


class TaskManifest(_Strict):
    """The public facts about the problem."""

    shape: Annotated[list[Annotated[int, Field(ge=1, le=65536)]], Field(min_length=3, max_length=3)]
    classes: Annotated[int, Field(ge=1, le=10**7)]
    mean: _Numbers
    std: _Numbers
    loss: SpecManifest
    objects: Annotated[int, Field(ge=0, le=10**4)] = 0
    target: Target = "class"
    output: Annotated[str, Field(max_length=512)] = ""


class RuleManifest(file_model(LocalRule, strict=True)):
    """The local rule; its fields are those that are declared there."""


class TensorManifest(_Strict):
    """One tensor of the file."""

    name: _Name
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=16)]
    dtype: _Name


class Manifest(_Strict):
    """Everything but the tensors."""

    schema_: Literal[1] = Field(alias="schema")
    task: TaskManifest
    model: SpecManifest
    update: Literal["gradient", "delta"]
    count: Annotated[int, Field(ge=1, le=COUNT_LIMIT)] | None
    rule: RuleManifest | None
    granted: Annotated[list[_Name], Field(max_length=16)]
    tensors: Annotated[list[TensorManifest], Field(max_length=10**6)]
