"""Whole audits, small: the result, floors, resuming, interruption, the report."""

import json
import re
from dataclasses import replace

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn

import leakmap
from leakmap import LocalRule, Spec, ThreatModel
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import granting, prepare
from leakmap.auditing.recipe import trials
from leakmap.client.data import load_pictures
from leakmap.errors import BadSetting, DataError, StoreError
from leakmap.plan.plan import Plan
from leakmap.runs.run import run
from leakmap.runs.runner import Local
from leakmap.runs.store import Store
from tests.conftest import Deadly

QUICK = Spec("inverting_gradients", {"steps": 4})
PLAN = Plan("mlp,hidden=16", "samples", image_size=16, victims=3, attack=QUICK)


def runs(plan: Plan, prepared):
    return trials(granting(plan, prepared.main.groups), *prepared.digests)


def scores(store: Store, plan: Plan, prepared) -> dict[str, object]:
    found = {t.key: store.get(t) for of_role in runs(plan, prepared).values() for t in of_role}
    return {
        key: (o.score.values, o.score.ranks, o.score.pictures.numpy().tobytes())
        for key, o in found.items()
        if o.score is not None
    }


def test_automatic_public_pictures_become_a_number_and_the_folder_resumes_with_either(tmp_path):
    prepared = prepare(PLAN)
    count = len(prepared.main.groups.public)
    first = perform(PLAN, prepared, Store(tmp_path)).result
    assert first.plan.threat.public == first.knowledge.granted.public == first.pictures["public"] == count > 300
    assert first.knowledge.public == f"{count} public pictures from other photographs"
    assert f"--public {count}" in first.command
    assert '"public": "auto"' not in (tmp_path / "plan.json").read_text()
    for plan in (PLAN, first.plan):
        again = perform(plan, prepare(plan), Store(tmp_path)).result
        assert (again.plan, again.resumed_runs) == (first.plan, len(PLAN.attack.params) * 15)


def test_an_attack_on_public_pictures_is_refused_where_none_are_granted_or_left():
    plan = replace(PLAN, attack=Spec("proxy_statistics"))
    with pytest.raises(BadSetting, match="needs public, which the threat model withholds"):
        prepare(replace(plan, threat=ThreatModel(public=0)))
    few = replace(load_pictures("samples", 16), elsewhere=None)
    with pytest.raises(BadSetting, match="needs public pictures, and none are left: say how many with --public"):
        prepare(plan, few)
    assert len(prepare(replace(plan, threat=ThreatModel(public=9)), few).main.groups.public) == 9


def test_the_closed_form_on_its_leaking_network_is_exact(tmp_path):
    plan = replace(PLAN, attack=Spec("linear"), victims=4)
    found = perform(plan, prepare(plan), Store(tmp_path))
    assert found.level == "exact"
    assert found.result.line_up.attack.hits == 4
    assert found.result.line_up.swapped.hits == 0
    labels = found.result.labels
    assert (labels.source, labels.rule, labels.right) == ("inferred", "idlg", 1.0)
    assert leakmap.read_result(tmp_path / "result.json") == found.result
    Draft202012Validator(leakmap.result_schema()).validate(json.loads((tmp_path / "result.json").read_text()))
    assert {f.name for f in tmp_path.iterdir()} == {
        "schema.json",
        "plan.json",
        "provenance.json",
        "result.json",
        "report.html",
        "trials",
    }


def test_a_null_audit_of_the_same_is_at_chance(tmp_path):
    plan = replace(PLAN, attack=Spec("linear"), victims=12, null=True)
    found = perform(plan, prepare(plan))
    assert found.level == "none_found"
    assert found.result.verdict.statement.startswith("Null audit")


def test_every_score_has_its_floors_and_every_row_its_pictures():
    found = perform(PLAN, prepare(PLAN))
    assert len(found.rows) == 3
    for row in found.result.finished:
        for metric in ("psnr", "ssim"):
            assert set(row.floors[metric]) == {
                "prior_only",
                "swapped",
                "other_client",
                "mean_picture",
                "nearest_public",
            }
    assert set(found.rows[0]) == {
        "original", "reconstruction", "prior only", "swapped update", "mean picture", "nearest public",
    }  # fmt: skip


def test_floors_use_the_settings_of_the_attack():
    plan = replace(PLAN, attack=Spec("inverting_gradients", {"steps": 4, "tv": 0.5}))
    planned = trials(plan, *prepare(plan).digests)
    assert planned["prior_only"][0].attack == Spec("prior_only", {"of": "inverting_gradients", "steps": 4, "tv": 0.5})
    assert {t.swap for t in planned["swapped"]} == {1}
    null = replace(plan, null=True)
    assert {t.swap for t in trials(null, *prepare(null).digests)["swapped"]} == {2}


def test_an_interrupted_audit_resumes_without_repeating_and_ends_with_the_same_bytes(tmp_path):
    prepared = prepare(PLAN)
    whole = Store(tmp_path / "whole")
    perform(PLAN, prepared, whole)

    store, ran = Store(tmp_path / "cut"), []

    def stop(what, fraction):
        if what.startswith("run 4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(PLAN, prepared, store, progress=stop)
    partial = json.loads((store.folder / "result.json").read_text())
    assert partial["verdict"]["level"] == "inconclusive"
    assert partial["unfinished"] > 0
    assert (store.folder / "report.html").exists()
    kept = set((store.folder / "trials").iterdir())
    found = perform(PLAN, prepared, store, progress=lambda what, fraction: ran.append(what))
    assert found.result.resumed_runs == len(kept) >= 3
    assert found.result.unfinished == 0
    assert scores(store, PLAN, prepared) == scores(whole, PLAN, prepared)


def test_a_damaged_outcome_is_run_again(tmp_path):
    store, prepared = Store(tmp_path), prepare(PLAN)
    perform(PLAN, prepared, store)
    first = next((tmp_path / "trials").iterdir())
    first.write_bytes(first.read_bytes()[:50])
    assert perform(PLAN, prepared, store).result.unfinished == 0
    assert store.get(next(t for ts in runs(PLAN, prepared).values() for t in ts if store.path(t.key) == first))


def test_another_audit_in_the_same_folder_is_refused_and_what_differs_is_named(tmp_path):
    perform(PLAN, prepare(PLAN), Store(tmp_path))
    other = replace(PLAN, seed=1)
    with pytest.raises(StoreError, match="seed"):
        perform(other, prepare(other), Store(tmp_path))


def test_own_code_reaches_processes_that_give_the_same_bytes_and_one_that_is_killed_is_a_failure_on_record(tmp_path):
    groups = prepare(replace(PLAN, victims=1)).main.groups
    deadly = groups.pictures(groups.swaps[0, 0]).mean().item()
    source = tmp_path / "own.py"
    source.write_text(
        "import multiprocessing, os, signal\nfrom torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def forward(self, x):\n"
        f"        if multiprocessing.parent_process() and abs(float(x.detach().mean()) - {deadly}) < 1e-6:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().forward(x)\n"
        "def build():\n"
        "    features = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU()\n"
        "    return Net(*features, nn.Flatten(), nn.Linear(36, 8))\n"
        "def loss(outputs, y):\n    return 2 * nn.functional.cross_entropy(outputs, y)\n"
    )
    own = {"model": f"{source}:build", "loss": f"{source}:loss", "normalization": "0/0/0:1/1/1"}
    plan = replace(PLAN, victims=1, threat=ThreatModel("known"), **own)
    prepared, store, seen = prepare(plan), Store(tmp_path / "o"), []
    perform(plan, prepared, store)
    here = scores(store, plan, prepared)
    attacked, swapped = (runs(plan, prepared)[role][0].key for role in ("attack", "swapped"))
    for key in (attacked, swapped):
        store.path(key).unlink()
    found = perform(plan, prepared, store, Local(2), progress=lambda what, fraction: seen.append(fraction))
    assert [(failure.role, failure.kind) for failure in found.result.failures] == [("swapped", "WorkerDied")]
    assert found.level == "inconclusive"
    assert seen[-1] == pytest.approx(1.0)
    there = scores(store, plan, prepared)
    assert attacked in there
    assert there == {key: found for key, found in here.items() if key != swapped}


def test_a_client_whose_neighbour_was_lost_keeps_every_floor():
    plan = Plan("mlp,hidden=16", "samples", image_size=16, victims=3, batch_size=2, attack=Spec("linear"))

    def dies(trial):
        return trial.group == "victims" and trial.client == 0 and trial.attack.name == "linear" and not trial.swap

    found = perform(plan, prepare(plan), runner=Deadly(dies=dies))
    for row in found.result.finished:
        assert all(of["other_client"] is not None for of in row.floors.values())
    assert 0 not in [row.client for row in found.result.finished]


def test_a_failing_attack_is_recorded_counted_and_inconclusive():
    plan = replace(PLAN, model="convnet,width=8", attack=Spec("linear"))
    found = perform(plan, prepare(plan))
    assert found.level == "inconclusive"
    assert {f.kind for f in found.result.failures} == {"NotApplicable"}
    assert "failed_runs" in found.result.flags
    assert found.result.finished == []
    assert any("does not begin with one" in reason for reason in found.result.verdict.reasons)


def test_a_zeroed_head_is_inconclusive_with_the_flag_that_says_why():
    plan = replace(PLAN, model="resnet,blocks=1,width=4")
    prepared = prepare(plan)
    weights = {k: torch.zeros_like(t) if k.startswith("head.") else t for k, t in prepared.main.network.weights.items()}
    main = replace(prepared.main, network=replace(prepared.main.network, weights=weights))
    found = perform(plan, replace(prepared, main=main))
    assert found.level == "inconclusive"
    assert "its weights are zero" in found.result.flags["degenerate_update"]


def test_a_saturated_client_is_flagged():
    plan = replace(PLAN, model="mlp,hidden=16")
    prepared = prepare(plan)
    sure = {k: t * 1e4 if k.startswith("4.weight") else t for k, t in prepared.main.network.weights.items()}
    network = replace(prepared.main.network, weights=sure)
    victims = prepared.main.groups
    labels = network.module()(network.task.normalize(victims.images.float() / 255)).argmax(1)
    main = replace(prepared.main, network=network, groups=replace(victims, labels=labels))
    found = perform(plan, replace(prepared, main=main))
    assert set(found.result.flags) & {"saturated", "degenerate_update"}


def test_batches_shared_as_weight_deltas(tmp_path):
    plan = replace(
        PLAN,
        model="resnet,blocks=1,width=4",
        batch_size=3,
        rule=LocalRule(share="delta", batch_size=2, epochs=2, momentum=0.9),
        threat=ThreatModel(labels="counts", public=8),
    )
    found = perform(plan, prepare(plan), Store(tmp_path))
    row = found.result.finished[0]
    assert len(row.ranks) == len(row.scores["psnr"]) == 3
    assert row.labels_right == 1
    assert found.result.knowledge.attacker == "E+"


def test_from_python_with_a_module_and_pictures_in_memory():
    pictures = load_pictures("samples", 16)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 8))
    before = [p.clone() for p in model.parameters()]
    found = leakmap.audit(model, pictures.images.float() / 255, pictures.labels, attack="linear", victims=4)
    assert found.level == "exact"
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        leakmap.audit(model, pictures.images.float(), pictures.labels)
    with pytest.raises(DataError, match=r"\(N, C, H, W\)"):
        leakmap.audit(model, pictures.images[0], pictures.labels)


def test_too_few_pictures_are_refused_with_the_numbers():
    pictures = load_pictures("samples", 16)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 8))
    with pytest.raises(DataError, match="30 different pictures are too few"):
        leakmap.audit(model, pictures.images[:30], pictures.labels[:30], classes=8)


def test_normalization_is_read_and_refused():
    assert prepare(replace(PLAN, normalization="imagenet")).main.network.task.mean == (0.485, 0.456, 0.406)
    assert prepare(replace(PLAN, normalization="0.5/0.5/0.5:0.2/0.2/0.2")).main.network.task.std == (0.2, 0.2, 0.2)
    for bad in ("imagenett", "0.5:0.5", "a/b/c:1/1/1"):
        with pytest.raises(BadSetting, match="normalization"):
            prepare(replace(PLAN, normalization=bad))


def test_keys_depend_on_contents_and_settings_and_on_nothing_else():
    first, second = (trials(PLAN, *prepare(PLAN).digests)["attack"][0] for _ in range(2))
    assert first.key == second.key
    changed = [replace(PLAN, seed=1), replace(PLAN, attack=Spec("inverting_gradients", {"steps": 5}))]
    keys = {first.key, *(trials(plan, *prepare(plan).digests)["attack"][0].key for plan in changed)}
    assert len(keys) == 3


def test_victims_never_reach_an_attack(monkeypatch):
    """The attack is handed an Observation rebuilt from bytes, on which no private tensor hangs."""
    import leakmap.runs.run as room

    handed = []
    original = room.attack
    monkeypatch.setattr(room, "attack", lambda o, *rest, **named: handed.append(o) or original(o, *rest, **named))
    prepared = prepare(PLAN)
    trial = trials(PLAN, *prepared.digests)["attack"][0]
    assert run(trial, prepared.main).failure is None
    private = room.held_by(trial, prepared.main).pictures
    for name, tensor in handed[0].update.tensors.items():
        assert tensor.grad_fn is None, name
    held = [t for t in vars(handed[0]).values() if isinstance(t, torch.Tensor)]
    assert not any(t.shape == private.shape for t in held)
    assert handed[0].labels is None


def test_the_report_needs_no_network_and_escapes_what_users_wrote(tmp_path):
    plan = replace(PLAN, victims=2)
    found = perform(plan, prepare(plan))
    typed = replace(found.result.plan, model="<script>alert(1)</script>")
    found = replace(found, result=found.result.model_copy(update={"plan": typed}))
    text = found.save(tmp_path).read_text()
    assert "<script" not in text
    addresses = set(re.findall(r"https?://[^\"'<> )]+", text))
    assert all("w3.org" in a or "purl.org" in a or "creativecommons" in a for a in addresses)
    assert not re.search(r"<(link|iframe|object)|src=\"(?!data:)", text)
    assert text.count("data:image/png;base64,") == 2 * 6 + 2 * 2  # the worst stand beside the answer too
    assert "What this does not say" in text
