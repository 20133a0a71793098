"""Whole files that would run something, or take all memory."""

import os
import pickle
import struct
import tempfile
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.payloads import checkpoint, npy, npz, zipped

SIDE = 20_000
"""Of a picture of zeros."""


class Bomb:
    """Leaves a marker where it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, (f"open({str(marker())!r}, 'w').close()",)


def marker() -> Path:
    """The file that no case may leave."""
    return Path(tempfile.gettempdir()) / f"leakmap-fuzz-{os.getuid()}-ran"


class Large:
    """Asks for memory where it is unpickled."""

    def __init__(self, kind: Any, *arguments: Any):
        self.kind, self.arguments = kind, arguments

    def __reduce__(self) -> Any:
        return self.kind, self.arguments


@cache
def zeros() -> bytes:
    """A deflated picture of ``SIDE`` lines of zeros, in the format of zlib."""
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    lines = packer.compress(bytes(100 * (SIDE + 1))) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (SIDE * (SIDE + 1) % 65521) << 16 | 1
    return b"\x78\x01" + lines * (SIDE // 100) + packer.flush() + checksum.to_bytes(4, "big")


@cache
def lzma_bomb() -> bytes:
    """An archive of an entry that says that it holds 1,000 bytes, unpacks to 32 MiB, and asks for 4 GiB to do so."""
    data = bytearray(zipped([("arr_0.npy", npy(np.zeros(2**22)))], zipfile.ZIP_LZMA))
    dictionary = 30 + len("arr_0.npy") + 4 + 1
    data[dictionary : dictionary + 4] = b"\xff" * 4
    return bytes(_declared(data, 1000))


@cache
def deflated_bomb(name: str) -> bytes:
    """An archive of an entry of 400 MB of zeros."""
    size, packed = SIDE * (SIDE + 1), zeros()[2:-4]
    data = bytearray(zipped([(name, packed)]))
    for signature, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        place = data.rindex(signature)
        struct.pack_into("<H", data, place + at, zipfile.ZIP_DEFLATED)
    return bytes(_declared(data, size))


def _declared(data: bytearray, size: int) -> bytearray:
    """The archive with another unpacked size of its only entry."""
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.rindex(signature) + at, size)
    return data


def bombs() -> list[bytes]:
    """Whole files that would run something or take all memory."""
    return [
        pickle.dumps(Bomb()),
        pickle.dumps({"state_dict": Bomb()}, protocol=0),
        checkpoint({"a": Bomb()}),
        checkpoint(Bomb(), _use_new_zipfile_serialization=False),
        npy(np.array([Bomb()], dtype=object)),
        npz({"arr_0": np.array([Bomb()], dtype=object)}),
        lzma_bomb(),
        deflated_bomb("arr_0.npy"),
        deflated_bomb("archive/data/0"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n(/tmp/ran) (w) file\nshowpage\n",
    ]
