"""Weights: read from files, compared with an architecture, written."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from leakmap.errors import ModelError
from leakmap.files import write_tensors

WEIGHTS_LIMIT = 16 * 2**30


MOST_TENSORS = 10**5


LONGEST_NAME = 500


def fit_weights(module: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Loads ``weights`` into ``module``; one sentence says what does not fit.

    BatchNorm's ``num_batches_tracked``, which old checkpoints lack, may be missing.

    Raises:
        ModelError: names are missing or unknown, or shapes differ.
    """
    compare_weights(module, weights, where=where)
    own = module.state_dict()
    module.load_state_dict({name: weights.get(name, tensor) for name, tensor in own.items()})


def compare_weights(module: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Checks names and shapes against a module, which may be on the meta device.

    Raises:
        ModelError: names are missing or unknown, or shapes differ.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in own]
    if missing or unknown:
        parts = [f"{len(missing)} missing (first {missing[0]!r})"] if missing else []
        parts += [f"{len(unknown)} unknown (first {unknown[0]!r})"] if unknown else []
        raise ModelError(f"{where} do not fit the architecture: {' and '.join(parts)} of {len(own)} names.")
    for name, tensor in own.items():
        if name in weights and weights[name].shape != tensor.shape:
            got, expected = tuple(weights[name].shape), tuple(tensor.shape)
            raise ModelError(f"{where} do not fit the architecture: {name!r} has shape {got}, not {expected}.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from safetensors or from a checkpoint, never running code from it.

    A checkpoint may hold the state dict itself or hold it under ``state_dict``, ``model`` or ``model_state_dict``; a
    leading ``module.`` of every name (DataParallel) is removed.

    Raises:
        ModelError: the file is absent, too large, damaged, or holds anything else than tensors by name.
    """
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}.")
    if (size := path.stat().st_size) > WEIGHTS_LIMIT:
        raise ModelError(f"{path} has {size} bytes; weights files of at most {WEIGHTS_LIMIT} bytes are read.")
    try:
        state = load_file(path) if _is_safetensors(path) else _checkpoint(path)
        _check_state(state, 2 * size + 2**20)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"{path} cannot be read as weights ({reason[:LONGEST_NAME]}); expected tensors by name."
        ) from None
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes weights as safetensors with their checksum, and makes the folder if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, weights, {})


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _checkpoint(path: Path) -> dict[str, Tensor]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ModelError("it is packed, which torch.save does not do")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state:
        raise ModelError("it does not hold tensors by name; save model.state_dict()")
    return state


def _check_state(state: Mapping[Any, Any], most: int) -> None:
    """Refuses what is no state dict, or more than ``most`` bytes: a few can describe a tensor of any size."""
    if len(state) > MOST_TENSORS:
        raise ModelError(f"it holds {len(state)} tensors, more than {MOST_TENSORS}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelError("it does not hold tensors by name; save model.state_dict()")
        if len(name) > LONGEST_NAME:
            raise ModelError(f"a name in it has {len(name)} characters, more than {LONGEST_NAME}")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise ModelError(f"{name!r} in it is sparse, quantised or empty; save plain tensors")
    if (found := sum(tensor.numel() * tensor.element_size() for tensor in state.values())) > most:
        raise ModelError(f"it describes tensors of {found} bytes, which it cannot hold")
    for name, tensor in state.items():
        if torch.isnan(tensor).any():
            raise ModelError(f"it has values in {name!r} that are not numbers")
