"""Real updates: attacked from the file alone, audited beside the truth, watched round after round."""

import copy
import errno
import json
import os
import socket
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from typer.testing import CliRunner

import leakmap
from leakmap import Facts, RuleFacts, memory
from leakmap.auditing.captured import held_pictures, prepare_captured
from leakmap.auditing.found import Audit
from leakmap.auditing.perform import perform
from leakmap.capturing.typed import read_observation
from leakmap.cli.main import app
from leakmap.client.data import load_pictures
from leakmap.doctor import watching
from leakmap.doctor.attacking import attack_file
from leakmap.doctor.examine import concluded
from leakmap.doctor.finding import Finding
from leakmap.doctor.watching import Watch, captures, look
from leakmap.errors import BadSetting, DataError, ModelError, NoRoom, ObservationError, StoreError, UsageError
from leakmap.plan.command import command
from leakmap.plan.plan import Plan
from leakmap.registry.spec import Spec
from leakmap.report.watch import write_watch
from leakmap.result.watched import CheckedFact, Digests, Watched, pooled_rounds
from leakmap.runs.setup import Setup
from leakmap.runs.store import Store
from leakmap.threat import ThreatModel
from tests.result.made_up import finished, made_up

CLIENTS, COUNT, SIZE = 2, 2, 16
PLAN = Plan("", "samples", threat=ThreatModel("known"), attack=Spec.parse("inverting_gradients,steps=3"))
FACTS = Facts(
    model="convnet,width=4",
    shape=(3, SIZE, SIZE),
    classes=8,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    count=COUNT,
    rule=RuleFacts(mode="eval", lr=0.1),
)


def send(folder, images, labels, number, name, facts=FACTS):
    """A client trains as users write it, and is captured."""
    model = leakmap.build_network(FACTS.task, FACTS.model, seed=number).module().eval()
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    F.cross_entropy(model((images.float() / 255 - 0.5) / 0.5), labels).backward()
    optimizer.step()
    file = folder / f"round-{number:04d}" / f"{name}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    leakmap.capture(before, model, facts, file=file)
    return file


def write_pictures(file, pictures, index):
    file.parent.mkdir(exist_ok=True)
    images, names = pictures.images[index].permute(0, 2, 3, 1).numpy(), np.array(pictures.classes)
    np.savez(file, images=images, labels=pictures.labels[index].numpy(), class_names=names)
    return f"npz:{file}"


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """Two clients in round 1, their pictures, and others."""
    root = tmp_path_factory.mktemp("federation")
    pictures = load_pictures("samples", SIZE)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    held = [order[c * COUNT : (c + 1) * COUNT] for c in range(CLIENTS)]
    files = [
        send(root / "captures", pictures.images[i], pictures.labels[i], 1, f"client-{c}") for c, i in enumerate(held)
    ]
    truths = [write_pictures(root / "truth" / f"client-{c}.npz", pictures, i) for c, i in enumerate(held)]
    others = write_pictures(root / "others.npz", pictures, order[COUNT:])
    return root, files, truths, others


@pytest.fixture
def no_network(monkeypatch):
    def refused(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def test_an_attack_from_a_file_is_that_in_process(federation, tmp_path, no_network):
    file = federation[1][0]
    how = Spec.parse("inverting_gradients,steps=4")
    found = attack_file(read_observation(file), how, tmp_path, seed=3)
    direct = leakmap.attack(leakmap.Observation.from_file(file), how, seed=3)
    stored = load_file(tmp_path / "reconstruction.safetensors")
    assert torch.equal(stored["pictures"], direct.pictures)
    assert torch.equal(stored["labels"], direct.y)
    assert found.record["objective"] == direct.objective
    assert (tmp_path / "pictures.png").is_file()
    assert not found.resumed
    assert attack_file(read_observation(file), how, tmp_path, seed=3).resumed
    assert not attack_file(read_observation(file), how, tmp_path, seed=4).resumed


def test_an_audit_scores_what_was_really_sent(federation, tmp_path):
    _, files, truths, others = federation
    plan, prepared = prepare_captured(PLAN, files, truths, others)
    assert prepared.flags == {}
    found = perform(plan, prepared, Store(tmp_path))
    assert [client.client for client in found.result.finished] == [0, 1]
    assert not found.result.failures
    assert found.result.line_up.swapped.n == CLIENTS * COUNT
    assert all(
        f"--observation {file} --truth {truth}" in command(plan) for file, truth in zip(files, truths, strict=True)
    )
    again = perform(plan, prepare_captured(PLAN, files, truths, others)[1], Store(tmp_path))
    assert again.result.resumed_runs == 3 * CLIENTS + 6


def test_results_of_edited_code_are_never_taken_for_those_of_the_new(federation, tmp_path):
    _, files, truths, others = federation
    code, helper = tmp_path / "mine.py", tmp_path / "helper_of_mine.py"

    def edit(scale, factor):
        helper.write_text(f"SCALE = {scale}\n")
        code.write_text(
            "from torch.nn import functional as F\nimport helper_of_mine as helper\n"
            f"def loss(outputs, y):\n    return {factor} * helper.SCALE * F.cross_entropy(outputs, y)\n"
        )

    plan = replace(PLAN, loss=f"{code}:loss", attack=Spec.parse("inverting_gradients,steps=1"))
    watch = Watch(files[0].parents[1], tmp_path / "watched", plan)

    def audited():
        return perform(*prepare_captured(plan, files[:1], truths[:1], others), Store(tmp_path / "out"))

    def attacked():
        known = replace(read_observation(files[0], loss=plan.loss), labels=torch.tensor([0, 1]))
        return attack_file(known, plan.attack, tmp_path / "attacked")

    edit(1, 1)
    audited()
    assert not attacked().resumed
    before = look(watch)
    for scale, factor in ((1, 30), (300, 1)):
        edit(scale, factor)
        with pytest.raises(StoreError, match="contents"):
            audited()
        assert not attacked().resumed
    edit(1, 1)
    assert audited().result.resumed_runs == 9
    edit(300, 1)
    after = look(watch)
    assert all(old.digests != new.digests for old, new in zip(before, after, strict=True))


def test_no_picture_of_a_client_is_among_the_others(federation):
    _, files, truths, others = federation
    groups = prepare_captured(PLAN, files, truths, others)[1].main.groups
    held = set(groups.digests(groups.victims))
    assert len(held) == CLIENTS * COUNT
    for name in ("swaps", "controls", "reference", "public", "distractors"):
        assert not held & set(groups.digests(getattr(groups, name)))


def test_a_wrong_fact_makes_finding_nothing_inconclusive(federation, tmp_path):
    _, files, truths, others = federation
    wrong = []
    for i, file in enumerate(files):
        observation = leakmap.Observation.from_file(file)
        task = replace(observation.network.task, mean=(0.0,) * 3, std=(1.0,) * 3)
        changed = replace(observation, network=replace(observation.network, task=task))
        changed.to_file(tmp_path / f"{i}.safetensors")
        wrong.append(tmp_path / f"{i}.safetensors")
    plan, prepared = prepare_captured(PLAN, wrong, truths, others)
    assert "does_not_replay" in prepared.flags
    found = perform(plan, prepared)
    assert found.level == "inconclusive"
    assert "doctor" in found.result.flags["does_not_replay"]


def test_a_setup_keeps_what_was_captured(federation, tmp_path):
    _, files, truths, others = federation
    setup = prepare_captured(PLAN, files, truths, others)[1].main
    setup.save(tmp_path / "setup.safetensors")
    read = Setup.load(tmp_path / "setup.safetensors")
    assert read.digest == setup.digest
    assert [one.digest() for one in read.captured] == [one.digest() for one in setup.captured]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda f, t, o: (f, t[:1], o), BadSetting, "needs its --truth"),
        (lambda f, t, o: (f, t, ""), BadSetting, "--others"),
        (lambda f, t, o: (f, [o, o], o), DataError, "different pictures"),
        (
            lambda f, t, o: ([*f, f[0].parent / "none.safetensors"], [*t, t[0]], o),
            ObservationError,
            "no Observation file",
        ),
        (lambda f, t, o: (f, t, t[0]), DataError, "too few"),
    ],
)
def test_what_does_not_fit_is_one_sentence(federation, change, error, said):
    _, files, truths, others = federation
    with pytest.raises(error, match=said):
        prepare_captured(PLAN, *change(files, truths, others))


def test_the_client_is_what_its_file_says(federation):
    _, files, truths, others = federation
    with pytest.raises(BadSetting, match="victims"):
        prepare_captured(replace(PLAN, victims=3), files, truths, others)


def test_code_that_a_file_names_runs_only_where_it_is_typed(federation, tmp_path):
    code, marker = tmp_path / "nets.py", tmp_path / "ran"
    code.write_text(
        f"from pathlib import Path\nfrom leakmap import models, Task\nPath({str(marker)!r}).touch()\n"
        f"TASK = Task((3, {SIZE}, {SIZE}), 8, (0.5,) * 3, (0.25,) * 3)\n"
        "def build():\n    return models.build('convnet,width=4', TASK)\n"
    )
    observation = leakmap.Observation.from_file(federation[1][0])
    file = tmp_path / "own.safetensors"
    replace(observation, network=replace(observation.network, model=Spec(f"{code}:build"))).to_file(file)
    with pytest.raises(ModelError, match="give --model"):
        read_observation(file)
    assert not marker.exists()
    own = read_observation(file, f"{code}:build")
    assert own.network.trained() == list(own.update.tensors)


def test_pictures_of_a_client_keep_their_order(federation):
    _, files, truths, _ = federation
    batch = held_pictures(truths[0], read_observation(files[0]).network.task)
    assert np.array_equal((batch.pictures * 255).round().byte().permute(0, 2, 3, 1), np.load(truths[0][4:])["images"])


def test_a_watched_folder_is_audited_as_it_fills(federation, tmp_path, monkeypatch):
    root, files, _, others = federation
    folder = tmp_path / "captures"
    (folder / "round-0001").mkdir(parents=True)
    (folder / "round-0001" / "client-0.safetensors").write_bytes(files[0].read_bytes())
    (folder / "round-0001" / ".client-9.safetensors.part").write_bytes(b"half")
    calls = []
    monkeypatch.setattr(watching, "perform", lambda *a, **k: calls.append(a) or perform(*a, **k))
    watch = Watch(folder, tmp_path / "out", PLAN, root / "truth", others)
    rows = look(watch)
    assert [row.name for row in rows] == ["round-0001/client-0"]
    assert all(row.done == ("checking", "auditing") and row.rank_score is not None for row in rows)
    assert not [finding for row in rows for finding in row.findings if finding.level == "wrong"]
    assert len(calls) == 1

    (folder / "round-0002").mkdir()
    (folder / "round-0002" / "client-0.safetensors").write_bytes(files[0].read_bytes())
    (folder / "round-0002" / "client-5.safetensors").write_bytes(b"\x80junk")
    rows = look(watch)
    assert len(calls) == 2
    last = {row.name: row for row in rows}
    assert last["round-0002/client-0"].level
    assert last["round-0002/client-5"].findings[0].level == "wrong"
    assert "not scored" in last["round-0002/client-5"].note
    assert look(watch) == rows
    assert len(calls) == 2
    assert all((watch.out / name).is_file() for name in ("watch.json", "watch.html", "leakage.png"))
    assert (watch.out / last["round-0002/client-0"].report).is_file()

    for file in (root / "truth").rglob("*"):
        os.utime(file, (0, 0))
    assert [row.level for row in look(watch)] == [row.level for row in rows]
    assert len(calls) == 4, "pictures that changed are scored again"

    drawn, looks = [], []
    monkeypatch.setattr(watching, "write_watch", lambda *a: drawn.append(a))
    look(watch, again=0.0, seen=lambda rows: looks.append(rows) or len(looks) == 3)
    assert (len(looks), len(drawn)) == (3, 1), "a folder in which nothing changes is drawn once"


def test_an_interrupted_look_repeats_nothing(federation, tmp_path, monkeypatch):
    root, files, _, others = federation
    watch = Watch(files[0].parents[1], tmp_path, PLAN, root / "truth", others)
    found = Audit(made_up(finished(0, (1.0,), (20,))), [])
    calls = []

    def once(*args, **kwargs):
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        return found

    monkeypatch.setattr(watching, "perform", once)
    with pytest.raises(KeyboardInterrupt):
        look(watch)
    stored = json.loads((tmp_path / "watch.json").read_text())["captures"]
    assert [row["done"] for row in stored.values()] == [["checking", "auditing"], ["checking"]]
    monkeypatch.setattr(watching, "perform", lambda *a, **k: calls.append(a) or found)
    assert [row.rank_score for row in look(watch)] == [1.0, 1.0]
    assert len(calls) == 2


def test_rounds_are_pooled_and_alarms_survive_a_restart(federation, tmp_path, monkeypatch):
    """Bets win on ranks that are better than those of swapped updates; the first alarm ends the watch with code 1."""
    root, files, _, others = federation
    folder = tmp_path / "captures"
    leaking = finished(0, (1.0,), (20,), swapped_ranks=(20.0,))
    monkeypatch.setattr(watching, "perform", lambda *a, **k: Audit(made_up(leaking), []))
    arguments = ["watch", str(folder), "--truth", str(root / "truth"), "--others", others, "--once", "--json"]
    arguments += ["--out", str(tmp_path / "out"), "--junit", str(tmp_path / "w.xml")]
    evidence = []
    for number in range(1, 9):
        (folder / f"round-{number:04d}").mkdir(parents=True)
        (folder / f"round-{number:04d}" / "client-0.safetensors").write_bytes(files[0].read_bytes())
        run = CliRunner().invoke(app, [*arguments, "--alarm"])
        found = json.loads(run.stdout)["pooled"]
        assert found["captures"] == number
        evidence.append(found["evidence"])
        assert run.exit_code == (1 if evidence[-1] >= 20 else 0)
    assert evidence == sorted(evidence)
    assert evidence[-1] >= 20
    assert found["alarms"][0]["capture"] == f"round-{1 + sum(one < 20 for one in evidence):04d}/client-0"
    again = CliRunner().invoke(app, arguments)
    assert json.loads(again.stdout)["pooled"] == found
    assert (again.exit_code, again.stderr.count("alarm: ")) == (0, 1)
    suite = ElementTree.parse(tmp_path / "w.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("9", "1")
    seen = [row.model_copy(update={"level": "exact"}) for row in look(Watch(folder, tmp_path / "two", PLAN))]
    assert [alarm.kind for alarm in pooled_rounds(seen).alarms] == ["exposed"]


def test_a_late_capture_of_an_early_round_undoes_no_alarm(tmp_path, monkeypatch):
    folder, out, lucky = tmp_path / "captures", tmp_path / "out", {"level": "none_found", "advantage": 0.9}
    scores = {f"round-{number:04d}/client-0": lucky for number in range(2, 9)}
    scores |= {f"round-0001/client-{number}": lucky | {"advantage": -0.9} for number in range(3)}
    monkeypatch.setattr(watching, "write_watch", lambda *a: None)
    steps = {"checking": lambda *a: {}, "auditing": lambda watch, capture, progress: dict(scores[capture.name])}
    monkeypatch.setattr(watching, "STEPS", steps)

    def arrive(names):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.safetensors").write_bytes(name.encode())
        return pooled_rounds(look(Watch(folder, out, PLAN)))

    before = arrive([name for name in scores if "0001" not in name])
    assert [alarm.kind for alarm in before.alarms] == ["pooled"]
    # One more each time: those of a look before it keep their places, whatever its round.
    for name in [name for name in scores if "0001" in name]:
        after = arrive([name])
        assert (after.alarms, after.evidence) == (before.alarms, before.evidence)
    assert [row.place for row in look(Watch(folder, out, PLAN))] == [8, 9, 10, *range(1, 8)]
    # Of an earlier version the order is that in which captures are stored; scored anew, a capture keeps its place.
    stored = json.loads((out / "watch.json").read_text())
    for row in stored["captures"].values():
        del row["place"]
    (out / "watch.json").write_text(json.dumps(stored))
    (folder / "round-0001" / "client-0.safetensors").write_bytes(b"another")
    assert [row.place for row in look(Watch(folder, out, PLAN))] == [*range(1, 11)]


def test_without_the_clients_pictures_captures_are_checked_not_scored(federation, tmp_path, monkeypatch):
    files = federation[1]
    monkeypatch.chdir(tmp_path)
    arguments = ["watch", str(files[0].parents[1]), "--once", "--json", "--out", str(tmp_path)]
    run = CliRunner().invoke(app, arguments)
    rows = list(json.loads(run.stdout)["captures"].values())
    assert [row["level"] for row in rows] == [None, None]
    assert all(row["findings"] and "not scored" in row["note"] for row in rows)
    (tmp_path / "mine").touch()  # what else the working folder holds is no source of pictures
    assert list(json.loads(CliRunner().invoke(app, arguments).stdout)["captures"].values()) == rows


def test_captures_are_sorted_by_round_and_client(tmp_path):
    for name in ("round-0010/a", "round-0002/b", "round-0002/a", "elsewhere/c"):
        file = tmp_path / f"{name}.safetensors"
        file.parent.mkdir(exist_ok=True)
        file.touch()
    found = [(one.round, one.client) for one in captures(tmp_path)]
    assert found == [(0, "c"), (2, "a"), (2, "b"), (10, "a")]


def test_the_commands_from_file_to_attack(federation, tmp_path, no_network):
    runner, file = CliRunner(), federation[1][0]
    facts = runner.invoke(app, ["facts", "convnet,width=4", "--shape", "3,16,16", "--classes", "8"])
    assert facts.exit_code == 0
    (tmp_path / "facts.toml").write_text(facts.stdout)
    observation = leakmap.Observation.from_file(file)
    before = observation.network.weights
    after = {name: tensor + observation.update.tensors.get(name, 0) for name, tensor in before.items()}
    torch.save(dict(before), tmp_path / "before.pt")
    np.savez(tmp_path / "after.npz", *(tensor.numpy() for tensor in after.values()))
    arguments = [f"--{name}={tmp_path / file}" for name, file in (("before", "before.pt"), ("after", "after.npz"))]
    arguments += [f"--facts={tmp_path / 'facts.toml'}", f"--out={tmp_path / 'o.safetensors'}", "--count=2"]
    made = runner.invoke(app, ["capture", *arguments])
    assert made.exit_code == 0, made.output
    captured = leakmap.Observation.from_file(tmp_path / "o.safetensors")
    for name, tensor in observation.update.tensors.items():
        assert torch.allclose(captured.update.tensors[name], tensor, atol=1e-7)
    attacked = runner.invoke(
        app,
        [
            "attack",
            str(file),
            "--attack",
            "inverting_gradients",
            "--steps",
            "2",
            "--out",
            str(tmp_path / "a"),
            "--json",
        ],
    )
    assert json.loads(attacked.stdout)["pictures"] == COUNT


def test_the_doctor_says_which_fact_is_wrong(federation, tmp_path, no_network):
    _, files, truths, _ = federation
    runner = CliRunner()
    right = runner.invoke(app, ["doctor", str(files[0]), "--replay", truths[0], "--json"])
    assert right.exit_code == 0, right.output
    observation = leakmap.Observation.from_file(files[0])
    task = replace(observation.network.task, mean=(0.0,) * 3, std=(1.0,) * 3)
    broken, repaired = tmp_path / "broken.safetensors", tmp_path / "repaired.safetensors"
    replace(observation, network=replace(observation.network, task=task)).to_file(broken)
    wrong = runner.invoke(app, ["doctor", str(broken), "--replay", truths[0], "--fixed", str(repaired)])
    assert wrong.exit_code == 1
    assert "normaliz" in " ".join(wrong.output.split())
    assert leakmap.Observation.from_file(repaired).network.task == observation.network.task


def test_the_page_names_a_partial_last_batch(tmp_path):
    said = "The last local step holds 1 of 33 pictures alone."
    risk = CheckedFact(name="last_batch", level="notice", sentence=said)
    blank = Digests(checking="", auditing="")
    rows = [
        Watched(name=f"round-0001/client-{c}", round=1, client=f"client-{c}", file="x", digests=blank, findings=(risk,))
        for c in range(2)
    ]
    page = write_watch(tmp_path, rows, "strongest").read_text()
    assert f"<strong>round-0001/client-0</strong> and 1 more: {said}" in page


def test_one_bad_file_is_a_row_and_the_others_go_on(federation, tmp_path, caplog):
    root, files, _, others = federation
    folder = tmp_path / "captures"
    site = folder / "site" / "round-0001"
    (folder / "round-0001").mkdir(parents=True)
    site.mkdir(parents=True)
    for file, place in zip(files, (folder / "round-0001", site), strict=True):
        (place / "client-0.safetensors").write_bytes(file.read_bytes())
    (site / "folder.safetensors").mkdir()
    (site / "nowhere.safetensors").symlink_to("nothing")
    os.mkfifo(site / "pipe.safetensors")
    (site / os.fsdecode(b"\xff\x1b.safetensors")).write_bytes(b"x")
    (site / "large.safetensors").touch()
    os.truncate(site / "large.safetensors", 2**40)
    watch = Watch(folder, folder / "out", PLAN, root / "truth", others)
    rows = {row.name: row for row in look(watch)}
    odd = {rf"site/round-0001/{name}" for name in ("folder", "nowhere", "pipe", r"\udcff\x1b", "large")}
    assert set(rows) == {"round-0001/client-0", "site/round-0001/client-0"} | odd
    assert all(rows[name].findings[0].level == "wrong" for name in odd)
    assert rows["round-0001/client-0"].level is not None
    assert rows["site/round-0001/client-0"].level is None, "another site's client of the same name is another client"
    assert {row.name for row in look(watch)} == set(rows), "results in the folder are no captures"
    (watch.out / "watch.json").write_text("{")
    assert [row.level for row in look(watch)] == [row.level for row in rows.values()]
    assert "All captures are looked at again" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("no memory"),
        NoRoom("2 GB are free."),
        OSError(errno.EMFILE, "Too many open files"),
        PermissionError(errno.EACCES, "Permission denied"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_this_machine_lacks_now_is_tried_again_and_stops_no_other_capture(
    error, federation, tmp_path, monkeypatch
):
    root, files, _, others = federation
    watch = Watch(files[0].parents[1], tmp_path, PLAN, root / "truth", others)
    found, calls = Audit(made_up(finished(0, (1.0,), (20,))), []), []

    def lacking(name, work):
        def once(*args, **kwargs):
            calls.append(name)
            if calls.count(name) == 1 and name == "prepare_captured":
                raise DataError("The pictures cannot be read.") from error
            if calls.count(name) == 1:
                raise error
            return work(*args, **kwargs)

        monkeypatch.setattr(watching, name, once)

    lacking("read_observation", read_observation)
    lacking("prepare_captured", lambda *a: (None, None))
    lacking("perform", lambda *a, **k: found)
    monkeypatch.setattr(watching, "write_watch", lambda *a: None)
    first, second = look(watch)
    assert (first.done, second.done) == ((), ("checking",))
    assert first.findings == ()
    assert all("not finished: " in row.note and "The next look tries again." in row.note for row in (first, second))
    rows = look(watch)
    assert all({*row.done} == {"checking", "auditing"} and row.findings and not row.note for row in rows)
    before = list(calls)
    assert look(watch) == rows
    assert calls == before


def test_a_number_of_pictures_that_no_memory_holds_is_refused(federation, tmp_path, monkeypatch):
    observation = replace(leakmap.Observation.from_file(federation[1][0]), count=2**20)
    monkeypatch.setattr(memory, "free_memory", lambda: 2**33)
    for attacking in (
        lambda: leakmap.attack(observation, "inverting_gradients,steps=1"),
        lambda: attack_file(observation, Spec("strongest"), tmp_path),
    ):
        with pytest.raises(UsageError, match=r"Attacking 1048576 pictures .* 8\.6 GB are free: check the number"):
            attacking()


def test_the_doctor_concludes_first(federation, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file, truth = federation[1][0], federation[2][0]
    wrong = tmp_path / "wrong.safetensors"
    o = read_observation(file)
    replace(o, rule=replace(o.rule, lr=0.2)).to_file(wrong)
    for words, second in {
        (str(file),): "No fact contradicts the update",
        (
            str(file),
            "--replay",
            truth,
        ): "The facts are right: the client, run again on its pictures, sends this update.",
        (str(wrong), "--replay", truth): "The facts are wrong in lr.",
    }.items():
        shown = CliRunner().invoke(app, ["doctor", *words, "--quiet"]).output.splitlines()
        assert second in shown[1], shown
    told = {
        Finding("sign", "wrong", ""): "The facts contradict the update: sign.",
        Finding("scale", "notice", ""): "look: scale",
    }
    for finding, words in told.items():
        assert words in concluded([finding])
