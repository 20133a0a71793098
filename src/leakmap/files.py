"""Files: written whole or not at all, read with care."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from leakmap.errors import LeakmapError, StoreError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


T = TypeVar("T")


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UsageError: there is none.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UsageError(f"There is no file {str(path)!r}, which is named as part of what should run.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a disk or a quota without room."""
JSON_LIMIT = 2**24


DAMAGED = (
    *(SafetensorError, OSError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError),
    *(RecursionError, MemoryError, LeakmapError),
)
"""What a file ends in that is not what leakmap wrote."""


def written(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written under a temporary name of its own beside it, and renames that when it is on disk.

    A reader sees the old file or the new one, whoever else writes the same path. The name is hidden and ends in
    ``.part``; the file has the access rights that any new file gets, and is removed where writing fails.

    Args:
        path: The file; its folder is there.
        write: Writes the content to the path that it is given.

    Raises:
        OSError: it cannot be written; names the file, also where safetensors wrote.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        rights = os.fstat(descriptor).st_mode & 0o777
        os.close(descriptor)
        write(temporary)
        temporary.chmod(rights)  # safetensors puts a file of its own in place, which nobody else may read
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if (number := _number(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _number(error: BaseException) -> int | None:
    """The number of an error of the operating system; safetensors tells it in its text."""
    if isinstance(error, OSError):
        return error.errno
    said = re.search(r"\bcode: (\d+)|os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
    return int(said[1] or said[2]) if said else None


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes, whole or not at all."""
    written(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


CHECKSUM = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors as safetensors, whole or not at all; those that share memory are written each by itself.

    Args:
        path: The file.
        tensors: By name.
        metadata: Texts beside them; with any, also an empty set, comes the checksum that :func:`read_tensors` asks for.
    """
    from safetensors.torch import save_file

    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    told = None if metadata is None else {**metadata, CHECKSUM: checksum(own, metadata)}
    written(path, lambda temporary: save_file(own, temporary, metadata=told))


def read_tensors(path: Path, limit: int) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Reads what :func:`write_tensors` wrote with texts: the tensors by name, and the texts.

    Raises:
        ValueError: it is larger, or its checksum is another one: something in it was changed. What is no such file ends
            in any of :data:`DAMAGED`.
    """
    return _read_whole(path, limit, _read_tensors)


def read_arrays(path: Path, limit: int) -> tuple[dict[str, "NDArray[Any]"], dict[str, str]]:
    """As :func:`read_tensors`, the tensors as arrays, without importing torch."""
    return _read_whole(path, limit, _read_arrays)


def _read_whole(path: Path, limit: int, read: Callable[[Path, int], T]) -> T:
    while True:
        with path.open("rb") as there:  # held open, so that its number is no other file's meanwhile
            try:
                return read(path, limit)
            except Exception as error:
                # Another process may have put a new file there after the header was read, and before the tensors.
                if os.fstat(there.fileno()).st_ino == path.stat().st_ino:
                    raise ValueError(f"{path} cannot be read: {error}") from error


def _read_tensors(path: Path, limit: int) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    return _checked(path, limit, "pt", lambda tensor: tensor.clone(), checksum)  # aligned, as rounding depends on it


def _read_arrays(path: Path, limit: int) -> tuple[dict[str, "NDArray[Any]"], dict[str, str]]:
    def sum_of(arrays: Mapping[str, "NDArray[Any]"], texts: Mapping[str, str]) -> str:
        # As torch names their types.
        return _checksum({name: (f"torch.{one.dtype}", one.shape, one.data) for name, one in arrays.items()}, texts)

    return _checked(path, limit, "np", lambda array: array, sum_of)


def _checked(
    path: Path,
    limit: int,
    kind: str,
    own: Callable[[Any], T],
    sum_of: Callable[[Mapping[str, T], Mapping[str, str]], str],
) -> tuple[dict[str, T], dict[str, str]]:
    if path.stat().st_size > limit:
        raise ValueError(f"{path} has more than {limit} bytes")
    with safe_open(path, kind) as file:
        metadata = dict(file.metadata())
        names = list(file.keys())
        found = {name: own(file.get_tensor(name)) for name in names}
    if metadata.pop(CHECKSUM) != sum_of(found, metadata):
        raise ValueError(f"{path} was changed after it was written")
    return found, metadata


def checksum(tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> str:
    """SHA-256 of tensors and texts by name."""
    import torch

    def bytes_of(tensor: "Tensor") -> memoryview:
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data

    parts = {name: (str(one.dtype), tuple(one.shape), bytes_of(one)) for name, one in tensors.items()}
    return _checksum(parts, metadata)


def _checksum(parts: Mapping[str, tuple[str, tuple[int, ...], memoryview]], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, (kind, shape, content) in sorted(parts.items()):
        digest.update(f"\x1f{name}\x1f{kind}\x1f{shape}".encode())
        digest.update(content)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Reads JSON; None where the file is absent, too large, damaged or no file."""
    try:
        return json.loads(read_limited(path, "JSON"))
    except (StoreError, ValueError, RecursionError):
        return None


def read_typed(path: Path, kind: type[T], what: str) -> T:
    """Reads JSON that anybody may have written, checked against a type; nothing in it is run.

    Args:
        path: The file.
        kind: A dataclass or model with strict types.
        what: What the file should hold, for the message.

    Raises:
        StoreError: there is no such file, or it does not hold that.
    """
    try:
        return TypeAdapter(kind).validate_json(read_limited(path, what))
    except ValidationError as error:
        raise StoreError(refusal(error, str(path), what)) from None


def read_limited(path: Path, what: str, limit: int | None = None) -> bytes:
    """The bytes of a file that anybody may have put there.

    Args:
        path: The file.
        what: What the file should hold, for the message.
        limit: Most bytes that it may have; None: :data:`JSON_LIMIT`.

    Raises:
        StoreError: there is no such file, it is larger, or it is a pipe, which would be waited for.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise StoreError(f"{path} is no file; expected {what}.")
        if path.stat().st_size > (most := JSON_LIMIT if limit is None else limit):
            raise StoreError(f"{path} is larger than {most} bytes; expected {what}.")
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); expected {what}.") from None


def refusal(error: ValidationError, where: str, what: str) -> str:
    """The first thing that is wrong with what was read, as a sentence.

    Args:
        error: What the check said.
        where: What was read.
        what: What it should hold.
    """
    first = error.errors(include_url=False)[0]
    place = f"{'.'.join(map(str, first['loc']))[:80]!r}: " if first["loc"] else ""
    return f"{where} does not hold {what} ({place}{first['msg'].removeprefix('Value error, ')}); make it again."


def finite(value: Any) -> Any:
    """The same JSON value with None in place of numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
