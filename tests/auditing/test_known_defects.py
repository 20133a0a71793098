"""Defects found in other audit tools that have no better home among the tests here.

Those that have: scores against the wrong originals in a 3-cycle, PSNR summed over a batch or on normalized tensors,
SSIM below 1 for a perfect batch (test_scoring.py, contract/test_metrics.py); the iterate after the best one returned,
a crash returned as a result (test_attacks.py, test_audit.py); documented calls that crash (test_docs.py).
"""

import socket
from dataclasses import replace

import pytest
import torch

from leakmap import Batch, LocalRule, Spec, ThreatModel, observe
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.plan.plan import Plan
from tests.conftest import observed


def test_true_labels_do_not_travel_inside_the_local_rule_of_a_delta(task):
    rule = LocalRule(share="delta", epochs=2, batch_size=2)
    round, _ = observed("convnet,width=8", task, rule=rule, count=4)
    other = replace(round, batch=Batch(round.batch.pictures, (round.batch.y + 1) % 4))
    for threat in (ThreatModel(), ThreatModel(public=0, buffers=False)):
        assert observe(round, threat).digest() == observe(other, threat).digest()
    assert observe(round, ThreatModel(labels="known")).digest() != observe(other, ThreatModel(labels="known")).digest()


def test_a_whole_audit_and_its_report_open_no_socket(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    plan = Plan("mlp,hidden=16", "samples", image_size=16, victims=2, attack=Spec("inverting_gradients", {"steps": 2}))
    prepared = prepare(plan)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert perform(plan, prepared).save(tmp_path).exists()


def test_repeated_classes_in_a_batch_are_recovered(task):
    """A batch "iDLG" that takes the B most negative classes can never return one class twice."""
    from leakmap.attacker.labels import recover
    from leakmap.client.simulate import simulate
    from leakmap.observation.contents import Public
    from tests.conftest import pictures

    round, _ = observed("convnet,width=8", task, count=6)
    same = Batch(round.batch.pictures, torch.tensor([2, 2, 2, 2, 0, 2]))
    public = Public(pictures(32, task, 5), torch.arange(32) % 4)
    seen = observe(simulate(round.network, LocalRule(), same), ThreatModel(public=32), public)
    assert recover(seen, "auto", 0).y.tolist() == [0, 2, 2, 2, 2, 2]


def test_a_single_channel_and_several_galleries_in_one_batch_are_kept_apart():
    plan = Plan("mlp,hidden=16", "samples", image_size=16, victims=2, batch_size=4, attack=Spec("linear"))
    found = perform(plan, prepare(plan))
    sizes = {size for row in found.result.finished for size in row.galleries}
    assert len(sizes) > 1
    assert found.result.line_up.gallery == (min(sizes), max(sizes))


def test_results_of_other_code_are_not_resumed(tmp_path):
    from torch import nn

    import leakmap
    from leakmap.client.data import load_pictures
    from leakmap.errors import StoreError

    pictures = load_pictures("samples", 16)

    def audited(activation):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), activation, nn.Linear(8, 8))
        quick = "inverting_gradients,steps=2"
        return leakmap.audit(model, pictures.images, pictures.labels, attack=quick, victims=2, out=tmp_path / "o")

    audited(nn.ReLU())
    with pytest.raises(StoreError, match="contents"):
        audited(nn.Tanh())


def test_random_layers_leave_an_attack_repeatable(task):
    from torch import nn
    from torchvision.ops import StochasticDepth

    from leakmap import attack, build_network, simulate
    from tests.conftest import batch_of

    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), StochasticDepth(0.5, "row"), nn.ReLU(), nn.Linear(8, 4))
    network = build_network(task, model)
    seen = observe(simulate(network, LocalRule(), batch_of(4, task)), ThreatModel(labels="known"))
    first, second = (attack(seen, "inverting_gradients,steps=5", seed=1) for _ in range(2))
    assert torch.equal(first.pictures, second.pictures)


def test_masks_in_buffers_may_be_boolean_or_infinite(task):
    from torch import nn

    from leakmap import attack, build_network, simulate
    from tests.conftest import batch_of

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("kept", torch.ones(8, dtype=torch.bool))
            self.register_buffer("low", torch.full((8,), -torch.inf))
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(768, 8))
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(torch.where(self.kept, self.body(x), self.low))

    network = build_network(task, Masked())
    seen = observe(simulate(network, LocalRule(), batch_of(1, task)), ThreatModel())
    assert torch.isfinite(attack(seen, "inverting_gradients,steps=3").pictures).all()


@pytest.mark.parametrize("model", ["mlp,hidden=16", "convnet,depth=1,width=4"])
def test_a_zeroed_head_is_seen_on_networks_of_two_layers(model):
    plan = Plan(model, "samples", image_size=16, victims=2, attack=Spec("inverting_gradients", {"steps": 2}))
    prepared = prepare(plan)
    network = prepared.main.network
    top = list(network.weights)[-1].rpartition(".")[0]
    zeroed = {name: t * 0 if name.startswith(top) else t for name, t in network.weights.items()}
    main = replace(prepared.main, network=replace(network, weights=zeroed))
    assert "degenerate_update" in perform(plan, replace(prepared, main=main)).result.flags


def test_pictures_of_more_than_8_bits_are_read_as_such_and_not_clipped(tmp_path):
    import numpy as np
    from PIL import Image

    from leakmap.client.data import load_pictures

    pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 60
    for name, shown in (("a", pixels), ("b", pixels + 1)):
        (tmp_path / name).mkdir()
        Image.fromarray(shown).save(tmp_path / name / "x.png")
    found = load_pictures(f"folder:{tmp_path}")
    assert found.exact is not None
    assert torch.equal((found.exact[0] * 65535).round(), torch.from_numpy(pixels.astype(np.float32)).expand(3, 32, 32))
    assert len(found) == 2  # they differ in the last of 16 bits


def test_a_failed_run_is_tried_again_by_the_same_command(tmp_path, monkeypatch):
    import leakmap.runs.run as room
    from leakmap.runs.store import Store

    plan = Plan("mlp,hidden=16", "samples", image_size=16, victims=2, attack=Spec("inverting_gradients", {"steps": 2}))
    prepared, store = prepare(plan), Store(tmp_path)

    def fail(*args):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(room, "attack", fail)
        assert perform(plan, prepared, store).level == "inconclusive"
    again = perform(plan, prepared, store)
    assert not again.result.failures
    assert not again.result.unfinished
