"""Commands that somebody might type: odd options, models, folders and stored results, each in a process of its own."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzz.cases import GROWTH, Ended, address_space
from benchmarks.fuzz.mutations import NUMBERS, RAW, TEXTS
from benchmarks.fuzz.readers import client
from benchmarks.machine import Idle, held
from leakmap.cli.main import main
from leakmap.files import read_tensors, write_tensors

SECONDS, HANG = 30, 30.0
"""Of the processor, and until a command that only waits for something is killed."""
QUICK = ("--data", "samples", "--image-size", "16", "--victims", "1", "--workers", "0", "--json")
AUDIT = ("audit", *QUICK, "--model", "mlp,hidden=4", "--attack", "inverting_gradients,steps=1")
RESULTS, REFUSED = (0, 1, 2), (3, 4, 130)
Words = list[str]


def _options(r: random.Random, folder: Path) -> Words:
    """An audit with some options of any value."""
    words = [*AUDIT, "--out", str(folder)]
    numbers = ("image-size", "victims", "batch-size", "classes", "seed", "epochs", "lr", "momentum", "public")
    texts = ("data", "model", "attack", "weights", "loss", "normalization", "device", "gate", "defence", "metric")
    for _ in range(r.choice((1, 1, 2, 3))):
        name, values = r.choice([(name, NUMBERS) for name in numbers] + [(name, TEXTS) for name in texts])
        value = str(r.choice((*values, "1e9", "0", "-1", "meta", "cuda:99")))
        words += [f"--{name}", value.replace("\x00", "")[:5000]]
    return words


SHAPE = "nn.Sequential(nn.Flatten(), nn.Linear(768, 8))"
MODELS = (
    *(
        "sys.exit(0)",
        "os._exit(0)",
        "os.abort()",
        "raise SystemExit('no')",
        "raise KeyboardInterrupt",
        "raise MemoryError",
        "1 / 0",
        "build()",
    ),
    *("return nn.Flatten()", "return nn.Sequential(nn.Flatten(), nn.LazyLinear(8))", "return None", "return build"),
    *("return nn.Sequential(nn.Flatten(), nn.Linear(768, 8, device='meta'))", f"return {SHAPE}.half()", "print('x')"),
    f"return {SHAPE}.to(torch.complex64)",
    f"return {SHAPE}.requires_grad_(False)",
    f"return nn.DataParallel({SHAPE})",
    f"m = {SHAPE}; m.kept = (i for i in range(3)); return m",
    f"m = {SHAPE}; torch.nn.utils.prune.l1_unstructured(m[1], 'weight', 0.5); return m",
    f"m = {SHAPE}; m.register_forward_hook(lambda *a: 1 / 0); return m",
    f"m = {SHAPE}; m[1].weight.data.fill_(float('nan')); return m",
    f"m = {SHAPE}; m.forward = lambda x: sys.exit(0); return m",
    f"os.write(1, b'x'); sys.stdout.write('x'); return {SHAPE}",
    "warnings.warn('\\x1b[31m'); raise ValueError('\\x1b[31m [bold]')",
    "return nn.Sequential(nn.Flatten(), nn.Linear(768, 10**9))",
    f"return nn.Sequential({SHAPE}, nn.Linear(8, 3))",
    "return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 8))",
)


def _models(r: random.Random, folder: Path) -> Words:
    """An audit of a model in a file, one or two lines of which are odd."""
    folder.mkdir(parents=True)
    lines = r.sample(MODELS, r.choice((1, 1, 2)))
    text = "import os, sys, torch, warnings\nimport torch.nn.utils.prune\nfrom torch import nn\n\ndef build():\n"
    text += "".join(f"    {line}\n" for line in lines) + f"    return {SHAPE}\n"
    if r.random() < 0.2:
        text = r.choice(list(RAW.values()))(r, text.encode()).decode(errors="replace")  # type: ignore[union-attr]
    (folder / "net.py").write_text(text, encoding="utf-8", errors="replace")
    model = f"{folder / 'net.py'}:build"
    if r.random() < 0.5:
        return ["inspect", model, "--classes", "8", "--image-size", "16", "--json"]
    attack = "inverting_gradients,steps=1"
    return ["audit", *QUICK, "--model", model, "--attack", attack, "--out", str(folder / "out")]


def _odd(r: random.Random, folder: Path, ending: str, whole: bytes) -> None:
    """Puts something into a folder that looks like a file of a kind."""
    name = r.choice(("a", "._a", "\x1b[31mred", "[bold]b", "$\\frac$", "é", "x" * 200, "a b", ".part", "round-0001"))
    path = folder / f"{name}{ending}"
    folder.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        return
    what = r.randrange(8)
    if what == 0:
        os.mkfifo(path)
    elif what == 1:
        path.symlink_to(r.choice(("nowhere", path.name, "..", "/dev/zero")))
    elif what == 2:
        path.mkdir()
    elif what == 3:
        (Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe" + ending.encode()))).write_bytes(whole)
    elif what == 4:
        path.touch()
        os.truncate(path, 40 * 2**30)
    else:
        changed = whole if what == 5 else r.choice(list(RAW.values()))(r, whole)
        path.write_bytes(changed if isinstance(changed, bytes) else b"")


def _watch(r: random.Random, folder: Path) -> Words:
    """A watched folder with a sound capture and some odd things."""
    whole = client()[-1].to_bytes()
    places = [folder / place for place in ("in", "in/round-0001", "in/site/round-0001")]
    for place in places[1:]:
        place.mkdir(parents=True)
        (place / "client-0.safetensors").write_bytes(whole)
    for _ in range(r.randrange(1, 5)):
        _odd(r, r.choice(places), ".safetensors", whole)
    out = folder / r.choice(("out", "in/out", "in"))
    if r.random() < 0.3:
        out.mkdir(exist_ok=True)
        (out / "watch.json").write_text(r.choice(("{", "[]", '{"schema": 2}', "[" * 100_000)))
    return ["watch", str(folder / "in"), "--once", "--json", "--out", str(out)]


def _folders(r: random.Random, folder: Path) -> Words:
    """An audit on a folder of pictures with some odd things."""
    source = np.random.default_rng(r.randrange(2**32))
    classes = [folder / "in" / name for name in ("cat", "dog")]
    for i in range(40):
        classes[i % 2].mkdir(parents=True, exist_ok=True)
        pixels = source.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(classes[i % 2] / f"{i}.png")
    whole = (classes[0] / "0.png").read_bytes()
    for _ in range(r.randrange(1, 4)):
        _odd(r, r.choice(classes), r.choice((".png", ".jpg", ".PNG")), whole)
    data = f"folder:{folder / 'in'}{r.choice(('', ',most=0', ',most=1e9', ',channels=1', ',most=39'))}"
    words = [*QUICK, "--data", data, "--model", "mlp,hidden=4", "--attack", "inverting_gradients,steps=1"]
    return ["audit", *words, "--out", str(folder / "out")]


@cache
def _stored_once() -> Path:
    """A folder of results, made by the first process that asks; :func:`everything` does."""
    folder = Path(tempfile.mkdtemp()) / "stored"
    ended = _run([*AUDIT, "--out", str(folder)])
    if ended[0] != 0:
        raise RuntimeError(f"the audit that is damaged ended with {ended[0]}: {ended[2]}")
    return folder


def _stored(r: random.Random, folder: Path) -> Words:
    """The same audit on a folder of which a file was changed."""
    shutil.copytree(_stored_once(), folder)
    file = r.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    changed = r.choice(list(RAW.values()))(r, file.read_bytes())
    file.write_bytes(changed if isinstance(changed, bytes) else b"")
    return [*AUDIT, "--out", str(folder)]


def _large(r: random.Random, folder: Path) -> Words:
    """A command that may need more memory than there is."""
    size, hidden = r.choice((16, 32, 224)), r.choice((4, 500, 3000, 20_000))
    model = r.choice((f"mlp,hidden={hidden}", "torchvision/resnet18", "resnet", "vit", f"convnet,width={hidden // 10}"))
    if r.random() < 0.2:
        return ["inspect", model, "--classes", "1000", "--image-size", str(size), "--json"]
    attack = r.choice(("inverting_gradients,steps=1", "linear", "prior_only,steps=1", "learned_inverse,clients=16"))
    words = ["audit", *QUICK, "--image-size", str(size), "--model", model, "--batch-size", r.choice(("1", "4"))]
    return [*words, "--attack", attack, "--out", str(folder)]


KINDS: dict[str, Callable[[random.Random, Path], Words]] = {
    "options": _options, "model files": _models, "watched folders": _watch, "data folders": _folders,
    "stored folders": _stored, "little memory": _large,
}  # fmt: skip
LITTLE = (64, 128, 256, 512, 1024)
"""MiB of address space more than an idle process, of a command that has little memory."""
NATIVE = "ended the process before there was a result, most likely"
"""Of the sentence about native code that aborted: right where memory is little or a model calls ``os.abort`` alone."""
WRITERS = "concurrent writers"
ALL = (*KINDS, WRITERS)


def run_command(seed: int, number: int, kind: str, folder: Path) -> Ended:
    """Runs one case.

    Args:
        seed: Of all cases.
        number: Of the case; with the seed and the kind it decides everything.
        kind: One of :data:`ALL`.
        folder: Where to write its files; removed first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    r = random.Random(f"{seed} {kind} {number}")
    if kind == WRITERS:
        return Ended(kind, number, "several writers of one file", *_written(r, folder))
    words = KINDS[kind](r, folder)
    growth = r.choice(LITTLE) * 2**20 if kind == "little memory" else GROWTH
    code, out, err, seconds, mib = _run(words, growth)
    outcome, why = _judged(code, out, err)
    if seconds > SECONDS:
        outcome, why = "violation", f"took {seconds:.1f} s; {why}"
    if NATIVE in why and kind != "little memory" and "os.abort()" not in _model_file(folder):
        outcome, why = "violation", why
    if kind == "stored folders" and outcome == "result" and _scores(out) != _scores(_stored_result()):
        outcome, why = "violation", "a changed file changed the scores"
    return Ended(kind, number, " ".join(words)[:500], outcome, why, seconds, mib)


def _model_file(folder: Path) -> str:
    file = folder / "net.py"
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _judged(code: int, out: str, err: str) -> tuple[str, str]:
    told = (err.strip().splitlines() or [""])[-1][:300]
    if "\x1b" in out + err:
        return "violation", f"an escape sequence reaches the terminal: {told!r}"
    if "Traceback" in err or "Internal error" in err:
        return "violation", err[-1500:]
    if code in REFUSED:
        return ("refusal", told) if err.strip() else ("violation", f"exit code {code} without a word")
    if code not in RESULTS:
        return "violation", f"the process ended with {code}: {told}"
    try:
        json.loads(out)
    except ValueError:
        return "violation", f"exit code {code} without a result: {out[:100]!r}"
    return "result", ""


def _scores(out: str) -> Any:
    found = json.loads(out)
    return [{key: one.get(key) for key in ("client", "ranks", "scores", "floors")} for one in found["clients"]]


@cache
def _stored_result() -> str:
    return (_stored_once() / "result.json").read_text()


def _run(words: Words, growth: int = GROWTH) -> tuple[int, str, str, float, float]:
    """Exit code, what was said, seconds of the processor and MiB of a command in a child process with limits.

    The memory is that of the child beyond what it held when it began; the libraries that it uses are in it.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as begun:
        child = os.fork()
        if not child:
            os.write(begun.fileno(), str(held()).encode())
            _become(words, out.fileno(), err.fileno(), growth)
        idle = Idle(child)
        while not (ended := os.wait4(child, os.WNOHANG))[0]:
            if idle.seconds() > HANG:
                os.killpg(child, signal.SIGKILL)
                ended = os.wait4(child, 0)
                break
            time.sleep(0.01)
        usage = ended[2]
        said = []
        for stream in (out, err, begun):
            stream.seek(0)
            said.append(stream.read().decode(errors="replace"))
    mib = max(0.0, usage.ru_maxrss / 1024 - int(said[2]) / 2**20)
    return os.waitstatus_to_exitcode(ended[1]), said[0], said[1], usage.ru_utime + usage.ru_stime, mib


def _become(words: Words, out: int, err: int, growth: int) -> None:
    """The child: becomes the command; never returns."""
    code = 70
    try:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        limit = address_space() + growth
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.argv = ["leakmap", *words]
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _written(r: random.Random, folder: Path) -> tuple[str, str, float, float]:
    """Three processes write one file again and again; whoever reads it must find a whole one of theirs."""
    import torch

    folder.mkdir(parents=True)
    path, sizes = folder / "file", [r.randrange(1, 20_000) for _ in range(3)]
    children = []
    for size in sizes:
        if not (child := os.fork()):
            try:
                for _ in range(10):
                    write_tensors(path, {"a": torch.full((size,), float(size))}, {"of": str(size)})
                os._exit(0)
            except BaseException:
                os._exit(70)
        children.append(child)
    torn = 0
    running = set(children)
    codes = []
    while running:
        for child in list(running):
            if (ended := os.waitpid(child, os.WNOHANG))[0]:
                running.discard(child)
                codes.append(os.waitstatus_to_exitcode(ended[1]))
        if path.exists():
            try:
                read_tensors(path, 2**30)
            except Exception:
                torn += 1
    left = [one.name for one in folder.iterdir() if one != path]
    if torn or any(codes) or left:
        return "violation", f"{torn} torn reads, writers ended with {codes}, left behind {left}", 0.0, 0.0
    return "result", "", 0.0, 0.0


def every_command(seed: int, numbers: range, kinds: tuple[str, ...]) -> Iterator[Ended]:
    """Runs cases, the kinds in turn."""
    if "stored folders" in kinds:
        _stored_once()
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            yield run_command(seed, number, kinds[number % len(kinds)], Path(folder) / "case")
