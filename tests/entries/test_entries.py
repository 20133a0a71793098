"""Entries: what is made comes out again to the digit, and what was changed or is hostile is refused."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

from leakmap import Plan, Spec, run_plan
from leakmap.cli.main import command
from leakmap.entries.board import board_page, write_board
from leakmap.entries.check import check_entry
from leakmap.entries.entry import Claimed, entry_schema, read_entries, read_entry
from leakmap.entries.make import make_entry
from leakmap.errors import BadSetting, StoreError

ROOT = Path(__file__).parents[2]
PLAN = Plan("mlp,hidden=16", image_size=16, victims=3, attack=Spec("linear"), seed=5)

PLAN_AS_JSON = json.loads(json.dumps(asdict(PLAN)))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "run"
    run_plan(PLAN, folder)
    return folder


@pytest.fixture(scope="module")
def made(run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("entries") / "mine.json"
    make_entry(run, path, title="A network", by="Ada | Example", claimed=[Claimed(key="psnr", value=20, source="Doe")])
    return path


@pytest.fixture
def copy(made, tmp_path) -> Path:
    for file in made.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / made.name


def changed(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def attach(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Puts other reconstructions beside an entry, which names their digest: all that a forger would do."""
    beside = path.with_suffix(".safetensors")
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, beside)
    content = beside.read_bytes()
    told = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    changed(path, lambda entry: entry["reconstructions"].update(told))


def test_an_entry_comes_out_again_to_the_digit_and_so_does_its_attack(made, run):
    found = check_entry(made, rerun=1)
    assert not found.problems
    assert not found.notes
    assert len(found.rerun) == 1
    assert found.figures == len(found.entry.figures) + 3
    result = json.loads((run / "result.json").read_text())
    assert found.entry.level == result["verdict"]["level"]
    assert [record.rank for record in found.entry.records] == [c["ranks"][0] for c in result["clients"]]
    jsonschema.validate(json.loads(made.read_text()), entry_schema())
    assert json.loads((ROOT / "docs" / "entry.schema.json").read_text()) == entry_schema(), "make docs"
    assert "| [A network](../entries/mine.json) |" in (page := board_page(read_entries(made.parent), "../entries"))
    assert "Ada / Example" in page
    assert "20, Doe (measured: above)" in page


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda e: e.update(level="none_found"), "level"),
        (lambda e: e["figures"][0].update(value=0.0), "exposed_clients"),
        (lambda e: e["records"][1].update(psnr=e["records"][1]["psnr"] + 0.01), "picture 1 of client 2"),
        (lambda e: e["records"].pop(), "picture 1 of client 3"),
        (lambda e: e["plan"].update(seed=6), "other pictures"),
        (lambda e: e["plan"].update(model="mlp,hidden=17"), "another architecture"),
        (lambda e: e.update(weights="0" * 64), "weights"),
        (lambda e: e.update(truth="0" * 64), "victims"),
    ],
)
def test_a_changed_entry_is_refused_with_a_sentence(copy, change, told):
    changed(copy, change)
    problems = check_entry(copy).problems
    assert any(told.lower() in problem.lower() for problem in problems), problems


def test_other_reconstructions_are_refused_however_well_they_are_attached(copy):
    beside = copy.with_suffix(".safetensors")
    tensors = load_file(beside)
    beside.write_bytes(beside.read_bytes()[:-1] + b"\0")
    with pytest.raises(StoreError, match="was changed"):
        check_entry(copy)
    attach(copy, tensors | {"attack.0": tensors["attack.1"]})
    assert any("client 1" in problem for problem in check_entry(copy).problems)
    # Whoever makes figures and pictures fit each other is found by attacking again.
    attach(copy, tensors | {"attack.0": (tensors["attack.0"] + 0.01).clamp(0, 1)})
    shown = [problem for problem in check_entry(copy, rerun=3).problems if "did not repeat" in problem]
    assert len(shown) == 1
    assert "Client 1" in shown[0]


def test_hostile_files_are_refused_before_anything_of_them_is_used(copy, tmp_path):
    beside = copy.with_suffix(".safetensors")
    tensors = load_file(beside)
    for name, tensor, told in (
        ("attack.0", torch.full_like(tensors["attack.0"], torch.nan), "outside of"),
        ("attack.0", tensors["attack.0"].double(), "no float32"),
        ("attack.0", tensors["attack.0"][0], "no float32"),
        ("attack.0", tensors["attack.0"][:0].clone(), "no float32"),
        ("attack.0", tensors["attack.0"][..., :8].contiguous(), "shape"),
        ("attack.9", tensors["attack.0"], "differ in the reconstruction"),
    ):
        attach(copy, tensors | {name: tensor})
        with pytest.raises(StoreError, match=told):
            check_entry(copy)
    content = b"\x80\x04cos\nsystem\n(S'touch x'\ntR."
    beside.write_bytes(content)
    told = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    changed(copy, lambda entry: entry["reconstructions"].update(told))
    with pytest.raises(StoreError, match="no safetensors file"):
        check_entry(copy)
    beside.unlink()
    os.mkfifo(beside)
    with pytest.raises(StoreError, match="no regular file"):
        check_entry(copy)
    beside.unlink()
    beside.symlink_to("/etc/passwd")
    with pytest.raises(StoreError, match="cannot be read"):
        check_entry(copy)
    changed(copy, lambda entry: entry["reconstructions"].update(file="../other.safetensors"))
    with pytest.raises(StoreError, match="does not hold a leakmap entry"):
        read_entry(copy)
    copy.write_text("[" * 10**5)
    with pytest.raises(StoreError, match="does not hold a leakmap entry"):
        read_entry(copy)


def test_no_code_that_an_entry_names_is_run_and_nothing_is_fetched(copy, run, tmp_path):
    code, marker = tmp_path / "own.py", tmp_path / "ran"
    code.write_text(f"open({str(marker)!r}, 'w').close()\n")
    own, hidden = f"{code}:build", json.dumps(f"{code}:build").replace(".py", "\\u002epy")
    for named in (
        {"model": own},
        {"model": f" {own} ,hidden=3"},
        {"loss": f"{own},smoothing=0.1"},
        {"metrics": [own]},
        {"attack": {"name": own, "params": {}}},
        {"attack": {"name": "prior_only", "params": {"of": own}}},
        {"attack": {"name": "generator", "params": {"build": own}}},
        {"model": f"mlp,activation={hidden}"},
        {"attack": {"name": "linear", "params": {"deep": [{"deeper": ["x", f"a=b,{own}"]}]}}},
    ):
        changed(copy, lambda entry, named=named: entry["plan"].update(PLAN_AS_JSON | named))
        with pytest.raises(StoreError, match="nothing of it was run: .*own.py:build is a file of its maker's own"):
            check_entry(copy)
    changed(copy, lambda entry: entry["plan"].update(PLAN_AS_JSON | {"data": f"cifar10:{tmp_path},download=true"}))
    with pytest.raises(BadSetting, match="would fetch its pictures"):
        check_entry(copy)
    copied = shutil.copytree(run, tmp_path / "run")
    for name in ("plan.json", "result.json"):
        plan = {"attack": {"name": "prior_only", "params": {"of": own}}}
        changed(copied / name, lambda held, plan=plan: held.get("plan", held).update(plan))
    with pytest.raises(BadSetting, match="own.py:build is a file of its maker's own"):
        make_entry(copied, tmp_path / "new.json")
    assert not marker.exists()


def test_only_what_others_can_repeat_becomes_an_entry(run, tmp_path):
    (tmp_path / "there.json").touch()
    with pytest.raises(StoreError, match="not written over"):
        make_entry(run, tmp_path / "there.json")
    with pytest.raises(BadSetting, match="no figure 'psn'"):
        make_entry(run, tmp_path / "new.json", claimed=[Claimed(key="psn", value=1, source="Doe")])
    assert not (tmp_path / "new.json").exists()
    assert not (tmp_path / "new.safetensors").exists()
    copied = shutil.copytree(run, tmp_path / "run")
    for trial in (copied / "trials").iterdir():
        trial.unlink()
        break
    with pytest.raises(StoreError, match="absent or damaged"):
        make_entry(copied, tmp_path / "new.json")


def test_the_commands_end_with_the_codes_that_they_promise(copy, monkeypatch, capsys):
    def code(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["leakmap", *words])
        return command()

    assert code("entry", "check", str(copy)) == 0
    changed(copy, lambda entry: entry.update(level="none_found"))
    assert code("entry", "check", str(copy)) == 1
    copy.with_suffix(".safetensors").write_bytes(b"")
    assert code("entry", "check", str(copy)) == 3
    assert "it was changed" in capsys.readouterr().err


def test_the_entries_that_are_shipped_stand_on_the_board_and_the_smallest_comes_out_again(tmp_path):
    entries = read_entries(ROOT / "entries")
    assert len(entries) >= 3
    page, plot = write_board(ROOT / "entries", tmp_path / "docs" / "board.md")
    shown = (ROOT / "docs" / "board.md").read_text()
    assert page.read_text().replace(os.path.relpath(ROOT / "entries", page.parent), "../entries") == shown, "make docs"
    assert all(entry.title[:40] in plot.read_text() for _, entry in entries)
    assert all(entry.title[:40] in (ROOT / "docs" / "images" / "board.svg").read_text() for _, entry in entries), (
        "make docs"
    )
    smallest = min(entries, key=lambda one: one[1].reconstructions.bytes)[0]
    assert not check_entry(ROOT / "entries" / f"{smallest}.json").problems
