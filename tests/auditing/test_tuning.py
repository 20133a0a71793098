"""Tuning: on public pictures only, resumable, never worse than the default, and refused where it has seen a victim."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leakmap import Spec
from leakmap.attacker.matching.settings import VARIATION
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.auditing.recipe import trials
from leakmap.auditing.search import search
from leakmap.cli.main import command
from leakmap.client.data import Pictures
from leakmap.client.groups import MEMBERS, divide
from leakmap.errors import BadSetting, DataError, StoreError, UsageError
from leakmap.files import write_json
from leakmap.plan.plan import Plan
from leakmap.plan.tuned import Tuned, read_tuned
from leakmap.registry.user_code import load_user_code
from leakmap.runs.runner import Local
from leakmap.runs.store import Store
from leakmap.seeds import generator
from tests.conftest import Deadly

QUICK = Spec("inverting_gradients", {"steps": 3})
PLAN = Plan("convnet,depth=1,width=4", "samples", image_size=16, victims=2, attack=QUICK)
WORDS = [
    "--model",
    PLAN.model,
    "--attack",
    "inverting_gradients",
    "--image-size",
    "16",
    "--victims",
    "2",
    "--steps",
    "3",
    "--workers",
    "0",
]


@cache
def prepared(rehearsals=2):
    return prepare(PLAN, rehearsals=rehearsals)


@cache
def tuned(oracle=False) -> Tuned:
    return search(PLAN, prepared(0 if oracle else 2), budget=3, oracle=oracle)


def numbered(first: int, count: int, spare: Pictures | None = None) -> Pictures:
    """Pictures of noise, no two alike, whose first two pixels say which one each is."""
    number = torch.arange(first, first + count)
    images = torch.randint(0, 256, (count, 1, 16, 16), generator=generator(first, "noise"), dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = number // 256, number % 256
    return Pictures(images, number % 5, tuple("abcde"), spare)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(100, 300),
    spare=st.sampled_from([0, 40, 60, 200]),
    batch=st.integers(1, 3),
    rehearsals=st.integers(1, 30),
    training=st.booleans(),
    seed=st.integers(0, 5),
)
def test_rehearsals_share_no_picture_and_move_no_other(count, spare, batch, rehearsals, training, seed):
    pictures = numbered(0, count, numbered(count, spare) if spare else None)
    asked = {"victims": 3, "batch_size": batch, "training": training, "seed": seed}
    before = divide(pictures, **asked)
    try:
        groups = divide(pictures, **asked, rehearsals=rehearsals)
    except DataError as error:
        assert "--rehearsals" in str(error)
        return
    everything = torch.cat([getattr(groups, name).flatten() for name in MEMBERS])
    assert len(everything.unique()) == len(everything)
    assert groups.rehearsals.shape == (rehearsals, batch)
    assert before.rehearsals.shape == (0, batch)
    for name in MEMBERS[:6]:
        assert before.digests(getattr(before, name)) == groups.digests(getattr(groups, name))
    assert len(groups.distractors) >= 19
    if spare == 200 and not training:
        first, second = groups.images[groups.rehearsals.flatten(), 0, 0, :2].long().T
        assert (first * 256 + second >= count).all()


def test_rehearsals_leave_the_same_victims_and_weights():
    before, groups = prepared(0).main, prepared(2).main
    assert before.network_digest == groups.network_digest
    assert before.groups.digests(before.groups.victims) == groups.groups.digests(groups.groups.victims)


def test_the_tuned_settings_are_at_least_as_good_as_the_default_and_keep_what_was_fixed():
    found = tuned().attacks["inverting_gradients"]
    assert found.score == max(one.score for one in found.tried) >= found.default
    assert found.tried[0].settings["tv"] == VARIATION
    assert all(one.settings["steps"] == 3 for one in found.tried)
    assert len({one.settings["tv"] for one in found.tried}) == 3
    assert tuned().column == "rehearsal-tuned"


def test_no_victim_is_looked_at():
    ran = []
    found = search(PLAN, prepared(), budget=2, runner=Deadly(dies=lambda trial: ran.append(trial.group)))
    assert set(ran) == {"rehearsals"}
    groups = prepared().main.groups
    assert set(found.pictures) == set(groups.digests(groups.rehearsals))
    assert not set(found.pictures) & set(groups.digests(groups.victims))


def test_the_file_is_read_back_as_it_was_written(tmp_path):
    write_json(tmp_path / "tuned.json", asdict(tuned()))
    assert read_tuned(tmp_path / "tuned.json") == tuned()


def test_more_budget_goes_on_and_repeats_nothing(tmp_path):
    store = Store(tmp_path)
    first = search(PLAN, prepared(), store, budget=2)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").iterdir()}
    second = search(PLAN, prepared(), store, budget=3)
    assert second.attacks["inverting_gradients"].tried[:2] == first.attacks["inverting_gradients"].tried
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert second == tuned()
    with pytest.raises(StoreError, match="another tuning .different: objective"):
        search(PLAN, prepared(), store, budget=2, objective="ssim")


def test_processes_choose_the_same(tmp_path):
    assert search(PLAN, prepared(), Store(tmp_path), budget=3, runner=Local(2)) == tuned()


def test_a_rehearsal_whose_worker_is_killed_is_on_record_and_scores_worst(tmp_path):
    runner = Deadly(dies=lambda trial: trial.client == 0)
    (one,) = search(PLAN, prepared(), Store(tmp_path), budget=1, runner=runner).attacks["inverting_gradients"].tried
    assert one.scores[0] == -1 < one.scores[1]
    assert [failure.partition(":")[0] for failure in one.failures] == ["WorkerDied"]
    assert read_tuned(tmp_path / "tuned.json").attacks["inverting_gradients"].tried == (one,)


def test_hopeless_settings_are_stopped_early_and_never_chosen(monkeypatch):
    monkeypatch.setattr("leakmap.auditing.search.RANDOM", 1)
    found = search(PLAN, prepared(), budget=8).attacks["inverting_gradients"]
    stopped = [one for one in found.tried if one.stopped]
    assert stopped
    assert all(len(one.scores) == 1 for one in stopped)
    assert found.settings not in [one.settings for one in stopped]


def test_after_sigkill_the_same_command_repeats_no_finished_rehearsal_and_ends_the_same(tmp_path, monkeypatch):
    out, plan = tmp_path / "cut", replace(PLAN, attack=Spec("inverting_gradients", {"steps": 20}))
    words = ["tune", *WORDS[:-3], "20", "--workers", "0", "--budget", "3", "--rehearsals", "2", "--out", str(out)]
    trials = out / "trials"

    def stamps():
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in trials.glob("[!.]*")}

    running = subprocess.Popen(
        [sys.executable, "-m", "leakmap", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while not trials.is_dir() or len(stamps()) < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (out / "tuned.json").exists()
    kept = stamps()
    (out / "journal.jsonl.lock").touch()
    with (out / "journal.jsonl").open("a") as journal:
        journal.write('{"op_code": 4, "cut in the mid')

    monkeypatch.setattr(sys, "argv", ["leakmap", *words])
    with pytest.raises(SystemExit, match="^0$"):
        sys.exit(command())
    assert kept.items() <= stamps().items()
    assert len(stamps()) > len(kept) >= 3
    assert read_tuned(out / "tuned.json") == search(plan, prepared(), budget=3)


def test_several_attacks_are_tuned_in_turn_and_failures_are_recorded():
    plan = replace(PLAN, model="mlp,hidden=8")
    specs = [QUICK, Spec("linear")]
    found = search(plan, prepare(plan, rehearsals=1), specs=specs, budget=2)
    assert list(found.attacks) == ["inverting_gradients", "linear"]
    assert len(found.attacks["linear"].tried) == 1
    failing = search(PLAN, prepared(), specs=specs, budget=1).attacks["linear"]
    assert failing.score == failing.default == -1
    assert "NotApplicable" in failing.tried[0].failures[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"specs": [Spec("linear")]}, "Nothing of linear is left to tune"),
        ({"specs": [Spec("inverting_gradients", {"tv": 1e-3, "lr": 0.1})]}, "tunable: lr, tv"),
        ({"budget": 0}, "budget"),
        ({"objective": "lpips"}, "ncc, ssim, psnr"),
    ],
)
def test_what_cannot_be_tuned_is_said(changes, expected):
    with pytest.raises(BadSetting, match=expected):
        search(PLAN, prepared(), **changes)


def test_nothing_to_rehearse_on_and_nothing_but_failures_are_said():
    with pytest.raises(BadSetting, match="--rehearsals"):
        search(PLAN, prepared(0))
    batches = replace(PLAN, batch_size=2, attack=Spec("inverting_gradients", {"steps": 1, "labels": "idlg"}))
    with pytest.raises(BadSetting, match="Every rehearsal failed, the first with NotApplicable: "):
        search(batches, prepare(batches, rehearsals=1), budget=1)


def test_columns_stand_in_the_result(tmp_path):
    plan = tuned().applied_to(PLAN, "there/tuned.json")
    found = perform(plan, prepare(plan), Store(tmp_path)).result
    assert found.settings.column == "rehearsal-tuned"
    assert "3 settings × 2 public clients, ncc" in found.settings.statement
    assert found.plan.attack.params == tuned().attacks["inverting_gradients"].settings
    assert not {"oracle_tuned", "rehearsed_elsewhere"} & set(found.flags)
    assert found.command.endswith("--tuned there/tuned.json")
    assert "rehearsal-tuned, 3 settings" in (tmp_path / "report.html").read_text()
    assert PLAN.column == "given"
    assert replace(PLAN, attack=Spec("inverting_gradients")).column == "default"


def test_what_was_rehearsed_elsewhere_is_flagged():
    plan = tuned().applied_to(replace(PLAN, rule=replace(PLAN.rule, mode="eval")))
    flag = perform(plan, prepare(plan)).result.flags["rehearsed_elsewhere"]
    assert "rule.mode" in flag
    assert "weights" not in flag


def test_settings_that_saw_a_victim_are_refused_unless_they_are_called_oracle_tuned():
    groups = prepared().main.groups
    seen = tuple(groups.digests(groups.victims[:1]))
    dishonest = replace(tuned(), pictures=(*tuned().pictures, *seen)).applied_to(PLAN)
    with pytest.raises(DataError, match="1 of 2 pictures of victims were rehearsed on"):
        prepare(dishonest)
    oracle = tuned(oracle=True)
    assert set(oracle.pictures) == set(groups.digests(groups.victims))
    plan = oracle.applied_to(PLAN)
    found = perform(plan, prepare(plan)).result
    assert found.settings.column == "oracle-tuned"
    assert "upper bound" in found.flags["oracle_tuned"]
    assert "oracle-tuned" in found.verdict.statement


def test_settings_beside_a_tuned_file_must_be_those_that_it_was_tuned_with():
    assert tuned().applied_to(PLAN).attack.params["steps"] == 3
    with pytest.raises(BadSetting, match="not tuned with inverting_gradients: steps=9"):
        tuned().applied_to(replace(PLAN, attack=Spec("inverting_gradients", {"steps": 9})))
    with pytest.raises(BadSetting, match="settings for inverting_gradients; got the attack 'linear'"):
        tuned().applied_to(replace(PLAN, attack=Spec("linear")))


def _changed(**changes):
    return json.dumps(asdict(tuned()) | changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (lambda: "", "does not hold tuned settings"),
        (lambda: "[" * 100_000, "does not hold tuned settings"),
        (lambda: _changed(schema=2), "'schema'"),
        (lambda: _changed(column="default"), "'column'"),
        (lambda: _changed(budget=0), "'budget'"),
        (lambda: _changed(extra=1), "'extra'"),
        (lambda: _changed(pictures=[]), "'pictures'"),
        (lambda: _changed(pictures=["../x"]), "'pictures.0'"),
        (lambda: _changed(attacks={}), "'attacks'"),
        (lambda: _changed(facts={"model": ["a"]}), "'facts.model"),
        (lambda: _changed().replace('"steps": 3', '"steps": NaN'), "settings.steps"),
        (lambda: _changed().replace('"tv": 0.', '"tv": -0.'), "for 'tv'"),
        (lambda: _changed().replace('"steps": 3', '"stepz": 3'), "not tuned with inverting_gradients: steps=3"),
    ],
)
def test_a_hostile_file_gives_one_sentence(text, expected, tmp_path, monkeypatch, capsys):
    (tmp_path / "tuned.json").write_text(text())
    monkeypatch.setattr(sys, "argv", ["leakmap", "audit", *WORDS, "--tuned", str(tmp_path / "tuned.json")])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        sys.exit(command())
    said = capsys.readouterr().err
    assert stop.value.code == 3
    assert expected in said
    assert len(said.splitlines()) <= 2
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_files_that_are_absent_or_huge_are_refused(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="No such file"):
        read_tuned(tmp_path / "tuned.json")
    monkeypatch.setattr("leakmap.files.JSON_LIMIT", 10)
    write_json(tmp_path / "tuned.json", asdict(tuned()))
    with pytest.raises(StoreError, match="larger than 10 bytes"):
        read_tuned(tmp_path / "tuned.json")


def test_the_members_of_the_suite_are_tuned_in_turn_and_keep_their_own_settings():
    plan = replace(PLAN, model="convnet,depth=1,width=4,norm=batch", attack=Spec("strongest_v1", {"steps": 2}))
    found = search(plan, prepare(plan, rehearsals=1), budget=2)
    assert list(found.attacks) == ["inverting_gradients", "recovered_statistics", "proxy_statistics"]
    applied = found.applied_to(plan)
    assert applied.attack.params["inverting_gradients.steps"] == 2
    weight = found.attacks["recovered_statistics"].settings["weight"]
    assert applied.attack.params["recovered_statistics.weight"] == weight
    assert "means of 3 attacks" in str(applied.tuned)
    audited = perform(applied, prepare(applied)).result
    assert audited.settings.column == "rehearsal-tuned"
    assert "rehearsed_elsewhere" not in audited.flags, "the tuning granted as many public pictures as the audit"
    with pytest.raises(BadSetting, match="not tuned with inverting_gradients: steps=3"):
        found.applied_to(replace(plan, attack=Spec("strongest_v1", {"steps": 3})))


def test_code_that_a_file_names_is_not_run(tmp_path):
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef build(task): ...")
    found = tuned()
    planted = {**asdict(found), "attacks": {"generator": asdict(found.attacks["inverting_gradients"])}}
    planted["attacks"]["generator"]["settings"] = {"build": f"{evil}:build"}
    write_json(tmp_path / "tuned.json", planted)
    with pytest.raises(BadSetting, match="type it in --attack"):
        read_tuned(tmp_path / "tuned.json").applied_to(replace(PLAN, attack=Spec("generator")))
    for name in (f"{evil}:1", f"{evil}c:build", f"{evil}:build\\n"):
        with pytest.raises(UsageError):
            load_user_code(name)
    assert not (tmp_path / "ran").exists()


def test_a_trial_depends_on_the_contents_of_the_users_generator(tmp_path):
    path = tmp_path / "paint.py"
    plan = replace(PLAN, attack=Spec("generator", {"build": f"{path}:build"}))
    keys = []
    for text in ("def build(task): ...", "def build(task): return 1"):
        path.write_text(text)
        keys.append(trials(plan, *prepared(0).digests)["attack"][0].key)
    assert keys[0] != keys[1]


def test_no_line_up_of_a_tuned_audit_holds_a_rehearsed_picture():
    rehearsed = set(tuned().pictures)
    assert rehearsed & set(prepared(0).main.groups.digests(prepared(0).main.groups.distractors))
    groups = prepare(tuned().applied_to(PLAN)).main.groups
    assert not rehearsed & set(groups.digests(groups.distractors))
