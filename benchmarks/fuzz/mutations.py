"""What is done to a file: changes of its bytes, its text or tree, or of what its container holds."""

import copy
import io
import json
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save

from benchmarks.fuzz.bombs import SIDE, Bomb, Large, bombs, zeros
from benchmarks.fuzz.payloads import checkpoint, npy, picture, unzipped, zipped
from benchmarks.fuzz.readers import readers
from leakmap.files import CHECKSUM, checksum

BEYOND = 40 * 2**30
"""Bytes of a file that no reader takes; it is sparse."""
Hostile = bytes | int | None
"""Content; bytes of a sparse file; or a folder in its place."""
Mutation = Callable[[random.Random, bytes], Hostile]


# Mutations of bytes


def _flip(r: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[_place(r, data)] ^= 1 << r.randrange(8)
    return bytes(changed)


def _place(r: random.Random, data: bytes) -> int:
    """Anywhere; often near an end, where headers are."""
    where = r.choice((len(data), min(len(data), 600), -min(len(data), 600)))
    return r.randrange(where) if where > 0 else len(data) - 1 - r.randrange(-where)


def _cut(r: random.Random, data: bytes) -> bytes:
    return data[: r.randrange(len(data) + 1)]


def _double(r: random.Random, data: bytes) -> bytes:
    start, end = sorted((r.randrange(len(data) + 1), r.randrange(len(data) + 1)))
    return data[:end] + data[start:end] + data[end:]


def _drop(r: random.Random, data: bytes) -> bytes:
    start = r.randrange(len(data) + 1)
    return data[:start] + data[start + r.randrange(1, 64) :]


def _insert(r: random.Random, data: bytes) -> bytes:
    start = r.randrange(len(data) + 1)
    return data[:start] + r.randbytes(r.choice((1, 8, 500))) + data[start:]


def _swap(r: random.Random, data: bytes) -> bytes:
    size = r.randrange(1, max(2, len(data) // 3))
    a, b = sorted((r.randrange(len(data) + 1), r.randrange(len(data) + 1)))
    b = max(b, a + size)
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def _extreme(r: random.Random, data: bytes) -> bytes:
    size = r.choice((1, 2, 4, 8))
    value = r.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 2 ** (4 * size)))
    start = _place(r, data) if data else 0
    return data[:start] + value.to_bytes(size, r.choice(("little", "big"))) + data[start + size :]


RAW: dict[str, Mutation] = {
    "flipped bits": _flip, "cut off": _cut, "a part twice": _double, "a part left out": _drop,
    "something inserted": _insert, "parts swapped": _swap, "an extreme number": _extreme,
}  # fmt: skip


def _whole(r: random.Random, data: bytes) -> Hostile:
    other = r.choice([file for reader in readers() for file in reader.files.values()])
    return r.choice((b"", r.randbytes(300), other, BEYOND, None, *bombs()))


# Mutations of texts and trees

NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30, -(10**30), 10**400),
    *(0.5, -0.5, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"), True, None),
)
TEXTS = (
    *("", "a", "a" * 100_000, "\x00", "\n", "é", "\U0001f642", "\u202e", "'\"", "../../etc/passwd", "/etc/passwd"),
    *("evil.py:run", "mlp,hidden=99999999", "resnet,width=65536,blocks=9-9-9-9", "mlp,a=" + "[" * 3000, "x,y", "nan"),
    *("9" * 5000, "a." * 3000, "coco:/", "torchvision/", "torchvision/vit_h_14", ",,,", "name,=1"),
)
DEPTH = 100_000
_RAW = "@raw@"


def _value(r: random.Random) -> Any:
    kind = r.randrange(6)
    if kind < 2:
        return r.choice(NUMBERS)
    if kind < 4:
        return r.choice(TEXTS)
    return r.choice(([], {}, [0] * 2000, [[[[[]]]]], {"a": {"b": None}}, [r.choice(NUMBERS)] * 3, _RAW))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container with every key of it."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        found += [(node, key) for key in keys]
        left += [node[key] for key in keys]
    return found


def _grown(r: random.Random, tree: Any) -> Any:
    """A tree with one thing changed."""
    tree = copy.deepcopy(tree)
    places = _places(tree)
    if not places or r.random() < 0.05:
        return _value(r)
    node, key = r.choice(places)
    what = r.randrange(7)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node, dict):
        node[str(r.choice(TEXTS))] = node.pop(key)
    elif what == 2 and isinstance(node, dict):
        node[r.choice(("extra", "__class__", "a" * 2000))] = _value(r)
    elif what == 3 and isinstance(node, list):
        node += [node[key]] * r.choice((1, 100, 20_000))
    elif what == 4:
        other, place = r.choice(places)
        node[key], other[place] = copy.deepcopy(other[place]), node[key]
    else:
        node[key] = _value(r)
    return tree


def _text_of(r: random.Random, tree: Any) -> str:
    raw = r.choice(
        ("[" * DEPTH, "[" * 800 + "]" * 800, '{"a":' * 800 + "1" + "}" * 800, "9" * 5000, "-", "NaN", "1e9999")
    )
    return json.dumps(_grown(r, tree)).replace(f'"{_RAW}"', raw)


def _json(r: random.Random, data: bytes) -> bytes:
    return _text_of(r, json.loads(data)).encode("utf-8", "surrogatepass")


LINES = (
    *(
        "a = " + "[" * DEPTH,
        "a = " + "[" * 300 + "]" * 300,
        "a = {b = " * 400,
        "a = " + "9" * 5000,
        "[" + "a." * 9000 + "a]",
    ),
    *(
        "a" + ".a" * 30_000 + " = 1",
        "[[x]]\n" * 20_000,
        "a = 1979-05-27T07:32:00Z",
        'a = """',
        "a = 'b",
        "= 1",
        "a = \x01",
    ),
    *(
        "a = [" + "0," * 40_000 + "]",
        '"' + "a" * 50_000 + '" = 1',
        "a = 0x" + "f" * 4000,
        "a = 1e400",
        "a = inf",
        "a = nan",
    ),
    *(
        "seed = [" + ",".join(map(str, range(400))) + "]",
        "[[exclude]]\nmodel = 'wide'\n" * 3000,
        "a: &a [b, b]\n" * 3000,
    ),
    *(
        "names: " + "[" * 20_000,
        "names: &a [*a]",
        "names: !!python/object/apply:os.system ['touch /tmp/ran']",
        "? [a]: b",
    ),
    *("names: {" + "a: {" * 1500, "- a\n" * 60_000, "\t", "\ufeff", "%YAML 9", "--- !<x> |", "a: *b", "<<: [a]"),
    *("0 nan inf 0.5 0.5", "0 0.5 0.5 1e400 0.5", "99999999999 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1", "0 " * 90_000),
    *(
        "0 0.5 0.5 0.1 0.1\n" * 3000,
        "-0 0x1 0_5 ٣ 1",
        "🙂",
        "\x00",
        "a" * 500_000,
        "a.b" * 9000,
        '"a".' * 9000,
        "'a' . " * 9000,
    ),
)
"""Of every text format; most are nonsense in the others."""


def _lines(r: random.Random, data: bytes) -> bytes:
    lines = data.decode(errors="replace").splitlines() or [""]
    at = r.randrange(len(lines))
    what = r.randrange(6)
    if what == 0:
        lines[at] = r.choice(LINES)
    elif what == 1:
        lines.insert(at, r.choice(LINES))
    elif what == 2:
        lines[at:at] = [lines[r.randrange(len(lines))]] * r.choice((1, 1, 2000))
    elif what == 3:
        del lines[at]
    else:
        name, mark, _ = re.split("([=: ])", lines[at] + "= ", maxsplit=1)
        try:
            value = json.dumps(_value(r))
        except ValueError:
            value = "9" * 5000
        lines[at] = f"{name}{mark} {value.replace('NaN', 'nan').replace('Infinity', 'inf')}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# Mutations of containers


def _header(r: random.Random, data: bytes) -> bytes:
    """The header of safetensors, or the JSON in its metadata, with one thing changed."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.get("__metadata__", {})
    inner = [name for name, text in metadata.items() if text[:1] in "{["]
    if inner and r.random() < 0.7:
        name = r.choice(inner)
        metadata[name] = _text_of(r, json.loads(metadata[name]))
        text = json.dumps(header)
    else:
        text = _text_of(r, header)
    encoded = text.encode("utf-8", "surrogatepass")
    return resealed(len(encoded).to_bytes(8, "little") + encoded + data[8 + size :])


def resealed(data: bytes) -> bytes:
    """The same safetensors with the checksum of what it now holds, if it had one: so changes get behind that."""
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        if metadata.pop(CHECKSUM, None) is None:
            return data
        found = load(data)
        return save(found, metadata={**metadata, CHECKSUM: checksum(found, metadata)})
    except Exception:
        return data


def _tensors(r: random.Random, data: bytes) -> bytes:
    """Other tensors in a sound file, an Observation's manifest brought into line."""
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size]).get("__metadata__")
    found = load(data)
    name, other = r.choice(list(found)), r.choice(list(found))
    found[name], found[other] = _swapped(r, found[name], found[other])
    if r.random() < 0.2:
        found[str(r.choice(TEXTS[:3]))] = found.pop(name)
    if metadata and "leakmap" in metadata:
        manifest = json.loads(metadata["leakmap"])
        manifest["tensors"] = [
            {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype)} for name, tensor in found.items()
        ]
        metadata["leakmap"] = json.dumps(manifest)
    return resealed(save({name: tensor.contiguous().clone() for name, tensor in found.items()}, metadata=metadata))


def _swapped(r: random.Random, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = r.choice((torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool))
    full = torch.full_like(a.double(), r.choice((float("nan"), float("inf"), -1e300, 0.0, -1.0, 2.0, 1e9)))
    changes = (
        lambda: (b, a), lambda: (a.to(dtype), b), lambda: (full.to(a.dtype), b), lambda: (full.to(dtype), b),
        lambda: (torch.zeros((), dtype=a.dtype), b), lambda: (a[:0] if a.ndim else a, b), lambda: (a[None], b),
        lambda: (a.flatten(), b), lambda: (torch.zeros(0, 2**30, dtype=dtype), b),
        lambda: (a.to(torch.float8_e4m3fn), b),
    )  # fmt: skip
    return r.choice(changes)()


SHAPES = (
    "()",
    "(0,)",
    "(-1,)",
    "(2, -3)",
    f"({2**62},)",
    f"({2**31}, {2**31})",
    f"({2**80},)",
    "(True,)",
    "(1,) * 9",
    "[3]",
)
KINDS = (
    "<f4",
    "|O",
    "<U9",
    "|V9",
    ">f8",
    "<c8",
    "<m8",
    "|b1",
    "<u8",
    f"|V{2**31 - 1}",
    "<f16",
    "|S0",
    "f,f",
    "é",
    "<i3",
)


def _array_file(r: random.Random, data: bytes) -> bytes:
    """A file of NumPy's with another array or a header that claims something."""
    if r.random() < 0.5:
        form = "{{'descr': {!r}, 'fortran_order': {}, 'shape': {}, }}{}"
        shape, extra = (
            r.choice((*SHAPES, "(" * 90, "9" * 4400)),
            r.choice(("", "", "", " " * 70_000, "\n" * 200, "\x00")),
        )
        header = form.format(r.choice(KINDS), r.choice(("True", "False", "7")), shape, extra).encode(
            "latin1", "replace"
        )
        version = r.choice(((1, 0), (1, 0), (2, 0), (3, 0), (9, 9)))
        length = r.choice((len(header), len(header), 2**16 - 1, 2**32 - 1))
        width = "<H" if version == (1, 0) else "<I"
        packed = struct.pack(width, min(length, 2**16 - 1 if width == "<H" else length))
        return b"\x93NUMPY" + bytes(version) + packed + header + data[80:]
    arrays = (
        np.array([Bomb()], dtype=object), np.array(["a", "b"]), np.zeros((), np.int64), np.zeros(0),
        np.full(3, np.nan), np.zeros((3, 0, 0), np.uint8), np.zeros(3, ">f4"), np.zeros(3, np.longdouble),
        np.zeros(3, np.complex64), np.zeros(3, [("a", "f4")]), np.array([-1, 2**62, 3]), np.ones((3, 5, 5, 2), "u1"),
        np.full(3, 2**64 - 1, np.uint64), np.zeros((3, 1, 40, 3), np.uint8), np.zeros(3, np.bool_), np.zeros((3, 1)),
        np.asfortranarray(np.zeros((3, 4))), np.array("cat"), np.zeros((2, 2, 2), "<U3"), np.zeros(3, "<m8[s]"),
        np.zeros((3, 16, 16), np.float32),
    )  # fmt: skip
    return npy(r.choice(arrays))


def _archive(r: random.Random, data: bytes) -> bytes:
    """An archive of a checkpoint or of arrays with one entry changed."""
    entries = unzipped(data)
    at = r.randrange(len(entries))
    name, content = entries[at]
    what = r.randrange(8)
    if what == 0:
        entries[at] = name, zeros()
    elif what == 1:
        entries.append(entries[at])
    elif what == 2:
        del entries[at]
    elif what == 3:
        other = r.randrange(len(entries))
        entries[at], entries[other] = (name, entries[other][1]), (entries[other][0], content)
    elif what == 4:
        entries[at] = (
            r.choice(("../" + name, name + "x", "a" * 3000, "arr_00.npy", "arr_٣.npy", "arr_99999999999.npy")),
            content,
        )
    elif what == 5:
        entries += [(f"{i}.npy", b"") for i in range(r.choice((10, 3000)))]
    else:
        array = name.endswith(".npy")
        entries[at] = name, (_array_file(r, content) if array else r.choice(list(RAW.values()))(r, content))  # type: ignore[assignment]
    method = r.choice((zipfile.ZIP_STORED,) * 6 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
    return zipped(entries, method)


def _pickled(r: random.Random, data: bytes) -> bytes:
    """A checkpoint of something else than tensors by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return checkpoint(r.choice(_values()), _use_new_zipfile_serialization=r.random() < 0.5)


@cache
def _values() -> tuple[Any, ...]:
    a = torch.zeros(4)
    deep: Any = {"a": a}
    for _ in range(400):
        deep = {"model": deep}
    return (
        {"a": Bomb()}, Bomb(), [a], a, {1: a}, {"a": {"b": a}}, {"a": a.to_sparse()}, {}, {"model": {}}, deep,
        {"a": torch.zeros(4, device="meta")}, {"a": torch.quantize_per_tensor(a, 1.0, 0, torch.qint8)},
        {"a": a.to(torch.complex64)}, {"a": torch.nn.Parameter(a)}, {"a": a.to(torch.float8_e4m3fn)},
        {"a": a[:1].expand(2**40)}, {"a" * 3000: a}, {str(i): a for i in range(2000)}, {"a": a * float("nan")},
        {"a": Large(bytearray, 2**36)}, {"a": Large(torch.Tensor, 2**38)}, {"a": Large(torch.Tensor, 2**29)},
        {"a": torch.tensor(3)}, {"a": torch.nested.nested_tensor([a, a[:2]])},
    )  # fmt: skip


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def _png(r: random.Random, data: bytes) -> bytes:
    """A PNG file of which a part is changed and the checksums are right."""
    chunks = _chunks(data)
    what = r.randrange(5)
    if what == 0:
        sides = r.choice(
            ((SIDE, SIDE), (2**31 - 1, 1), (1, 2**31 - 1), (0, 5), (8000, 8000), (5000, 17), (30_000, 30_000))
        )
        kind = r.choice((b"\x08\x00", b"\x08\x02", b"\x10\x00", b"\x01\x03", b"\x08\x06", b"\x10\x06", b"\x09\x09"))
        chunks = [(b"IHDR", struct.pack(">II", *sides) + kind + bytes(3)), (b"IDAT", zeros()), (b"IEND", b"")]
    elif what == 1:
        chunks.insert(1, (r.choice((b"zTXt", b"iCCP")), b"a\0\0" + zeros()))
    elif what == 2:
        chunks[1:1] = [
            (r.choice((b"tEXt", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"eXIf")), r.randbytes(r.choice((0, 4, 26, 900))))
        ]
    else:
        at = r.randrange(len(chunks))
        changed = r.choice(list(RAW.values()))(r, chunks[at][1])
        chunks[at] = chunks[at][0], changed if isinstance(changed, bytes) else b""
    body = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return data[:8] + b"".join(body)


def _disguised(r: random.Random, data: bytes) -> bytes:
    """A picture in another format, some with many bytes a pixel."""
    form = r.choice(("GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "JPEG", "EPS"))
    return picture(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), form)


def _mutations(name: str, data: bytes) -> dict[str, Mutation]:
    """What suits a file besides changes of bytes."""
    if data[8:9] == b"{":
        return {"another header": _header, "other tensors": _tensors}
    if data[:2] == b"PK":
        own: dict[str, Mutation] = {"another archive": _archive}
        return own if b".npy" in data[:200] else {**own, "another pickle": _pickled}
    if data[:6] == b"\x93NUMPY":
        return {"another array": _array_file}
    if data[:4] == b"\x89PNG":
        return {"another picture": _png, "another format": _disguised}
    if data[:2] == b"\x80\x02":
        return {"another pickle": _pickled}
    if data[:1] == b"{":
        return {"another tree": _json, "other lines": _lines}
    return {"other lines": _lines} if Path(name).suffix in (".toml", ".txt", ".yaml") else {}


def hostile(r: random.Random, name: str, data: bytes) -> tuple[str, Hostile]:
    """What is done to a file, and what becomes of it."""
    chance, own = r.random(), _mutations(name, data)
    if chance < 0.08:
        return "another file", _whole(r, data)
    if own and chance < 0.7:
        how, change = r.choice(list(own.items()))
        return how, change(r, data)
    how, change = r.choice(list(RAW.items()))
    changed = change(r, data)
    if isinstance(changed, bytes) and changed and r.random() < 0.3:
        changed = r.choice(list(RAW.values()))(r, changed)
    return how, changed
