"""Saved payloads: state dicts and lists of arrays in the formats that federations write, and NVFlare's objects."""

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from leakmap.capturing.capture import Kind, capture, tensors_of
from leakmap.capturing.facts import LONGEST, read_facts
from leakmap.capturing.typed import typed_code
from leakmap.errors import BadSetting, LeakmapError, ObservationError, StoreError
from leakmap.files import read_limited
from leakmap.models.weights import LONGEST_NAME, MOST_TENSORS, WEIGHTS_LIMIT, read_weights
from leakmap.observation.observation import Observation
from leakmap.registry.spec import Spec

ROOM, RATIO = 2**28, 100
"""An archive may unpack to 256 MiB whatever its size, and beyond that to 100 times its size."""
_NUMPY = b"\x93NUMPY"
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What NumPy writes; Python unpacks other methods without regard to the size that is declared."""
_HEADERS: dict[Any, Callable[[Any], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_KINDS: dict[str, Kind] = {"WEIGHTS": "weights", "FULL": "weights", "WEIGHT_DIFF": "delta", "DIFF": "delta"}


def capture_files(
    before: Path | str,
    after: Path | str,
    facts: Path | str,
    out: Path | str,
    *,
    kind: Kind = "weights",
    count: int | None = None,
    order: Path | str | None = None,
    buffers: bool = True,
    model: str | None = None,
    loss: str | None = None,
) -> Observation:
    """Makes an Observation file of saved payloads: :func:`leakmap.capture` of files.

    Args:
        before: What the server sent; see :func:`read_state` for the formats.
        after: What the client returned.
        facts: TOML file with what the payload cannot tell.
        out: The Observation file to write.
        kind: What ``after`` holds.
        count: Pictures of the client, in place of that of the facts.
        order: File with the names of a list in an order of its own; None for an order of the architecture.
        buffers: Whether the buffers that came back are kept.
        model: The user's own ``file.py:function``, where the facts name one.
        loss: The user's own ``file.py:function``, where the facts name one.

    Raises:
        BadSetting: the facts or the names are not sound.
        ModelError: a file cannot be read as weights, the weights do not fit the architecture, or the facts name code of
            the user's own that was not given.
        ObservationError: what came back does not fit the weights, or is not finite.
    """
    told = read_facts(facts)
    told = told.model_copy(update={name: own for name, own in (("model", model), ("loss", loss)) if own is not None})
    mode = "train" if told.rule is None else told.rule.mode
    code = typed_code(facts, told.task, Spec.parse(told.model), model, loss, mode)
    return capture(
        read_state(before),
        read_state(after),
        told,
        kind=kind,
        count=count,
        order=None if order is None else read_order(order),
        buffers=buffers,
        code=code,
        file=out,
    )


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Reads what a server sent or a client returned; nothing in the file is run.

    safetensors; a checkpoint of torch, see :func:`leakmap.models.weights.read_weights`; ``.npz`` with arrays by name,
    by number, or as ``np.savez(file, *arrays)`` writes them; or ``.npy`` with one array after another. The content of
    the file decides its format; its name does not matter.

    Args:
        path: The file.

    Returns:
        Tensors by name; those of a list by number, which :func:`leakmap.capture` names.

    Raises:
        ModelError: the file is absent or cannot be read as weights.
        ObservationError: it cannot be read as arrays.
    """
    path = Path(path)
    arrays = _arrays(path)
    if arrays is None:
        return read_weights(path)
    try:
        return tensors_of(arrays)
    except ObservationError as error:
        raise ObservationError(f"{path}: {error}") from None


def read_order(path: Path | str) -> list[str]:
    """Reads names from a text file, one on each line, such as ``"\\n".join(model.state_dict())``.

    Raises:
        BadSetting: the file is absent or too large, or its lines are not different names.
    """
    path = Path(path)
    try:
        names = read_limited(path, "one name on each line", 8 * LONGEST).decode("utf-8").split()
    except (StoreError, UnicodeDecodeError) as error:
        raise BadSetting(f"The names in {path} cannot be read: {str(error).rstrip('.')}.") from None
    if not names or len(set(names)) < len(names) or max(map(len, names)) > LONGEST_NAME:
        raise BadSetting(f"{path} holds {len(names)} names, {len(set(names))} of them different; expected each once.")
    return names


def from_nvflare(dxo: Any) -> tuple[Kind, dict[str, Tensor], int | None]:
    """What a client of NVFlare returned: kind, tensors by name, and its number of local steps if it says so.

    The steps are ``NUM_STEPS_CURRENT_ROUND``, by which NVFlare weighs clients: optimiser steps, not pictures. Only
    where a client of yours reports its pictures there it is the ``count`` of :func:`leakmap.capture`.

    Args:
        dxo: A ``DXO`` of the kind ``WEIGHTS``, ``WEIGHT_DIFF`` or ``FL_MODEL``, an ``FLModel``, a ``Shareable`` with
            a DXO in it, or the mapping that one of them is encoded as.

    Raises:
        ObservationError: it is nothing of that, or a filter encrypted or packed its values.
    """
    found = _field(dxo, "DXO", dxo)
    told = _field(found, "data_kind", _field(found, "kind"))
    if told == "FL_MODEL":
        found = _field(found, "data")
    if told is None or told == "FL_MODEL":
        told, data = _field(found, "params_type"), _field(found, "params")
    else:
        data = _field(found, "data")
    meta, kind = _field(found, "meta", {}), _KINDS.get(str(getattr(told, "value", told)))
    if kind is None or not isinstance(data, Mapping) or not isinstance(meta, Mapping):
        raise ObservationError(
            f"A DXO of the kind {str(told)[:80]!r} with {type(data).__name__} as data is no update; expected WEIGHTS "
            "or WEIGHT_DIFF, or an FLModel, with arrays by name."
        )
    if how := meta.get("PROCESSED_ALGORITHM"):
        raise ObservationError(
            f"The DXO went through {str(how)[:80]!r}, such as encryption; give what the server decrypts, or an update "
            "from before that filter."
        )
    steps = meta.get("NUM_STEPS_CURRENT_ROUND")
    count = int(steps) if isinstance(steps, int | float | np.integer) and 1 <= steps <= 2**53 else None
    return kind, tensors_of(data), count


def _field(found: Any, name: str, default: Any = None) -> Any:
    value = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
    return default if value is None else value


def read_npz(path: Path, limit: int = WEIGHTS_LIMIT) -> dict[str, np.ndarray]:
    """Reads the arrays of a NumPy archive; sizes are compared before memory is taken.

    Args:
        path: The file.
        limit: Most bytes that it may unpack to.

    Raises:
        ValueError: it holds anything else, or more than its size can account for.
        zipfile.BadZipFile: it is damaged; other exceptions of zipfile and NumPy come through too.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename.removesuffix(".npy") for entry in entries]
        if len(names) > MOST_TENSORS or len(set(names)) < len(names) or max(map(len, names), default=0) > LONGEST_NAME:
            raise ValueError(f"it holds {len(names)} entries, too many, or names too long or twice")
        unpacked, most = sum(entry.file_size for entry in entries), ROOM + RATIO * path.stat().st_size
        if unpacked > min(limit, most):
            raise ValueError(f"it unpacks to {unpacked} bytes, more than {min(limit, most)}; save it with np.savez")
        if not all(entry.compress_type in _PACKED for entry in entries):
            raise ValueError("it is packed by a method that NumPy does not use")
        arrays: dict[str, np.ndarray] = {}
        for name, entry in zip(names, entries, strict=True):
            with archive.open(entry) as file:
                arrays[name] = _array(file, entry.file_size)
    return arrays


def read_npy(path: Path, limit: int = WEIGHTS_LIMIT) -> np.ndarray:
    """Reads one array as ``np.save`` writes it, never a pickle.

    Args:
        path: The file.
        limit: Most bytes that it may have.

    Raises:
        ValueError: it is larger, ends early, has something behind the array, or holds Python objects.
    """
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"it has {size} bytes, more than {limit}")
    with path.open("rb") as file:
        array = _array(file, size)
        if file.tell() < size:
            raise ValueError("something follows its array; expected one array, as np.save writes it")
    return array


def _arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file of NumPy's, a list as ``arr_0``, ``arr_1``, …; None if it is not one."""
    if not path.is_file() or (size := path.stat().st_size) > WEIGHTS_LIMIT:
        return None
    try:
        with path.open("rb") as file:
            if file.read(len(_NUMPY)) != _NUMPY:
                return read_npz(path) if _is_npz(path) else None
            file.seek(0)
            arrays: dict[str, np.ndarray] = {}
            while file.tell() < size:
                if len(arrays) == MOST_TENSORS:
                    raise ValueError(f"it holds more than {MOST_TENSORS} arrays")
                arrays[f"arr_{len(arrays)}"] = _array(file, size)
            return arrays
    except LeakmapError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ObservationError(f"{path} cannot be read as arrays: {reason[:LONGEST_NAME]}.") from None


def _is_npz(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(name.endswith(".pkl") for name in archive.namelist())


def _array(file: IO[bytes], end: int) -> np.ndarray:
    """One array in NumPy's format, which must lie before ``end``."""
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an array is in version {version} of NumPy's format, which only records need")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("an array holds Python objects, which are never read; save a list with np.savez(file, *list)")
    if min(shape, default=0) < 0 or len(shape) > 16 or math.prod(shape) * dtype.itemsize > end - file.tell():
        raise ValueError(f"an array claims the shape {str(shape)[:80]} of {dtype.str}, which the file cannot hold")
    file.seek(start)
    return np.lib.format.read_array(file, allow_pickle=False)
