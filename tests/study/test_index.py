"""Where a study stands by the record of its last run: as reading everything says, whatever was killed or forged."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from leakmap import recorded_status, study_status
from leakmap.files import read_arrays, write_tensors
from leakmap.runs.layout import failed_at, scored_at
from leakmap.runs.runner import HERE
from leakmap.runs.store import Store
from leakmap.runs.trial import Outcome
from leakmap.scoring.score import Score
from leakmap.study import index
from leakmap.study.file import read_study
from leakmap.study.index import FILE, LIMIT, Status
from leakmap.study.planning import planned
from leakmap.study.running import merge_study, run_study
from tests.study.test_study import TINY as STUDY

TINY = STUDY + "[scale.small.attack]\nsteps = 1\n"


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def begun(tiny, tmp_path):
    """A folder in which the study was planned and one of its 12 runs made."""
    run_study(read_study(tiny), tmp_path / "out", HERE, limit=1)
    return tmp_path / "out"


def told(file, folder, scale=None):
    found = recorded_status(file, folder, scale)
    assert isinstance(found, Status), found
    return found


def counts(found):
    return found.title, found.cells, found.runs, found.finished, found.missing, dict(found.failed)


def scored(trial, seconds=2.0):
    values = {"psnr": (10.0,), "ssim": (0.1,)}
    return Outcome(trial, Score(torch.zeros(1, 3, 16, 16), values, (1.0,), (100,), 1.0, (1.0,)), seconds=seconds)


def failed(trial):
    return Outcome(trial, failure=("NonFinite", "nan"))


def trials_of(file):
    return list({trial.key: trial for one in planned(read_study(file)) for trial in one.all()}.values())


def test_the_record_says_what_reading_everything_says(tiny, begun):
    study, store, trials = read_study(tiny), Store(begun), trials_of(tiny)
    for outcome in (scored(trials[1]), failed(trials[2]), failed(trials[3]), scored(trials[4])):
        store.put(outcome)
    store.put(scored(replace(trials[0], client=99)))  # of no planned run
    (begun / "trials" / f"{'z' * 64}.safetensors").touch()
    (begun / "trials" / f"{'ä' * 64}.safetensors").touch()
    found = told(tiny, begun)
    assert counts(found) == counts(study_status(study, begun))
    assert (found.finished, len(found.failed), found.missing) == (3, 2, 7)
    assert found.axes == study.axes
    store.put(scored(trials[2]))
    assert (told(tiny, begun).finished, set(told(tiny, begun).failed)) == (4, {trials[3].key})
    store.put(failed(trials[2]))
    assert set(told(tiny, begun).failed) == {trials[2].key, trials[3].key}
    assert counts(told(tiny, begun)) == counts(study_status(study, begun))


def test_the_answer_needs_no_torch(tiny, begun):
    code = (
        "import sys; from leakmap.cli.main import command\n"
        f"sys.argv = ['leakmap', 'study', 'status', {str(tiny)!r}, '--out', {str(begun)!r}]\n"
        "assert command() == 0; assert 'torch' not in sys.modules"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "2 cells, 12 runs, 1 finished, 0 failed, 11 missing" in said.stdout
    assert "planned again" not in said.stderr


KILLED = """
import os, signal, sys
from pathlib import Path
from leakmap.runs.store import Store
from leakmap.study.standing import standing
from leakmap.study.file import read_study
from tests.study.test_index import counts, failed, scored, told, trials_of
from leakmap.study.standing import status_of

file, folder = Path(sys.argv[1]), Path(sys.argv[2])
store, study, trial = Store(folder), read_study(file), trials_of(file)[5]

def emptied():
    for path in (folder / "trials").glob(f"{trial.key}*"):
        path.unlink()

def killed_at(step, outcome):
    child = os.fork()
    if child == 0:
        seen = 0
        def hook(event, args):
            nonlocal seen
            if event in ("open", "os.rename", "os.remove", "os.chmod"):
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        store.put(outcome)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

kills = 0
for before in (None, failed(trial), scored(trial)):
    for after in (failed(trial), scored(trial)):
        for step in range(1, 100):
            emptied()
            if before is not None:
                store.put(before)
            cut = killed_at(step, after)
            found = told(file, folder)
            assert counts(found) == counts(status_of(study, standing(study, folder))), (before, after, step)
            assert before is None or found.missing == 10, (before, after, step)
            if not cut:
                break
            kills += 1
        assert bool(found.failed) == (after.failure is not None)
print(kills)
"""


def test_a_writer_that_is_killed_at_any_step_leaves_right_counts(tiny, begun):
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tiny), str(begun)], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    assert int(said.stdout) >= 24


def test_a_failure_that_lies_where_scores_do_is_set_apart_by_the_next_run(tiny, begun):
    trial = trials_of(tiny)[3]
    Store(begun).put(failed(trial))
    failed_at(begun, trial.key).rename(scored_at(begun, trial.key))
    run_study(read_study(tiny), begun, HERE, limit=1)
    assert failed_at(begun, trial.key).is_file()
    assert not scored_at(begun, trial.key).exists()
    assert set(told(tiny, begun).failed) == {trial.key}
    scored_at(begun, trial.key).write_bytes(b"damaged")
    run_study(read_study(tiny), begun, HERE, limit=1)
    kept = Store(begun).get(trial)
    assert kept is not None, "what is damaged takes no place of what is sound"
    assert kept.failure == failed(trial).failure
    assert not scored_at(begun, trial.key).exists()
    assert set(told(tiny, begun).failed) == {trial.key}
    Store(begun).put(scored(trial))
    Store(begun).set_apart(trial.key)
    assert Store(begun).get(trial).score is not None
    assert scored_at(begun, trial.key).is_file()


def test_what_the_study_rests_on_is_watched(tiny, tmp_path, monkeypatch):
    pictures = tmp_path / "a.npz"
    rng = np.random.default_rng(0)
    np.savez(pictures, images=rng.integers(0, 255, (400, 16, 16, 3), np.uint8), labels=np.arange(400) % 4)
    tiny.write_text(TINY.replace('"samples"', f'"npz:{pictures}"'))
    folder = tmp_path / "out"
    assert "no run has planned it" in recorded_status(tiny, folder)
    run_study(read_study(tiny), folder, HERE, limit=1)
    assert told(tiny, folder).runs == 12
    os.utime(pictures, (0, 0))
    assert recorded_status(tiny, folder) == f"{pictures} changed since it was last run"
    run_study(read_study(tiny), folder, HERE, limit=1)
    assert told(tiny, folder).finished == 2
    assert "another one" in recorded_status(tiny, folder, "small")
    monkeypatch.setattr(index, "__version__", "99")
    assert "another one" in recorded_status(tiny, folder)
    monkeypatch.undo()
    tiny.write_text(tiny.read_text() + "\n# another line\n")
    assert "another one" in recorded_status(tiny, folder)
    tiny.unlink()
    assert recorded_status(tiny, folder) == "its file cannot be read"


def test_a_study_that_was_changed_in_memory_is_not_taken_for_its_file(tiny, tmp_path):
    study = read_study(tiny)
    run_study(replace(study, cells=study.cells[:1]), tmp_path / "out", HERE, limit=1)
    assert "no run has planned it" in recorded_status(tiny, tmp_path / "out")


def test_shards_that_are_merged_keep_the_record(tiny, tmp_path):
    parts = [tmp_path / "one", tmp_path / "two"]
    for number, part in enumerate(parts, 1):
        run_study(read_study(tiny), part, HERE, shard=f"{number}/2", limit=2)
    merge_study(tmp_path / "all", parts)
    assert counts(told(tiny, tmp_path / "all")) == counts(study_status(read_study(tiny), tmp_path / "all"))
    assert told(tiny, tmp_path / "all").finished == 4


def forged(folder, **changes):
    """An index with other arrays or texts, and the checksum that belongs to them."""
    arrays, texts = read_arrays(folder / FILE, LIMIT)
    head = json.loads(texts["head"])
    for name, value in changes.items():
        if name in arrays:
            arrays[name] = value(arrays[name].copy())
        else:
            head[name] = value(head[name])
    write_tensors(
        folder / FILE, {name: torch.from_numpy(one) for name, one in arrays.items()}, {"head": json.dumps(head)}
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": lambda old: old + 10**6},
        {"groups": lambda old: old - 10**6},
        {"groups": lambda old: old[:-1]},
        {"groups": lambda old: old.astype(np.float64)},
        {"keys": lambda old: old[::-1].copy()},
        {"keys": lambda old: old[None]},
        {"keys": lambda old: old.astype(np.int8)},
        {"seconds": lambda old: np.full_like(old, np.inf)},
        {"seconds": lambda old: np.full_like(old, -1.0)},
        {"seconds": lambda old: old.astype(np.float32)},
        {"cells": lambda old: "many"},
        {"fits": lambda old: {"a": -1.0}},
        {"fits": lambda old: {"a": 1e300}},
        {"seconds": lambda old: np.full_like(old, 1e300)},
        {"axes": lambda old: {"a": [{}]}},
        {"files": lambda old: {"a": "b"}},
    ],
)
def test_a_forged_record_is_refused_and_the_study_planned_again(changes, tiny, begun):
    forged(begun, cells=lambda old: old)
    assert told(tiny, begun).runs == 12
    forged(begun, **changes)
    assert recorded_status(tiny, begun) == f"{begun / FILE} is damaged"


def test_names_in_a_record_that_no_file_can_have_are_of_no_file(tiny, begun):
    forged(begun, fits=lambda old: {"a\0": 1.0, "../" * 2000: 1.0})
    assert told(tiny, begun).runs == 12
    forged(begun, files=lambda old: {"a\0": [1, 2]})
    assert "changed since" in recorded_status(tiny, begun)


def test_a_damaged_record_is_refused_and_the_study_planned_again(tiny, begun):
    whole = (begun / FILE).read_bytes()
    for data in (whole[:100], whole[:-1], whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], b"", b"{}" * 90):
        (begun / FILE).write_bytes(data)
        assert recorded_status(tiny, begun) == f"{begun / FILE} is damaged"


def test_what_the_rest_takes_follows_what_was_foreseen_and_what_runs_took(tiny, tmp_path):
    folder, trials, heard = tmp_path / "out", trials_of(tiny), []
    run_study(read_study(tiny), folder, HERE, limit=1, foretold=lambda *what: heard.append(what))
    cells, runs, _ = heard[0]
    assert (cells, runs) == (2, 1)
    scored_at(folder, trials[0].key).unlink()
    arrays, _ = read_arrays(folder / FILE, LIMIT)
    foreseen = told(tiny, folder).seconds_left
    assert foreseen == pytest.approx(arrays["seconds"][arrays["groups"]].sum())
    price = dict(zip(arrays["keys"].view(np.uint64).tolist(), arrays["seconds"][arrays["groups"]], strict=True))
    for trial in trials[:3]:
        Store(folder).put(scored(trial, 3 * price[int(trial.key[:16], 16)]))
    rest = sum(price[int(trial.key[:16], 16)] for trial in trials[3:])
    assert told(tiny, folder).seconds_left == pytest.approx(3 * rest)
    forged(folder, seconds=lambda old: np.full_like(old, np.nan))
    Store(folder).put(scored(trials[0], 6.0))
    for trial in trials[1:3]:
        Store(folder).put(scored(trial, 3.0))
    assert told(tiny, folder).seconds_left == pytest.approx(4.0 * (len(trials) - 3))
    for trial in trials[:3]:
        scored_at(folder, trial.key).unlink()
    assert told(tiny, folder).seconds_left is None


def test_a_file_of_a_failure_that_cannot_be_read_is_a_failure_that_says_so(tiny, begun):
    key = trials_of(tiny)[4].key
    failed_at(begun, key).write_bytes(b"?")
    assert told(tiny, begun).failed[key][0] == "Damaged"


def test_numbers_of_keys_are_their_first_digits():
    keys = [hashlib.sha256(bytes([n])).hexdigest() for n in range(50)]
    assert index._numbers(keys).tolist() == [int(key[:16], 16) for key in keys]
    assert index._numbers(["Z" * 64, "A" * 64]).tolist() == [0, 0]
    assert index._numbers([]).tolist() == []
