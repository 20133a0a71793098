"""Files are written whole or not at all."""

import os
import stat
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from leakmap import Observation
from leakmap.capturing.files import read_order
from leakmap.errors import BadSetting
from leakmap.files import read_json, write_tensors, write_text, written
from leakmap.study.file import read_study
from tests.conftest import observed


def test_no_reader_sees_a_torn_file_whoever_else_writes_it(task, tmp_path):
    _, first = observed("mlp,hidden=64", task)
    versions = [replace(first, count=count) for count in (1, 2, 3)]
    known = {one.to_bytes() for one in versions}
    path, over, failed = tmp_path / "client.safetensors", threading.Event(), []

    def write(one: Observation):
        try:
            while not over.is_set():
                one.to_file(path)
        except OSError as error:
            failed.append(error)

    first.to_file(path)
    writers = [threading.Thread(target=write, args=(one,)) for one in versions]
    for writer in writers:
        writer.start()
    torn = sum(path.read_bytes() not in known for _ in range(3000))
    over.set()
    for writer in writers:
        writer.join()
    assert not torn
    assert not failed
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["pipe", "large"])
def test_no_reader_waits_for_a_pipe_or_takes_in_a_file_of_any_size(kind, tmp_path):
    path = tmp_path / "x.json"
    os.mkfifo(path) if kind == "pipe" else path.touch()
    if kind == "large":
        os.truncate(path, 2**40)
    found: list[object] = []

    def read_each():
        found.append(read_json(path))
        for read in (read_order, read_study):
            with pytest.raises(BadSetting, match="is no file" if kind == "pipe" else "is larger than"):
                read(path)
            found.append(read)

    reader = threading.Thread(target=read_each, daemon=True)
    reader.start()
    reader.join(5)
    assert found == [None, read_order, read_study]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_files_have_the_rights_of_any_new_file(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2), "b": torch.ones(2).expand(3, 2)}, {"x": "y"})
        write_text(tmp_path / "a.txt", "a")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o666 & ~mask}
    assert load_file(tmp_path / "a.safetensors")["b"].shape == (3, 2)
