"""Defects found in other audit tools that have no better home among the tests here.

Those that have: scores against the wrong originals in a 3-cycle, PSNR summed over a batch or on normalised tensors,
SSIM below 1 for a perfect batch (test_scoring.py, contract/test_metrics.py); the iterate after the best one returned,
a crash returned as a result (test_attacks.py, test_audit.py); documented calls that crash (test_docs.py).
"""

import socket
from dataclasses import replace

import torch

from leakmap import Batch, LocalRule, Spec, ThreatModel, observe
from leakmap.auditing import perform
from leakmap.plan import Plan, prepare
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
    from leakmap.client.federation import simulate
    from leakmap.observation import Public
    from tests.conftest import pictures

    round, _ = observed("convnet,width=8", task, count=6)
    same = Batch(round.batch.pictures, torch.tensor([2, 2, 2, 2, 0, 2]))
    public = Public(pictures(32, task, 5), torch.arange(32) % 4)
    seen = observe(simulate(round.network, LocalRule(), same), ThreatModel(public=32), public)
    assert recover(seen, "auto", 0).y.tolist() == [0, 2, 2, 2, 2, 2]
