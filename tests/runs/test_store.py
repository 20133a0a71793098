"""Folders of results: of this schema, or refused in one sentence."""

import errno
import json
import os
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from leakmap import Spec, files
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.auditing.recipe import trials
from leakmap.auditing.search import search
from leakmap.errors import StoreError
from leakmap.files import read_tensors, write_tensors
from leakmap.plan.plan import Plan
from leakmap.runs.runner import HERE
from leakmap.runs.store import Store
from leakmap.runs.trial import Outcome
from leakmap.study.file import parse_study
from leakmap.study.running import merge_study, run_study
from leakmap.study.standing import standing

QUICK = Spec("inverting_gradients", {"steps": 1})
PLAN = Plan("mlp,hidden=4", "samples", image_size=16, victims=1, attack=QUICK)
STUDY = parse_study({"model": "mlp", "data": {"image_size": 16, "victims": 1}})


def of_schema_4(folder):
    """As the last version with schema 4 left it: no marker, and trials that name a stage."""
    (folder / "trials").mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"model": "mlp,hidden=4", "contents": "c" * 64}))
    trial = {"stage": "c" * 64, "rule": {}, "threat": {}, "attack": {"name": "linear", "params": {}}}
    outcome = json.dumps({"trial": trial, "score": None, "failure": ["NonFinite", "nan"], "reached": [], "curve": []})
    save_file({"empty": torch.zeros(0)}, folder / "trials" / f"{'a' * 64}.safetensors", metadata={"outcome": outcome})
    return folder


@pytest.mark.parametrize("marker", [None, '{"schema": 5}', "{"])
def test_results_of_another_schema_are_refused_everywhere_and_left_alone(marker, tmp_path):
    folder, prepared = of_schema_4(tmp_path / "old"), prepare(PLAN, rehearsals=1)
    if marker:
        (folder / "schema.json").write_text(marker)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for use in (
        lambda: perform(PLAN, prepared, Store(folder)),
        lambda: search(PLAN, prepared, Store(folder), budget=1),
        lambda: run_study(STUDY, folder, HERE),
        lambda: standing(STUDY, folder),
        lambda: merge_study(folder, []),
        lambda: merge_study(tmp_path / "merged", [folder]),
    ):
        with pytest.raises(StoreError, match=r"old holds results of .*schema.* --out, or remove that folder\.$"):
            use()
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_only_old_leftovers_of_killed_processes_are_removed(tmp_path):
    old, young = tmp_path / "trials" / ".0a.part", tmp_path / ".1b.part"
    (tmp_path / "trials").mkdir()
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    Store(tmp_path).make()
    assert not old.exists()
    assert young.exists()


def test_a_changed_digit_or_picture_is_noticed_and_the_run_repeated(tmp_path):
    prepared, store = prepare(PLAN), Store(tmp_path)
    first = perform(PLAN, prepared, store).result
    total = len(list((tmp_path / "trials").iterdir()))
    for number, change in enumerate((_another_digit, _flipped)):
        file = sorted((tmp_path / "trials").iterdir())[number]
        file.write_bytes(change(file.read_bytes()))
        again = perform(PLAN, prepared, store).result
        assert again.resumed_runs == total - 1
        assert [client.ranks for client in again.finished] == [client.ranks for client in first.finished]


def _another_digit(data: bytes) -> bytes:
    at = re.compile(rb"psnr\D*").search(data).end()
    return data[:at] + (b"8" if data[at : at + 1] != b"8" else b"7") + data[at + 1 :]


def _flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 16]) + data[-2:]


def test_a_file_that_is_replaced_while_it_is_read_is_read_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(4)}, {"of": "old"})
    read, calls = files._read_tensors, []

    def torn(path, limit):
        calls.append(path)
        if len(calls) == 1:
            write_tensors(path, {"a": torch.ones(9)}, {"of": "new"})
            raise RuntimeError("the file is shorter than its header says")
        return read(path, limit)

    monkeypatch.setattr(files, "_read_tensors", torn)
    tensors, metadata = read_tensors(path, 2**20)
    assert metadata == {"of": "new"}
    assert torch.equal(tensors["a"], torch.ones(9))


def test_a_study_claims_its_folder_and_a_damaged_claim_is_named(tmp_path):
    run_study(STUDY, tmp_path / "study", HERE, limit=1)
    run_study(STUDY, tmp_path / "study", HERE, limit=1)
    other = parse_study({"title": "Other", "model": "mlp", "data": {"image_size": 16, "victims": 1}})
    with pytest.raises(StoreError, match="holds the study 'Study'; give another --out"):
        run_study(other, tmp_path / "study", HERE, limit=1)
    prepared = prepare(PLAN)
    with pytest.raises(StoreError, match="holds the study 'Study'"):
        perform(PLAN, prepared, Store(tmp_path / "study"))
    perform(PLAN, prepared, Store(tmp_path / "audit"))
    with pytest.raises(StoreError, match="no study"):
        run_study(STUDY, tmp_path / "audit", HERE, limit=1)
    plan = tmp_path / "audit" / "plan.json"
    plan.write_text(plan.read_text()[:50])
    with pytest.raises(StoreError, match=r"plan\.json is damaged"):
        perform(PLAN, prepared, Store(tmp_path / "audit"))


def test_what_is_written_several_at_a_time_is_there_when_the_block_ends_and_a_full_disk_is_said(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.make()
    first = trials(PLAN, "a", "b")["attack"][0]
    outcomes = [Outcome(replace(first, client=client), failure=("NonFinite", "nan")) for client in range(30)]

    def interrupted():
        with store.writing() as put:
            for outcome in outcomes:
                put(outcome)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.keys() == {outcome.trial.key for outcome in outcomes}

    def full(path, tensors, metadata):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("leakmap.runs.store.write_tensors", full)
    with pytest.raises(OSError, match="No space left"), store.writing() as put:
        put(outcomes[0])
