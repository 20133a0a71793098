"""A short form of benchmarks.fuzz, in this process: hostile files end in a result or in one sentence."""

import json
import os
import random
import socket
import time

import numpy as np
import pytest
import torch
from benchmarks.fuzz import cases
from benchmarks.fuzz.bombs import Bomb, bombs, marker
from benchmarks.fuzz.commands import ALL, run_command
from benchmarks.fuzz.mutations import RAW, resealed
from benchmarks.fuzz.payloads import checkpoint, npy, npz
from benchmarks.fuzz.readers import Reader, readers
from safetensors.torch import load, save

from leakmap.errors import LeakmapError
from leakmap.registry.spec import Spec

SEED = 7
COUNT = 10 * len(readers())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("fuzz") / "case"
    cases.prepare(found)
    return found


def test_hostile_files_end_in_a_result_or_in_one_sentence(folder):
    ended = [cases.run_case(SEED, number, folder) for number in range(COUNT)]
    broken = [f"case {one.number} of seed {SEED}, {one.reader}, {one.how}: {one.why}" for one in ended]
    assert not [text for one, text in zip(ended, broken, strict=True) if one.outcome == "violation"]
    outcomes = {one.outcome for one in ended}
    assert outcomes == {"result", "refusal"}


def test_a_bomb_in_place_of_any_file_is_a_refusal(folder):
    """Except that any text lists names; none of them runs."""
    for reader in readers():
        name = next(iter(reader.files))
        for bomb in bombs():
            cases.write(folder, {**reader.files, name: bomb})
            with cases.GUARD:
                try:
                    assert reader.read(folder) is None or reader.name == "order of names"
                except LeakmapError as error:
                    assert "\n" not in str(error)
            assert not cases.GUARD.seen
    assert not marker().exists()


def _with(change):
    """Changes the JSON in the header of safetensors, and the tensors."""

    def changed(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        metadata, tensors = json.loads(data[8 : 8 + size])["__metadata__"], load(data)
        name = next(name for name in ("leakmap", "setup", "outcome", "order") if name in metadata)
        metadata[name] = json.dumps(change(json.loads(metadata[name]), tensors)).replace('"deep"', "[" * 100_000)
        return resealed(save(tensors, metadata=metadata))

    return changed


def _public_picture_without_sides(manifest, tensors):
    entry = next(entry for entry in manifest["tensors"] if entry["name"] == "public/pictures")
    entry["shape"], tensors["public/pictures"] = [], torch.zeros(())
    return manifest


def _arrays(labels, side=16):
    return lambda data: npz({"images": np.zeros((2, side, side, 3), np.uint8), "labels": labels})


FOUND = {
    "a picture that starts Ghostscript": (
        "folder of pictures",
        lambda data: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n%%EndComments\nshowpage\n",
    ),
    "labels without a length": ("npz of pictures", _arrays(np.int64(1))),
    "labels that are times": ("npz of pictures", _arrays(np.zeros(2, "<m8[s]"))),
    "pictures without pixels": ("npz of pictures", _arrays(np.zeros(2, np.int64), 0)),
    "a number of 5,000 digits": ("study", lambda data: b"seed = " + b"9" * 5000 + data),
    "a deep study": ("study", lambda data: b"metrics = " + b"[" * 50_000 + data),
    "a date as a setting": ("study", lambda data: data.replace(b"hidden = 8", b"hidden = 1979-05-27")),
    "a key of many parts": ("study", lambda data: b"a" + b".a" * 200_000 + b" = 1\n" + data),
    "a deep plan": ("plan of a folder", lambda data: b"[" * 100_000),
    "a plan of any size": ("plan of a folder", lambda data: 2**40),
    "names twice, many times": (
        "Observation",
        _with(lambda manifest, tensors: manifest | {"tensors": manifest["tensors"] + manifest["tensors"][:1] * 20_000}),
    ),
    "public pictures without sides": ("Observation", _with(_public_picture_without_sides)),
    "a setup whose model is a number": ("setup", _with(lambda facts, tensors: facts | {"model": 3})),
    "a setup without a name": ("setup", lambda data: data.replace(b'"name":"', b'"mane":"')),
    "a deep outcome": ("outcome", _with(lambda record, tensors: record | {"notes": "deep"})),
    "a batch of any size": ("cifar10", lambda data: 2**40),
    "a cell whose names are numbers": ("cell", _with(lambda order, tensors: [1, 2])),
}


@pytest.mark.parametrize("case", list(FOUND))
def test_what_fuzzing_or_reading_found_stays_refused(case, folder):
    name, change = FOUND[case]
    reader = next(reader for reader in readers() if reader.name == name)
    first = "cat/1.png" if name == "folder of pictures" else next(iter(reader.files))
    cases.write(folder, {**reader.files, first: change(reader.files[first])})
    ended = cases.judged(reader, folder)
    assert ended.outcome == "refusal", ended.why


def test_a_setting_that_is_no_json_stays_text():
    assert Spec.parse("linear,a=" + "[" * 90_000).params == {"a": "[" * 90_000}


def _reader(read) -> Reader:
    return Reader("one that is not sound", {"file": b"data"}, read)


KEPT: list[int] = []
WRONG = {
    "an exception": (lambda folder: 1 / 0, "ZeroDivisionError"),
    "an unpickled class": (lambda folder: torch.load(folder / "bomb", weights_only=False), "something ran: pickle"),
    "a socket": (lambda folder: socket.socket(), "something ran: socket"),
    "a process that is caught": (lambda folder: _silent(lambda: os.system("true")), "os.system"),
    "a file that is left open": (lambda folder: KEPT.append(os.open(folder, os.O_RDONLY)), "files left open: 1"),
    "a file": (lambda folder: (folder / "new").write_text("x"), "something ran: open"),
    "two lines": (lambda folder: _raise(LeakmapError("one\ntwo")), "no sentence"),
    "a marker": (lambda folder: None, "the marker was left"),
}


def _silent(call) -> None:
    try:
        call()
    except BaseException:
        return


def _raise(error) -> None:
    raise error


@pytest.mark.parametrize("case", list(WRONG))
def test_what_a_reader_may_not_do_is_a_violation(case, folder, monkeypatch):
    read, word = WRONG[case]
    cases.write(folder, {"bomb": checkpoint({"a": Bomb()})})
    if case == "a marker":
        marker().touch()
    ended = cases.judged(_reader(read), folder)
    assert ended.outcome == "violation"
    assert word in ended.why
    assert not marker().exists()


def test_a_case_is_decided_by_its_number(folder):
    contents = []
    for _ in range(2):
        cases.written(SEED, 3, folder)
        contents.append({path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]


def test_every_mutation_of_bytes_changes_something():
    data = npz({"a": torch.arange(9).numpy()}) + npy(torch.arange(9).numpy())
    for name, change in RAW.items():
        assert any(change(random.Random(i), data) != data for i in range(4)), name


def test_a_process_that_dies_or_hangs_is_a_violation_and_a_slow_one_is_none(monkeypatch):
    now = []

    def busy():
        begun = time.monotonic()
        while time.monotonic() - begun < 1.2:
            pass
        return 1

    monkeypatch.setattr(cases, "readers", lambda: (_reader(lambda folder: 1), _reader(lambda folder: now[0]())))
    monkeypatch.setattr(cases, "hostile", lambda random, name, data: ("nothing", data))
    monkeypatch.setattr(cases, "prepare", lambda folder: None)
    monkeypatch.setattr(cases, "HANG", 0.6)
    for doing, outcome, why in (
        (lambda: os._exit(9), "violation", "ended with 9"),
        (lambda: time.sleep(30), "violation", "ended with -9"),
        (busy, "result", ""),
    ):
        now[:] = [doing]
        ended = list(cases.everything(0, 3))
        assert [one.outcome for one in ended] == ["result", outcome, "result"]
        assert why in ended[1].why


@pytest.mark.parametrize("kind", ALL)
def test_odd_commands_end_in_a_result_or_in_one_sentence(kind, tmp_path):
    ended = [run_command(SEED, number, kind, tmp_path / "case") for number in range(2, 5)]
    assert not [one for one in ended if one.outcome == "violation"]
