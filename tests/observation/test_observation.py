"""The file format, hostile files, and what may reach an attacker."""

import io
import json
import mmap
import pickle
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from leakmap import (
    Batch,
    Code,
    LeakmapError,
    LocalRule,
    Observation,
    Public,
    ThreatModel,
    attack,
    build_network,
    memory,
    observe,
    simulate,
)
from leakmap.errors import BadSetting, ModelError, NotGranted, ObservationError, UsageError
from leakmap.observation.contents import SHOWN
from leakmap.observation.observation import HEADER_LIMIT, PARSED
from leakmap.threat import known_before
from tests.conftest import batch_of, observed

GRANTS = ThreatModel("known", public=3, known_pixels=0.4)


@pytest.fixture
def observation(task) -> Observation:
    return observed("resnet,blocks=1,width=4", task, rule=LocalRule(share="delta", epochs=2), threat=GRANTS)[1]


def edited(data: bytes, change) -> bytes:
    """The same file with its manifest and tensors changed."""
    size = struct.unpack("<Q", data[:8])[0]
    manifest = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["leakmap"])
    tensors = load(data)
    change(manifest, tensors)
    return save(tensors, metadata={"leakmap": json.dumps(manifest)})


def test_a_file_gives_back_the_same_observation(observation, tmp_path):
    path = tmp_path / "client.safetensors"
    observation.to_file(path)
    back = Observation.from_file(path)
    assert back.digest() == observation.digest()
    assert list(back.update.tensors) == list(observation.update.tensors)
    assert back.rule == observation.rule
    assert back.network.task == observation.network.task
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_tensors_that_were_read_lie_in_memory_as_torchs_own_so_that_they_round_alike(observation):
    back = Observation.from_bytes(observation.to_bytes())
    torchs = 64
    assert all(tensor.data_ptr() % torchs == 0 for tensor in {**back.network.weights, **back.update.tensors}.values())


def _set(path, value):
    def change(manifest, tensors):
        target = manifest
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


def _tensor(name, value):
    def change(manifest, tensors):
        tensors[name] = value
        entry = next((e for e in manifest["tensors"] if e["name"] == name), None)
        if entry is None:
            manifest["tensors"].append(entry := {"name": name})
        entry.update(shape=list(value.shape), dtype=str(value.dtype))

    return change


def _drop(name):
    def change(manifest, tensors):
        del tensors[name]

    return change


HOSTILE = {
    "unknown version": (_set(["schema"], 99), "version 99"),
    "schema of the wrong type": (_set(["schema"], "1"), "schema"),
    "wrong kind": (_set(["update"], "weights"), "update"),
    "huge claim": (_set(["tensors", 0, "shape"], [2**40, 2**20]), "claims"),
    "negative size": (_set(["tensors", 0, "shape"], [-1]), "tensors.0.shape"),
    "shape that differs": (_set(["tensors", 0, "shape"], [1, 2]), "manifest says"),
    "unknown type": (_set(["tensors", 0, "dtype"], "object"), "object"),
    "extra field": (_set(["code"], "import os"), "code"),
    "count below one": (_set(["count"], 0), "count"),
    "count too large": (_set(["count"], 2**40), "count"),
    "count that differs": (_set(["count"], 7), "labels"),
    "rate out of range": (_set(["rule", "momentum"], 3.0), "momentum"),
    "rule of another kind": (_set(["rule", "share"], "gradient"), "share|local steps"),
    "mean that is not finite": (_set(["task", "mean"], [float("nan"), 0.0, 0.0]), "mean"),
    "zero deviation": (_set(["task", "std"], [0.0, 1.0, 1.0]), "std"),
    "channels that differ": (_set(["task", "mean"], [0.5]), "mean"),
    "grant that is not there": (_set(["granted"], ["labels"]), "granted"),
    "values that are not finite": (
        _tensor("update/head.bias", torch.full((4,), float("nan"))),
        "update/head.bias",
    ),
    "update of a wrong shape": (_tensor("update/head.bias", torch.zeros(5)), "update/head.bias"),
    "update of an unknown name": (_tensor("update/nothing", torch.zeros(5)), "update/nothing"),
    "tensor of an unknown group": (_tensor("truth", torch.zeros(5)), "truth"),
    "label out of range": (_tensor("labels", torch.tensor([0, 9])), "labels"),
    "labels of a wrong type": (_tensor("labels", torch.tensor([0.0, 1.0])), "labels"),
    "counts that do not sum up": (_tensor("label_counts", torch.tensor([5, 0, 0, 0])), "label_counts"),
    "public out of range": (_tensor("public/pictures", torch.full((3, 3, 16, 16), 7.0)), "public/pictures"),
    "known_pixels out of range": (
        _tensor("known_pixels", torch.full((2, 3, 16, 16), 1.5)),
        "'known_pixels' must be floats",
    ),
    "known_pixels of a wrong type": (
        _tensor("known_pixels", torch.ones(2, 3, 16, 16, dtype=torch.int64)),
        "'known_pixels' must be floats",
    ),
    "known_pixels that is not finite": (
        _tensor("known_pixels", torch.full((2, 3, 16, 16), float("inf"))),
        "'known_pixels' holds values",
    ),
    "known_pixels of a wrong size": (_tensor("known_pixels", torch.zeros(3, 3, 16, 16)), "'known_pixels' has shape"),
    "tensor that is missing": (_drop("update/head.bias"), "update/head.bias"),
}


@pytest.mark.parametrize("case", list(HOSTILE))
def test_a_hostile_file_gives_one_sentence_with_file_and_field(case, observation, tmp_path):
    change, word = HOSTILE[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(edited(observation.to_bytes(), change))
    with pytest.raises(ObservationError, match=word) as error:
        Observation.from_file(path)
    assert "bad.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pickle_is_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('executed')",))

    for name, data in {"raw": pickle.dumps(Bomb()), "zip": _checkpoint(Bomb())}.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ObservationError, match="pickle"):
            Observation.from_file(path)


def _checkpoint(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_absent_and_empty_files(tmp_path):
    with pytest.raises(ObservationError, match="no Observation file"):
        Observation.from_file(tmp_path / "none")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ObservationError, match="header"):
        Observation.from_file(tmp_path / "empty")


def test_a_header_is_measured_before_it_is_parsed(monkeypatch):
    size = HEADER_LIMIT + 1
    claiming = mmap.mmap(-1, 8 + size)  # takes no memory until it is written
    claiming[:8] = struct.pack("<Q", size)
    with pytest.raises(ObservationError, match=f"the header claims {size} bytes; at most {HEADER_LIMIT} are read"):
        Observation.from_bytes(claiming)
    deep = "[" * 300 + "]" * 300
    data = save({}, metadata={"leakmap": f"[{','.join([deep] * 100)}]"})
    tracemalloc.start()
    try:
        with pytest.raises(ObservationError, match="manifest"):
            Observation.from_bytes(data)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < PARSED * len(data)
    monkeypatch.setattr(memory, "free_memory", lambda: taken)
    with pytest.raises(UsageError, match="The header of These bytes may take .* are free"):
        Observation.from_bytes(data)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_mutation_ends_in_a_result_or_in_one_of_our_errors(data):
    original = _MUTATED.setdefault("bytes", _small_file())
    if data.draw(st.booleans()):
        broken = original[: data.draw(st.integers(0, len(original)))]
    else:
        broken = bytearray(original)
        for _ in range(data.draw(st.integers(1, 8))):
            broken[data.draw(st.integers(0, min(len(original) - 1, 6000)))] = data.draw(st.integers(0, 255))
    try:
        Observation.from_bytes(bytes(broken))
    except LeakmapError as error:
        assert "\n" not in str(error)


_MUTATED: dict[str, bytes] = {}


def _small_file() -> bytes:
    from leakmap import Task

    task = Task((1, 16, 16), 2, (0.5,), (0.25,))
    return observed("mlp,hidden=2", task, threat=GRANTS)[1].to_bytes()


def test_user_code_named_by_a_file_is_not_run(task, tmp_path):
    source = tmp_path / "nets.py"
    source.write_text(
        "from torch import nn\n"
        "def build(width=8):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(768, width), nn.ReLU(), nn.Linear(width, 4))\n"
    )
    network = build_network(task, f"{source}:build,width=6")
    observation = observe(simulate(network, LocalRule(), batch_of(1, task)), ThreatModel())
    data = observation.to_bytes()
    read = Observation.from_bytes(data)
    with pytest.raises(ModelError, match="does not run code that a file names"):
        attack(read, "inverting_gradients,steps=2")
    trusted = Observation.from_bytes(data, code=Code(model=network.code.model))
    mine, theirs = (
        attack(observation, "inverting_gradients,steps=2"),
        attack(trusted, "inverting_gradients,steps=2"),
    )
    assert torch.equal(mine.pictures, theirs.pictures)


def test_an_architecture_larger_than_the_weights_takes_no_memory(observation):
    def change(manifest, tensors):
        manifest["model"] = {"name": "resnet", "params": {"width": 65536, "blocks": "9-9-9-9-9-9"}}

    hostile = Observation.from_bytes(edited(observation.to_bytes(), change))
    with pytest.raises(ModelError, match="do not fit"):
        attack(hostile, "inverting_gradients,steps=1")


def test_an_attack_from_the_file_in_another_process_is_bit_identical(task, tmp_path):
    _, observation = observed("resnet,blocks=1,width=4", task)
    observation.to_file(tmp_path / "o")
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from leakmap import Observation, attack\n"
        "from safetensors.torch import save_file\n"
        "found = attack(Observation.from_file(sys.argv[1]), 'inverting_gradients,steps=20', seed=3)\n"
        "save_file({'x': found.pictures, 'y': found.y}, sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "o"), str(tmp_path / "r")], check=True, timeout=120)
    found = load((tmp_path / "r").read_bytes())
    here = attack(observation, "inverting_gradients,steps=20", seed=3)
    assert torch.equal(found["x"], here.pictures)
    assert torch.equal(found["y"], here.y)


def test_ungranted_facts_change_nothing(task):
    """Same update, another truth: whatever is withheld cannot reach a reconstruction."""
    round, _ = observed("convnet,width=8", task, count=2)
    withheld = ThreatModel(buffers=False, rule=False)
    plain = attack(observe(round, withheld), "inverting_gradients,steps=5", seed=1)
    poisoned = replace(
        round,
        batch=Batch(torch.full_like(round.batch.pictures, float("nan")), (round.batch.y + 1) % 4),
        rule=LocalRule(mode="eval"),
        buffers={name: tensor + 1 for name, tensor in round.buffers.items()},
    )
    assert observe(poisoned, withheld).digest() == observe(round, withheld).digest()
    other = attack(observe(poisoned, withheld), "inverting_gradients,steps=5", seed=1)
    assert torch.equal(plain.pictures, other.pictures)


def test_every_grant_is_independent(task):
    round, seen = observed("resnet,blocks=1,width=4", task)
    everything = {"count", "rule", "buffers"}
    assert len(seen.public.pictures) == 8, "by default all that are given"
    for withheld in everything:
        granted = observe(round, ThreatModel(**{withheld: False})).granted()
        assert {fact for fact, given in granted.items() if given} == everything - {withheld}
    with pytest.raises(NotGranted, match="public=N"):
        observe(round, ThreatModel()).need("public")


def test_an_observation_shows_the_first_public_pictures_and_the_setting_all(task):
    round, _ = observed("convnet,width=8", task)
    many = Public(torch.rand(SHOWN + 9, *task.shape), torch.zeros(SHOWN + 9, dtype=torch.int64))
    for threat in (ThreatModel(), ThreatModel(public=SHOWN + 5)):
        seen, before = observe(round, threat, many), known_before(round.network, LocalRule(), 2, threat, many)
        assert torch.equal(seen.public.pictures, many.pictures[:SHOWN])
        assert len(before.public.pictures) == (SHOWN + 9 if threat.public == "auto" else SHOWN + 5)
    for threat, there in ((ThreatModel(), None), (ThreatModel(public=0), many)):
        before = known_before(round.network, LocalRule(), 2, threat, there)
        assert observe(round, threat, there).public is before.public is None
        assert "public" not in before.granted


def test_the_attackers_letter():
    assert ThreatModel().letter == "E"
    assert ThreatModel(buffers=False).letter == ThreatModel(buffers=False, public=5).letter == "D"
    assert ThreatModel(buffers=False, public=0).letter == "C"
    assert ThreatModel(buffers=False, rule=False, public=0).letter == "B"
    assert ThreatModel("known", buffers=False, public=0).letter == "C+"
    assert ThreatModel("known", known_pixels=0.1).letter == "E+ with known pixels"


def test_a_hint_shows_its_share_of_true_pixels_in_all_channels_and_nothing_else(task):
    round, _ = observed("convnet,width=8", task, count=4)
    few, many = (observe(round, ThreatModel(known_pixels=share), seed=3).known_pixels for share in (0.2, 0.5))
    given = ~few.isnan()
    assert torch.equal(given, given.all(1, keepdim=True).expand_as(given))
    assert abs(float(given.float().mean()) - 0.2) < 0.05
    assert torch.equal(few[given], round.batch.pictures[given])
    assert not (given & many.isnan()).any(), "a smaller share is a part of a larger one"
    assert not torch.equal(given, ~observe(round, ThreatModel(known_pixels=0.2), seed=4).known_pixels.isnan())


def test_a_hint_needs_its_count_and_a_share_below_one():
    for wrong in (
        {"known_pixels": 1.0},
        {"known_pixels": -0.1},
        {"known_pixels": float("nan")},
        {"known_pixels": 0.5, "count": False},
    ):
        with pytest.raises(BadSetting):
            ThreatModel(**wrong)
