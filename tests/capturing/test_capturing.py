"""What users saved of their own federation becomes an Observation, or one sentence."""

import copy
import io
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from enum import StrEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from leakmap import (
    Code,
    Facts,
    LocalRule,
    Observation,
    RuleFacts,
    attack,
    build_network,
    capture,
    read_facts,
    simulate,
)
from leakmap.capturing.capture import tensors_of
from leakmap.capturing.facts import as_toml, facts_of, parse_toml
from leakmap.capturing.files import RATIO, ROOM, capture_files, from_nvflare, read_npz, read_order, read_state
from leakmap.doctor.checks import check
from leakmap.doctor.replay import replay
from leakmap.errors import BadSetting, LeakmapError, ModelError, ObservationError
from leakmap.models.naming import matched, names_of
from tests.conftest import batch_of

MODEL = "resnet,blocks=1,width=4"


@pytest.fixture
def facts() -> Facts:
    return Facts(
        model=MODEL,
        shape=(3, 16, 16),
        classes=4,
        mean=(0.5, 0.45, 0.4),
        std=(0.25, 0.25, 0.3),
        count=3,
        rule=RuleFacts(lr=0.1),
    )


@dataclass(frozen=True)
class Client:
    """What one client was sent and returned; its pictures stay out of every capture."""

    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    gradient: dict[str, torch.Tensor]
    round: Any


@pytest.fixture
def client(facts) -> Client:
    """Trained by torch's own optimiser."""
    network = build_network(facts.task, facts.model)
    batch = batch_of(3, facts.task)
    module = network.module().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    nn.functional.cross_entropy(module(facts.task.normalize(batch.pictures)), batch.y).backward()
    gradient = {name: p.grad.clone() for name, p in module.named_parameters()}
    optimizer.step()
    return Client(before, module.state_dict(), gradient, simulate(network, LocalRule("delta", lr=0.1), batch))


def one_sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 1500
    return text


# Facts


def test_facts_survive_their_file(facts, tmp_path):
    for told in (facts, facts.model_copy(update={"rule": RuleFacts(dropout=0.1, batch_size=2, lr=1e-7)})):
        (tmp_path / "facts.toml").write_text(as_toml(told), encoding="utf-8")
        assert read_facts(tmp_path / "facts.toml") == told


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=30), st.floats(1e-30, 1e30), st.integers(1, 65536))
def test_any_name_and_number_survives_its_file(model, lr, side):
    told = Facts(
        model=model, shape=(1, side, 1), classes=2, mean=(0.0,), std=(lr,), rule=RuleFacts(lr=lr, defence=model)
    )
    assert Facts.model_validate(parse_toml(as_toml(told).encode())) == told


def test_facts_of_a_capture_are_those_it_was_made_with(facts, client):
    assert facts_of(capture(client.before, client.after, facts)) == facts


WRONG = {
    "model": ("model = 3", "valid string"),
    "shape": ("shape = [3, 16]", "shape.2"),
    "side": ("shape = [3, 16, 99999999]", "65536"),
    "classes": ("classes = 0", "classes"),
    "mean": ("mean = [0.5]", "values of mean"),
    "std": ("std = [0.0, 1.0, 1.0]", "std"),
    "nan": ("mean = [nan, 0.0, 0.0]", "finite"),
    "loss": ("loss = [1]", "loss"),
    "objects": ("objects = -1", "objects"),
    "count": ("count = 0", "count"),
    "lr": ("lr = -1.0", "rule.lr"),
    "mode": ('mode = "both"', "train"),
    "optimizer": ('optimizer = "lion"', "adamw"),
    "unknown": ("speed = 3", "speed"),
    "date": ("count = 1979-05-27", "count"),
    "twice": ("classes = 4\nclasses = 4", "TOML"),
    "unclosed": ('model = "', "TOML"),
    "deep": ("count = " + "[" * 50_000, "deeply"),
    "long key": ("a" + ".a" * 100_000 + " = 1", "40 parts"),
    "long header": ("[" + '"a". ' * 100_000 + "a]", "40 parts"),
    "long number": ("count = " + "9" * 5000, "digits"),
    "large number": ("count = 1" + "0" * 400, "count"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_every_wrong_line_gives_one_sentence(case, facts, tmp_path):
    line, word = WRONG[case]
    lines = as_toml(facts).splitlines()
    key = line.partition(" ")[0]
    found = [i for i, text in enumerate(lines) if text.startswith(f"{key} =")]
    start = found[0] if found else 3
    lines[start : start + len(found)] = [line]
    (tmp_path / "facts.toml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(BadSetting, match=word) as error:
        read_facts(tmp_path / "facts.toml")
    assert "facts.toml" in one_sentence(error)


def test_facts_that_are_absent_huge_or_no_text(tmp_path):
    for name, data, word in (
        ("huge", b"#" * (2**20 + 1), "bytes"),
        ("latin", b'model = "\xe9"', "TOML"),
        ("empty", b"", "model"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadSetting, match=word) as error:
            read_facts(tmp_path / name)
        one_sentence(error)
    for absent in ("none", "."):
        with pytest.raises(BadSetting, match="no file of facts"):
            read_facts(tmp_path / absent)


# Capture


def test_one_step_of_sgd_is_what_the_simulated_client_shares(facts, client):
    found = capture(client.before, client.after, facts)
    assert found.update.kind == "delta"
    assert list(found.update.tensors) == list(client.round.update.tensors)
    for name, tensor in client.round.update.tensors.items():
        assert torch.equal(found.update.tensors[name], tensor), name
    assert found.buffers is not None
    for name, tensor in client.round.buffers.items():
        assert torch.equal(found.buffers[name], tensor), name
    assert found.rule == LocalRule("delta", lr=0.1)


def test_weights_and_their_difference_are_the_same_capture(facts, client):
    whole = capture(client.before, client.after, facts)
    delta = {name: client.after[name] - client.before[name] for name in client.after}
    _, tensors, _ = from_nvflare(DXO("WEIGHT_DIFF", {name: tensor.numpy() for name, tensor in delta.items()}))
    found = capture(client.before, tensors, facts, kind="delta")
    assert all(torch.equal(found.update.tensors[name], tensor) for name, tensor in whole.update.tensors.items())
    assert found.buffers is not None
    assert whole.buffers is not None
    assert list(found.buffers) == list(whole.buffers)
    for name, tensor in whole.buffers.items():
        torch.testing.assert_close(found.buffers[name], tensor, rtol=1e-6, atol=1e-7)
    trained = {name: delta[name] for name in whole.update.tensors}
    assert capture(client.before, trained, facts, kind="delta").buffers is None
    told = facts.model_copy(update={"rule": None})
    with pytest.raises(ObservationError, match="gradient holds .* buffers.*--no-buffers"):
        capture(client.before, delta, told, kind="gradient")
    assert capture(client.before, delta, told, kind="gradient", buffers=False).buffers is None


def test_a_gradient_is_called_one(facts, client):
    told = facts.model_copy(update={"rule": RuleFacts()})
    found = capture(client.before, client.gradient, told, kind="gradient", count=2)
    assert (found.update.kind, found.count) == ("gradient", 2)
    assert all(torch.equal(found.update.tensors[name], tensor) for name, tensor in client.gradient.items())
    stepped = facts.model_copy(update={"rule": RuleFacts(epochs=2)})
    with pytest.raises(BadSetting, match="no local steps"):
        capture(client.before, client.gradient, stepped, kind="gradient")


def test_whole_numbers_that_averaging_made_floats_are_cut_off_again(facts, client):
    averaged = {n: t + 0.6 if "num_batches" in n else t for n, t in client.before.items()}
    averaged = {name: tensor.double() if "num_batches" in name else tensor for name, tensor in averaged.items()}
    found = capture(averaged, client.after, facts)
    counters = {name: tensor for name, tensor in found.network.weights.items() if "num_batches" in name}
    assert counters
    assert all(tensor.dtype == torch.int64 and int(tensor) == 0 for tensor in counters.values())


@pytest.mark.parametrize("prefix", ["module.", "_module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(prefix, facts, client):
    plain = capture(client.before, client.after, facts)
    wrapped = [{f"{prefix}{name}": t for name, t in of.items()} for of in (client.before, client.after)]
    assert capture(*wrapped, facts).digest() == plain.digest()


def test_no_picture_is_inside(facts, client, tmp_path):
    pictures = client.round.batch.pictures
    data = capture(client.before, client.after, facts, file=tmp_path / "o").to_bytes()
    assert (tmp_path / "o").read_bytes() == data
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    groups = {name.partition("/")[0] for name in header if name != "__metadata__"}
    assert groups == {"weights", "update", "buffers"}
    for picture in (*pictures, *facts.task.normalize(pictures)):
        assert picture.numpy().tobytes()[:64] not in data


@pytest.mark.parametrize("listed", [False, True], ids=["names", "a list"])
def test_a_client_that_keeps_its_normalization_layers_sends_the_others(listed, facts, client):
    """FedBN: replayed in its first round, attacked as it is, and told from one that lost a tensor."""
    modules = build_network(facts.task, facts.model).module().named_modules()
    norms = tuple(f"{name}." for name, module in modules if isinstance(module, nn.BatchNorm2d))
    sent: Any = {name: tensor for name, tensor in client.after.items() if not name.startswith(norms)}
    found = capture(client.before, list(sent.values()) if listed else sent, facts)
    assert list(found.update.tensors) == [name for name in client.round.update.tensors if not name.startswith(norms)]
    assert found.buffers is None
    told = next(finding for finding in check(found) if finding.name == "architecture")
    assert (told.level, "FedBN" in told.sentence) == ("notice", True)
    assert replay(found, client.round.batch).exact
    assert attack(found, "inverting_gradients,steps=3").pictures.shape == (3, 3, 16, 16)
    with pytest.raises(ObservationError, match="lacks"):
        capture(client.before, {name: tensor for name, tensor in sent.items() if name != "head.bias"}, facts)


def _without(name):
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


MISFITS = {
    "missing": (_without("head.bias"), "lacks 1 of .*head.bias.*came.*stem"),
    "unknown": (lambda state: state | {"extra": torch.zeros(1)}, "1 names that were not sent .*extra.*expected .*stem"),
    "misshaped": (lambda state: state | {"head.bias": torch.zeros(9)}, "head.bias.* shape .9,."),
    "not finite": (lambda state: state | {"head.bias": torch.full((4,), float("inf"))}, "head.bias.*not finite"),
    "not a number": (lambda state: state | {"head.bias": "four"}, "head.bias.* is str"),
    "text": (lambda state: state | {"head.bias": np.array(["a"] * 4)}, "head.bias.* is ndarray of <U1"),
    "too wide": (lambda state: state | {"head.bias": np.zeros(4, np.longdouble)}, "head.bias.*longdouble|float"),
    "complex": (lambda state: state | {"head.bias": torch.zeros(4, dtype=torch.complex64)}, "complex"),
    "sparse": (lambda state: state | {"head.bias": torch.zeros(4).to_sparse()}, "head.bias"),
    "empty": (lambda state: state | {"head.bias": torch.zeros(4, device="meta")}, "head.bias"),
    "numbered": (lambda state: {7: torch.zeros(4)}, "name 7 is none"),
    "long name": (lambda state: state | {"a" * 2000: torch.zeros(4)}, "is none; expected 1 to 500"),
    "nothing": (lambda state: {}, "lacks"),
}


@pytest.mark.parametrize("case", list(MISFITS))
def test_what_does_not_fit_gives_one_sentence(case, facts, client):
    change, word = MISFITS[case]
    with pytest.raises(ObservationError, match=word) as error:
        capture(client.before, change(client.after), facts)
    one_sentence(error)


def test_weights_that_were_sent_must_fit_the_architecture(facts, client):
    with pytest.raises(ModelError, match="1 missing") as error:
        capture(_without("head.bias")(client.before), client.after, facts)
    one_sentence(error)
    with pytest.raises(ModelError, match="do not fit"):
        capture(client.before, client.after, facts.model_copy(update={"model": "resnet,width=65536,blocks=9-9-9-9"}))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3 * 16 * 16, 6)
        self.head = nn.Linear(6, 4)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x):
        return self.head(torch.sigmoid(self.body(x.flatten(1))))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_module_in_memory_that_cannot_be_copied_is_refused_where_it_is_the_code(facts):
    module = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3, 4)), nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ModelError, match="weight_norm") as error:
        capture(module, module.state_dict(), facts)
    one_sentence(error)


def test_a_module_of_ones_own_in_memory_and_from_a_file(facts, tmp_path):
    told = facts.model_copy(update={"model": "(in memory)"})
    torch.manual_seed(0)
    module = Small()
    before = copy.deepcopy(module)
    with torch.no_grad():
        module.head.bias += 1
    found = capture(before, module, told, file=tmp_path / "o")
    assert "frozen" not in found.update.tensors
    assert torch.equal(found.update.tensors["head.bias"], module.head.bias.detach() - before.head.bias.detach())
    same = capture(before.state_dict(), module.state_dict(), told, code=Code(model=Small()))
    assert same.digest() == found.digest()
    assert Observation.from_file(tmp_path / "o", code=Code(model=Small())).network.trained() == found.network.trained()
    with pytest.raises(ModelError, match="code of your own"):
        capture(before.state_dict(), module.state_dict(), told)


# Files


def _save(state, path, form):
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    if form == "safetensors":
        save_file(state, path)
    elif form in ("state_dict", "model", "model_state_dict"):
        torch.save({"epoch": 3, form: state, "meta_props": {"round": 1}}, path)
    elif form == "checkpoint":
        torch.save(state, path)
    elif form == "old checkpoint":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form == "parallel":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    elif form == "npz":
        np.savez(path, **arrays)
    elif form == "compressed npz":
        np.savez_compressed(path, **arrays)
    elif form == "npz list":
        np.savez(path, *arrays.values())
    else:
        with path.open("wb") as file:
            for array in arrays.values():
                np.save(file, array)


FORMS = {
    "safetensors": (".safetensors", ".bin"),
    **dict.fromkeys(("checkpoint", "old checkpoint", "state_dict", "model", "model_state_dict"), (".pt", ".ckpt")),
    "parallel": (".th",),
    "npz": (".npz",),
    "compressed npz": (".npz",),
    "npz list": (".npz",),
    "npy list": (".npy", ".dat"),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_format_gives_the_same_capture_bit_by_bit(form, facts, client, tmp_path):
    expected = capture(client.before, client.after, facts).digest()
    for ending in FORMS[form]:
        paths = [tmp_path / f"{name}{ending}" for name in ("before", "after")]
        for path, state in zip(paths, (client.before, client.after), strict=True):
            _save(state, path, form)
        assert capture(*map(read_state, paths), facts).digest() == expected


def test_an_archive_is_known_by_its_contents(client, tmp_path):
    _save(client.after, tmp_path / "a.npz", "npz")
    (tmp_path / "a.npz").rename(tmp_path / "a.weights")
    assert list(read_state(tmp_path / "a.weights")) == list(client.after)


def test_arrays_of_a_list_come_in_the_order_of_their_numbers(tmp_path):
    arrays = [np.full(1, i, np.float32) for i in range(12)]
    np.savez(tmp_path / "a.npz", *arrays)
    layers = nn.Module()
    for i in range(12):
        layers.register_parameter(f"layer{i}", nn.Parameter(torch.zeros(1)))
    found = matched(read_state(tmp_path / "a.npz"), names_of(layers), None, "It")
    assert [(name, int(tensor)) for name, tensor in found.items()] == [(f"layer{i}", i) for i in range(12)]


def test_scalars_and_other_byte_orders_of_numpy_are_taken(client):
    found = tensors_of([np.float64(3.0), np.arange(3, dtype=">f4")])
    assert float(found["0"]) == 3.0
    assert torch.equal(found["1"], torch.arange(3.0))
    assert tensors_of({"a": np.zeros(2, np.uint16)})["a"].dtype == torch.uint16


def test_an_order_of_names_comes_from_a_file(client, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(client.before))
    assert read_order(tmp_path / "names.txt") == list(client.before)
    for name, text, word in (("twice", "a\na", "different"), ("none", " \n", "0 names"), ("long", "a" * 600, "once")):
        (tmp_path / name).write_text(text)
        with pytest.raises(BadSetting, match=word) as error:
            read_order(tmp_path / name)
        one_sentence(error)
    with pytest.raises(BadSetting, match="cannot be read"):
        read_order(tmp_path / "absent")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def _zip(path, entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)


def _npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _headed(shape: str, kind: str = "<f4") -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


def _bomb(path):
    """An archive of an entry that is said to hold more than its size accounts for."""
    _zip(path, [("a.npy", bytes(99))], zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02") + 24
    data[place : place + 4] = (ROOM + 2**20).to_bytes(4, "little")
    path.write_bytes(data)


HOSTILE = {
    "pickled array": (lambda path: np.savez(path, a=np.array([Bomb()], dtype=object)), "Python objects"),
    "pickled list": (lambda path: path.write_bytes(_npy(np.array([Bomb(), 1], dtype=object))), "np.savez"),
    "text": (lambda path: np.savez(path, a=np.array(["x"])), "'a' is ndarray of <U1"),
    "huge shape": (lambda path: path.write_bytes(_headed(f"({2**40}, {2**40})")), "cannot hold"),
    "negative shape": (lambda path: path.write_bytes(_headed("(-4,)")), "cannot hold"),
    "huge item": (lambda path: path.write_bytes(_headed("(2,)", f"|V{2**30}")), "cannot hold"),
    "bad header": (lambda path: path.write_bytes(_headed("(" * 200)), "cannot be read as arrays"),
    "new version": (lambda path: path.write_bytes(b"\x93NUMPY\x09\x09" + bytes(90)), "cannot be read as arrays"),
    "cut off": (lambda path: path.write_bytes(_npy(np.zeros(99))[:-8]), "cannot hold"),
    "rest": (lambda path: path.write_bytes(_npy(np.zeros(9)) + b"more"), "cannot be read as arrays"),
    "zip bomb": (_bomb, "unpacks to"),
    "other packing": (lambda path: _zip(path, [("a.npy", _npy(np.zeros(9)))], zipfile.ZIP_LZMA), "packed by a method"),
    "long name": (lambda path: _zip(path, [("a" * 600 + ".npy", _npy(np.zeros(9)))]), "names too long"),
    "no array": (lambda path: _zip(path, [("a.npy", b"x" * 90)]), "cannot be read as arrays"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Bomb())), "a pickle of Python objects"),
    "pickled arrays": (lambda path: path.write_bytes(pickle.dumps({"a": np.zeros(3)})), "a pickle of Python objects"),
    "whole module": (lambda path: torch.save(nn.Linear(2, 2), path), r"objects \(torch.nn.modules.linear.Linear\)"),
    "checkpoint with code": (lambda path: torch.save({"a": Bomb()}, path), "a pickle of Python objects"),
    "tensors of any size": (lambda path: torch.save({"a": torch.zeros(1).expand(2**40)}, path), "cannot hold"),
    "tensor without values": (lambda path: torch.save({"a": torch.zeros(9, device="meta")}, path), "plain tensors"),
    "sparse tensor": (lambda path: torch.save({"a": torch.zeros(9).to_sparse()}, path), "plain tensors"),
    "not numbers": (lambda path: torch.save({"a": torch.full((2,), float("nan"))}, path), "not numbers"),
    "numbered": (lambda path: torch.save({1: torch.zeros(2)}, path), "tensors by name"),
    "nothing": (lambda path: path.write_bytes(b""), "cannot be read"),
    "folder": (lambda path: path.mkdir(), "no weights file"),
}


@pytest.mark.parametrize("ending", [".npz", ".pt"])
@pytest.mark.parametrize("case", list(HOSTILE))
def test_hostile_files_give_one_sentence(case, ending, tmp_path):
    write, word = HOSTILE[case]
    write(tmp_path / "after.npz")
    path = (tmp_path / "after.npz").rename(tmp_path / f"renamed{ending}")
    with pytest.raises(LeakmapError, match=word) as error:
        read_state(path)
    assert "renamed" in one_sentence(error)
    assert "weights_only" not in str(error.value)
    assert "\033" not in str(error.value)


def test_an_archive_with_a_name_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        _zip(tmp_path / "a.npz", [("a.npy", _npy(np.zeros(1)))] * 2)
    with pytest.raises(ObservationError, match="twice"):
        read_state(tmp_path / "a.npz")


def test_an_archive_may_unpack_to_what_its_size_accounts_for(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**20))
    assert (tmp_path / "a.npz").stat().st_size * RATIO < 2**23
    assert read_npz(tmp_path / "a.npz")["a"].nbytes == 2**23
    with pytest.raises(ValueError, match="more than 1000"):
        read_npz(tmp_path / "a.npz", 1000)


LISTS = {
    "another number": (lambda arrays: arrays[:2], r"list of 2 tensors .*\(4, 3, 3, 3\).*--order"),
    "another length": (lambda arrays: [np.concatenate([a.ravel() for a in arrays])[1:]], "list of 1 tensors"),
    "a gap": (lambda arrays: {f"arr_{2 * i}": a for i, a in enumerate(arrays)}, "some are missing"),
    "Keras": (lambda arrays: [a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T for a in arrays], "layout of TensorFlow"),
    "text": (lambda arrays: "weights", "A str is no update"),
}


@pytest.mark.parametrize("case", list(LISTS))
def test_a_list_that_fits_no_order_gives_one_sentence(case, facts, client):
    change, word = LISTS[case]
    with pytest.raises(LeakmapError, match=word) as error:
        capture(client.before, change([t.numpy() for t in client.after.values()]), facts)
    one_sentence(error)


# Platforms


def _numbered(arrays):
    return {str(i): array for i, array in enumerate(arrays)}


def _flat(tensors):
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def _lead(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


PLATFORMS = {
    "FEDn": lambda state, path: np.savez_compressed(path, **_numbered(t.numpy() for t in state.values())),
    "Flower": lambda state, path: np.savez(path, *[t.numpy() for t in state.values()]),
    "FedLab": lambda state, path: torch.save(_flat(state.values()), path),
    "Lightning": lambda state, path: torch.save(
        {"state_dict": _lead("model.")(state), "optimizer_states": [{"state": {}}], "hyper_parameters": {"lr": 0.1}},
        path,
    ),
    "DataParallel": lambda state, path: save_file(_lead("module.")(state), path),
    "DataParallel inside": lambda state, path: torch.save({"net": _lead("net.module.")(state)}, path),
    "peft": lambda state, path: save_file(_lead("base_model.model.")(state), path),
    "NVFlare": lambda state, path: torch.save({"model_weights": state, "epoch": 3}, path),
    "a list of tensors": lambda state, path: torch.save({"weights": list(state.values())}, path),
    "in the middle": lambda state, path: save_file(
        {n.replace(".", "._orig_mod.", 1): t for n, t in state.items()}, path
    ),
}


@pytest.mark.parametrize("platform", list(PLATFORMS))
def test_a_file_as_each_platform_writes_it_gives_the_same_capture(platform, facts, client, tmp_path):
    (tmp_path / "facts.toml").write_text(as_toml(facts), encoding="utf-8")
    save_file(client.before, tmp_path / "before")
    PLATFORMS[platform](client.after, path := tmp_path / "after.npz")
    found = capture_files(tmp_path / "before", path, tmp_path / "facts.toml", tmp_path / "o")
    assert found.digest() == capture(client.before, client.after, facts).digest()
    if platform not in ("FEDn", "Flower"):  # --weights takes no arrays of NumPy
        weights = build_network(facts.task, facts.model, seed=5, weights=path).weights
        assert all(torch.equal(tensor, client.after[name]) for name, tensor in weights.items())


def test_lists_of_parameters_flat_gradients_and_an_order_of_ones_own(facts, client):
    trained = list(client.gradient)
    expected = capture(client.before, client.gradient, told := facts.model_copy(update={"rule": None}), kind="gradient")
    backwards = dict(zip(trained[::-1], [client.gradient[name] for name in trained[::-1]], strict=True))
    for came, order in (
        ([client.gradient[name].numpy() for name in trained], None),
        (_flat(client.gradient.values()).float(), None),
        (list(backwards.values()), trained[::-1]),
        ({f"tensor-{i}": tensor for i, tensor in enumerate(backwards.values())}, trained[::-1]),
    ):
        found = capture(client.before, came, told, kind="gradient", order=order)
        assert found.digest() == expected.digest()


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.Linear(4, 4))


def test_a_prefix_is_added_where_the_architecture_has_it_and_none_is_guessed():
    own = names_of(Wrapped())
    came = {name.removeprefix("model."): torch.zeros(shape) for name, shape in own.shapes.items()}
    assert list(matched(came, own, None, "It")) == list(own.shapes)
    part = {"weight": torch.zeros(4, 768)}
    assert list(matched(part, own, None, "It")) == ["model.1.weight"]  # by its shape
    twice = {"bias": torch.zeros(4)}
    assert list(matched(twice, own, None, "It")) == ["bias"]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.twin, self.head = nn.Linear(768, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.twin.weight

    def forward(self, x):
        return self.head(torch.sigmoid(self.again(torch.sigmoid(self.twin(torch.sigmoid(self.body(x.flatten(1))))))))


def test_tied_weights_are_captured_once_and_attacked(facts):
    torch.manual_seed(0)
    module = Tied()
    before, batch = copy.deepcopy(module), batch_of(3, facts.task)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    nn.functional.cross_entropy(module(facts.task.normalize(batch.pictures)), batch.y).backward()
    optimizer.step()
    found = capture(before, module, facts)
    assert [name for name in found.update.tensors if name.startswith("again")] == ["again.bias"]
    assert replay(found, batch).exact
    for after in (
        dict(module.named_parameters()),
        {n: t for n, t in module.state_dict().items() if n != "twin.weight"},
    ):
        assert capture(before, after, facts).digest() == found.digest()
    read = Observation.from_bytes(found.to_bytes(), code=Code(model=Tied()))
    for attack_spec in ("inverting_gradients,steps=2", "linear", "dlg,steps=2"):
        assert attack(read, attack_spec).pictures.shape == batch.pictures.shape


# NVFlare


@dataclass
class DXO:
    """As nvflare.apis.dxo.DXO has it."""

    data_kind: str
    data: dict
    meta: dict = field(default_factory=dict)


class ParamsType(StrEnum):
    """As nvflare.app_common.abstract.fl_model.ParamsType has it."""

    FULL = "FULL"
    DIFF = "DIFF"


def test_what_a_client_of_nvflare_returns(facts, client):
    trained = capture(client.before, client.after, facts).update.tensors
    arrays = {name: tensor.numpy() for name, tensor in trained.items()}
    meta = {"NUM_STEPS_CURRENT_ROUND": 7, "initial_metrics": 0.5}
    model = {"params_type": "DIFF", "params": arrays, "meta": meta}
    encoded = {"kind": "WEIGHT_DIFF", "data": arrays, "meta": meta}
    same = (
        DXO("WEIGHT_DIFF", arrays, meta),
        encoded,
        {"DXO": encoded, "__headers__": {"content_type": "DXO"}},
        DXO("FL_MODEL", model),
        SimpleNamespace(params_type=ParamsType.DIFF, params=arrays, meta=meta, data=None),
    )
    for dxo in same:
        kind, tensors, steps = from_nvflare(dxo)
        assert (kind, steps) == ("delta", 7)
        found = capture(client.before, tensors, facts, kind=kind)
        assert all(torch.equal(found.update.tensors[name], tensor) for name, tensor in trained.items())
    kind, tensors, steps = from_nvflare(DXO("WEIGHTS", {n: t.numpy() for n, t in client.after.items()}, {}))
    assert (kind, steps) == ("weights", None)
    assert (
        capture(client.before, tensors, facts, kind=kind).digest()
        == capture(client.before, client.after, facts).digest()
    )


@pytest.mark.parametrize(
    ("dxo", "word"),
    [
        (DXO("METRICS", {"auc": 0.5}), "METRICS"),
        (DXO("COLLECTION", {}), "COLLECTION"),
        (DXO("WEIGHT_DIFF", [1, 2]), "list as data"),  # type: ignore[arg-type]
        (DXO("WEIGHT_DIFF", {"a": np.zeros(1)}, {"PROCESSED_ALGORITHM": "_HE_ALGORITHM_"}), "encryption"),
        (DXO("WEIGHTS", {"a": b"cipher"}), "'a' is bytes"),
        (DXO("WEIGHTS", {"a": np.zeros(1)}, 5), "no update"),  # type: ignore[arg-type]
        (None, "None"),
        ("text", "None"),
        ({}, "None"),
    ],
)
def test_what_is_no_update_of_nvflare_gives_one_sentence(dxo, word):
    with pytest.raises(ObservationError, match=word) as error:
        from_nvflare(dxo)
    one_sentence(error)
