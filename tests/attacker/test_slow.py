"""Published behaviours on real pictures, minutes long: `make slow`."""

import pytest

from leakmap import Spec, ThreatModel
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.plan.plan import Plan
from leakmap.runs.runner import Local
from leakmap.runs.store import Store
from leakmap.runs.workers import default_workers

pytestmark = pytest.mark.slow
LEAKS = "resnet,blocks=1-1-1,width=24,preact=true"


def audited(shared, tmp_path, **changes):
    usual = {"model": LEAKS, "data": f"npz:{shared / 'cifar10' / 'cifar10_subset.npz'}", "victims": 12}
    plan = Plan(**(usual | changes))
    return perform(plan, prepare(plan), Store(tmp_path), Local(default_workers()))


def test_a_pre_activation_client_in_training_mode_leaks(shared, tmp_path):
    """Claim C3 of arXiv:2508.19819, its leaking side, at this scale."""
    found = audited(shared, tmp_path)
    assert found.level in ("partial", "visual", "exact")
    assert found.result.line_up.swapped.hits <= 1


def test_the_post_activation_twin_is_not_picked_out(shared, tmp_path):
    """The resisting side: first ranks at chance, and nothing above the floors."""
    found = audited(shared, tmp_path, model="resnet,blocks=1-1-1,width=24,preact=false")
    assert found.result.line_up.attack.rank_one.low <= found.result.line_up.attack.chance
    assert not found.result.metrics["psnr"].above_every_floor


def test_the_null_audit_is_at_chance(shared, tmp_path):
    assert audited(shared, tmp_path, null=True).level == "none_found"


def test_a_shallow_wide_network_in_inference_mode_is_recovered(shared, tmp_path):
    """Inverting Gradients on its own ground: a convolutional network, one picture, inference mode."""
    from leakmap import LocalRule

    found = audited(shared, tmp_path, model="convnet", rule=LocalRule(mode="eval"), victims=6)
    assert found.level == "exact"


def test_a_zeroed_head_is_inconclusive(shared, tmp_path):
    from safetensors.torch import save_file

    state = dict(prepare(Plan(model=LEAKS, data="samples")).main.network.weights)
    save_file({k: t * 0 if k.startswith("head") else t for k, t in state.items()}, tmp_path / "w.safetensors")
    data = {
        "data": "samples",
        "weights": str(tmp_path / "w.safetensors"),
        "attack": Spec("inverting_gradients", {"steps": 20}),
    }
    found = audited(shared, tmp_path / "o", threat=ThreatModel(labels="known"), **data)
    assert found.level == "inconclusive"
    assert "degenerate_update" in found.result.flags
