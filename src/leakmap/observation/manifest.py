"""The JSON manifest in the header of an Observation file, as typed models: sizes and names are checked before use."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1
COUNT_LIMIT = 2**20
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


class RuleManifest(_Strict):
    """The local rule."""

    share: Literal["gradient", "delta"]
    mode: Literal["train", "eval"]
    epochs: Annotated[int, Field(ge=1, le=10**4)]
    batch_size: Annotated[int, Field(ge=1, le=COUNT_LIMIT)] | None
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    momentum: float
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    optimizer: Literal["sgd", "adam", "adamw"]
    dropout: float | None
    accumulate: Annotated[int, Field(ge=1, le=10**4)] = 1
    shuffle: bool = False
    defence: _Name = "none"


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
