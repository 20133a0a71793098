"""Weights come from files that cannot run code."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from leakmap import Task, build_network
from leakmap.client.data import load_pictures
from leakmap.client.training import accuracy, train
from leakmap.errors import ModelError
from leakmap.models.weights import read_weights


@pytest.fixture
def state(task):
    return dict(build_network(task, "resnet,blocks=1,width=4", seed=3).weights)


def test_safetensors_and_checkpoints_are_read(state, task, tmp_path):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save({"state_dict": {f"module.{name}": t for name, t in state.items()}, "best": 1.0}, tmp_path / "c.th")
    for name in ("a.safetensors", "b.pt", "c.th"):
        network = build_network(task, "resnet,blocks=1,width=4", weights=tmp_path / name)
        assert all(torch.equal(network.weights[key], state[key]) for key in state)


def test_weights_that_do_not_fit_give_one_sentence(state, task, tmp_path):
    def attempt(changed):
        save_file(changed, tmp_path / "w.safetensors")
        build_network(task, "resnet,blocks=1,width=4", weights=tmp_path / "w.safetensors")

    with pytest.raises(ModelError, match="1 missing"):
        attempt({k: v for k, v in state.items() if k != "head.bias"})
    with pytest.raises(ModelError, match="1 unknown"):
        attempt(state | {"extra": torch.zeros(1)})
    with pytest.raises(ModelError, match="'head.bias' has shape"):
        attempt(state | {"head.bias": torch.zeros(9)})
    with pytest.raises(ModelError, match="not numbers"):
        attempt(state | {"head.bias": torch.full((4,), float("nan"))})


def test_damaged_files_and_pickles_with_code_are_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('executed')",))

    torch.save({"a": Bomb()}, tmp_path / "bomb.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("bomb.pt", "raw.pt", "cut.safetensors", "empty.pt", "list.pt", "absent.pt"):
        with pytest.raises(ModelError) as error:
            read_weights(tmp_path / name)
        assert "\n" not in str(error.value)


def test_brief_training_raises_accuracy_on_pictures_it_did_not_see():
    pictures = load_pictures("samples", 16)
    task = Task((3, 16, 16), len(pictures.classes), (0.5,) * 3, (0.25,) * 3)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    seen, unseen = order[:300], order[300:]
    start = build_network(task, "convnet,width=16")
    trained = train(start, pictures.images[seen], pictures.labels[seen], 8, seed=0)
    before, after = (accuracy(net, pictures.images[unseen], pictures.labels[unseen]) for net in (start, trained))
    assert after > before + 0.2
    again = train(start, pictures.images[seen], pictures.labels[seen], 8, seed=0)
    assert all(torch.equal(trained.weights[name], again.weights[name]) for name in trained.weights)


def test_the_given_resnet20_reproduces_its_accuracy(shared):
    """The whole chain, normalization included, against a published figure: 91.7 % on these test pictures."""

    pictures = load_pictures(f"npz:{shared / 'cifar10' / 'cifar10_subset.npz'}")
    task = Task((3, 32, 32), 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    from tests.models import akamaster

    network = build_network(
        task, f"{akamaster.__file__}:resnet20", weights=shared / "weights" / "cifar10_resnet20-12fca82f.th"
    )
    assert accuracy(network, pictures.images, pictures.labels) == pytest.approx(0.9173, abs=0.003)
