"""Folders of results: of this schema, or refused in one sentence."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from leakmap import Spec
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.auditing.search import search
from leakmap.errors import StoreError
from leakmap.plan.plan import Plan
from leakmap.runs.runner import HERE
from leakmap.runs.store import Store
from leakmap.study.file import parse_study
from leakmap.study.running import merge_study, run_study, standing

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
