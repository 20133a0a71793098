"""Weights: read from files, compared with an architecture, written."""

import pickle
import re
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
from leakmap.models.naming import matched, names_of

WEIGHTS_LIMIT = 16 * 2**30


MOST_TENSORS = 10**5


LONGEST_NAME = 500
CONTAINERS = ("state_dict", "model_state_dict", "model_weights", "model", "net", "weights")
"""Under what a checkpoint may hold the weights."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)", re.ASCII)
"""Where torch names the Python object that it refused."""


def fit_weights(module: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Loads ``weights`` into ``module``, by name as :func:`leakmap.models.naming.matched` has them.

    BatchNorm's ``num_batches_tracked``, which old checkpoints lack, may be missing.

    Raises:
        ModelError: names are missing or unknown, or shapes differ; one sentence says what does not fit.
    """
    names = names_of(module)
    weights = names.whole(matched(weights, names, None, where))
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

    A checkpoint may hold the state dict itself or hold it under one of :data:`CONTAINERS`. A list of tensors, or one
    tensor, gets numbers from 0 on as names. Names stay as they are, see :func:`leakmap.models.naming.matched`.

    Raises:
        ModelError: the file is absent, too large, damaged, or holds anything else than tensors.
    """
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}.")
    if (size := path.stat().st_size) > WEIGHTS_LIMIT:
        raise ModelError(f"{path} has {size} bytes; weights files of at most {WEIGHTS_LIMIT} bytes are read.")
    try:
        state = load_file(path) if _is_safetensors(path) else _checkpoint(path)
        _check_state(state, 2 * size + 2**20)
    except pickle.UnpicklingError as error:
        held = _GLOBAL.search(str(error))
        if held is None and not _is_pickle(path):
            raise ModelError(
                f"{path} cannot be read as weights: it is neither safetensors nor a checkpoint of torch nor arrays of "
                "NumPy, or it is damaged."
            ) from None
        raise ModelError(
            f"{path} cannot be read as weights: it is a pickle of Python objects"
            f"{f' ({held[1][:80]})' if held else ''}, and none is built from a file, as building one can run code. "
            "Save tensors alone: torch.save(model.state_dict(), FILE), or np.savez(FILE, **arrays)."
        ) from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"{path} cannot be read as weights ({reason[:LONGEST_NAME]}); expected tensors by name."
        ) from None
    return state


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes weights as safetensors with their checksum, and makes the folder if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, weights, {})


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def _checkpoint(path: Path) -> dict[str, Tensor]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ModelError("it is packed, which torch.save does not do")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    while isinstance(state, dict) and (key := next((k for k in CONTAINERS if _holds(state.get(k))), None)) is not None:
        state = state[key]
    if isinstance(state, Tensor):
        state = [state]
    if isinstance(state, list | tuple):
        state = {str(i): value for i, value in enumerate(state)}
    if not isinstance(state, dict) or not state:
        raise ModelError("it does not hold tensors by name; save model.state_dict()")
    return state


def _holds(value: Any) -> bool:
    """Whether an entry of a checkpoint holds weights, by name or as a list."""
    return isinstance(value, dict) or (isinstance(value, list | tuple) and all(isinstance(v, Tensor) for v in value))


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
