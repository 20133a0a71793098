"""Traits against the definitions of the networks that have them, and the command that shows them."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leakmap import Task, build_network
from leakmap.auditing.update_check import degenerate
from leakmap.cli.main import command
from leakmap.inspection import Traits, advise, probe_update, read_traits
from leakmap.inspection.probe import task_of
from leakmap.models import models


def traits_of(model, size: int = 32, classes: int = 10) -> Traits:
    task = Task((3, size, size), classes, (0.5,) * 3, (0.25,) * 3)
    if isinstance(model, str) and "/" in model:
        model = models.build(model, task)  # drawn once; a network by name draws its weights at every call
    return read_traits(build_network(task, model))


def widths(traits: Traits) -> list[tuple[int, int]]:
    return [(stage.low, stage.high) for stage in traits.stages]


def test_resnet18_of_torchvision_has_the_traits_of_its_paper():
    traits = traits_of("torchvision/resnet18", 64)
    assert traits.depth == 18
    assert widths(traits) == [(64, 64), (128, 128), (256, 256), (512, 512)]
    assert (traits.identities, traits.projections, traits.concatenations) == (5, 3, 0)
    assert traits.placement == "post"
    (norm,) = traits.norms
    assert (norm.kind, norm.layers, norm.eps, norm.momentum, norm.running) == ("BatchNorm", 20, (1e-5,), (0.1,), True)
    assert (traits.stem.kernel, traits.stem.stride, traits.stem.pool_stride, traits.total_stride) == (7, 2, 2, 32)
    assert traits.noise == ()
    assert not traits.zero_head
    assert traits.zero_branches == ()
    assert traits.activations == {"ReLU": 17}
    assert traits.parameters == 11_181_642


def test_efficientnet_b0_has_gates_dropout_and_the_stochastic_depth_that_its_shortcuts_get():
    """0.2 * block / 16 in blocks 2 to 14 with a shortcut."""
    traits = traits_of("torchvision/efficientnet_b0", 64)
    noise = {n.kind: n for n in traits.noise}
    depth, dropout = noise["stochastic depth"], noise["dropout"]
    assert (depth.places, depth.low, depth.high, depth.before_head_only) == (9, 0.025, 0.175, False)
    assert (dropout.places, dropout.low, dropout.before_head_only) == (1, 0.2, True)
    assert (traits.gates, traits.skips, traits.placement) == (16, 9, "post")
    assert [*traits.activations] == ["SiLU"]
    assert traits.depth == 1 + 4 + 15 * 5 + 2


def test_convnext_tiny_has_patches_layernorm_inside_its_branches_and_tiny_scales():
    traits = traits_of("torchvision/convnext_tiny", 64)
    assert (traits.stem.patch, traits.stem.stride, traits.total_stride) == (4, 4, 32)
    assert {n.kind for n in traits.norms} == {"LayerNorm"}
    assert (traits.placement, traits.skips) == ("inside", 18)
    assert (traits.scales, traits.tiny_scales) == (18, 18)
    assert traits.smallest_scale == pytest.approx(1e-6)
    assert traits.activations == {"GELU": 18}
    assert "tiny scales" in {advice.trait for advice in advise(traits)}


def test_vit_b_16_has_a_zero_head_and_the_advice_names_it():
    traits = traits_of("torchvision/vit_b_16", 32)
    assert traits.zero_head
    assert traits.head == "heads.head.weight"
    assert any("heads.head.weight is exactly 0" in advice.found for advice in advise(traits))
    assert (traits.attention, traits.stem.patch, traits.skips, traits.placement) == (12, 16, 24, "pre")
    assert traits.depth == 1 + 12 * 4 + 1
    assert widths(traits) == [(768, 768)]


def test_models_of_timm_have_theirs():
    pytest.importorskip("timm")
    vit = traits_of("timm/vit_tiny_patch16_224", 32)
    assert (vit.attention, vit.stem.patch, vit.placement, vit.zero_head) == (12, 16, "pre", False)
    assert [norm.eps for norm in vit.norms] == [(1e-6,)]
    resnet = traits_of("timm/resnet18", 64)
    assert len(resnet.zero_branches) == 8
    assert resnet.zero_branches[0] == "layer1.0.bn2.weight"
    assert traits_of("timm/convnext_atto,drop_path_rate=0.2", 32).noise[0].high == pytest.approx(0.2)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("preact", [True, False])
def test_the_knobs_of_the_library_s_own_resnet_are_read_back(preact, skip):
    knobs = f"preact={str(preact).lower()},skip={str(skip).lower()}"
    traits = traits_of(f"resnet,blocks=2-2,width=8,dropout=0.3,activation=silu,{knobs}")
    assert traits.placement == ("pre" if preact else "post")
    assert (traits.identities, traits.projections) == ((3, 1) if skip else (0, 0))
    assert (traits.depth, widths(traits)) == (10, [(8, 8), (16, 16)])
    assert traits.activations == {"SiLU": 8 if preact else 9}
    assert [(n.kind, n.places, n.high, n.before_head_only) for n in traits.noise] == [("dropout", 4, 0.3, False)]
    assert (traits.stem.stride, traits.total_stride) == (1, 2)


def test_the_shortcut_of_the_paper_s_code_is_pre_activation_too():
    traits = traits_of("resnet,blocks=1-1,width=8,preact=true,shortcut_from=act,stem=imagenet")
    assert (traits.placement, dict(traits.placements)) == ("pre", {"pre": 2})
    assert (traits.stem.kernel, traits.stem.stride, traits.stem.pool_stride, traits.total_stride) == (7, 2, 2, 8)


@pytest.mark.parametrize(
    ("norm", "kind", "groups"),
    [("group", "GroupNorm", (1, 2)), ("layer", "GroupNorm", (1,)), ("instance", "InstanceNorm", ())],
)
def test_norms_without_batch_statistics_are_told_apart(norm, kind, groups):
    traits = traits_of(f"resnet,blocks=1-1,width=8,norm={norm}")
    assert [(n.kind, n.groups, n.running) for n in traits.norms] == [(kind, groups, False)]


def test_vits_of_either_order_and_without_shortcuts_are_told_apart():
    small = "vit,dim=48,patch=8,"
    pre, post = traits_of(small + "dropout=0.1"), traits_of(small + "prenorm=false")
    assert (pre.placement, pre.skips, pre.attention, pre.stem.patch) == ("pre", 4, 2, 8)
    assert post.placement == "post"
    assert [text.partition(":")[0] for text in post.closed_forms] == ["patch_positions"]
    assert traits_of(small + "skip=false").placement == "pre"
    bare = traits_of("vit,prenorm=false,skip=false,patch=8")
    assert (bare.placement, bare.skips) == ("post", 0)
    assert bare.closed_forms[0].startswith("april")


def test_an_mlp_gives_its_picture_away_and_a_convnet_does_not():
    mlp, convnet = traits_of("mlp,hidden=64-32,dropout=0.2"), traits_of("convnet,width=8,norm=batch,dropout=0.3")
    assert [text.partition(":")[0] for text in mlp.closed_forms] == ["linear", "spear"]
    assert (mlp.depth, mlp.stem.kind, mlp.total_stride, mlp.placement) == (3, "linear", None, "none")
    assert (convnet.closed_forms, convnet.placement, convnet.depth) == ((), "post", 4)
    assert convnet.noise[0].before_head_only
    assert dict(mlp.shares) == {"linear": 1.0}


class ByHand(nn.Module):
    """Nothing here is a layer that a name would give away."""

    def __init__(self):
        super().__init__()
        self.kernels = nn.ParameterList([nn.Parameter(torch.randn(8, c, 3, 3) * 0.1) for c in (3, 8, 8)])
        self.gain = nn.Parameter(torch.full((8, 1, 1), 1e-4))
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.out = nn.Parameter(torch.zeros(8, 10))

    def forward(self, x):
        x = F.conv2d(x, self.kernels[0], stride=2, padding=1)
        kept = x
        x = x * (x.pow(2).mean(1, keepdim=True) + 1e-6).rsqrt() * self.scale
        x = F.conv2d(x * torch.sigmoid(x), self.kernels[1], padding=1)
        x = F.dropout(F.conv2d(F.gelu(x), self.kernels[2], padding=1), 0.4, self.training)
        x = kept + self.gain * x
        return x.mean((2, 3)) @ self.out


def test_functional_calls_and_operations_written_by_hand_are_seen():
    traits = traits_of(ByHand(), 16)
    assert (traits.depth, traits.identities, traits.placement) == (4, 1, "pre")
    assert [(n.kind, n.layers) for n in traits.norms] == [("by hand", 1)]
    assert dict(traits.activations) == {"SiLU": 1, "GELU": 1}
    assert [(n.kind, n.places, n.low) for n in traits.noise] == [("dropout", 1, 0.4)]
    assert (traits.tiny_scales, traits.head, traits.zero_head) == (1, "out", True)


def test_parallel_paths_of_equal_length_and_dense_ones_are_told_apart():
    class Joined(nn.Module):
        def __init__(self, dense: bool):
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(3, 4, 3, padding=1) for _ in range(3))
            self.after, self.dense, self.head = nn.Conv2d(4, 4, 1), dense, nn.Linear(8, 10)

        def forward(self, x):
            left, right = self.first(x), self.second(x) + self.third(x)
            right = self.after(left) if self.dense else right
            return self.head(torch.cat([left, right], 1).mean((2, 3)))

    assert (traits_of(Joined(False)).skips, traits_of(Joined(True)).concatenations) == (0, 1)


def test_a_cumulative_momentum_and_frozen_weights_are_reported():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)
    )
    model[0].requires_grad_(False)
    traits = traits_of(model, 16)
    assert traits.norms[0].momentum == (None,)
    assert traits.frozen == 3 * 4 * 9 + 4


def test_advice_quotes_what_became_of_claims_and_names_a_source_for_each():
    for spec in ("mlp", "resnet,blocks=1,width=8,preact=true", "vit,dim=48,patch=8"):
        found = advise(traits_of(spec))
        assert all(advice.found and advice.meaning and advice.source for advice in found)
        assert {"stem", "depth", "skip connections", "zero head"} <= {advice.trait for advice in found}
    pre = next(advice for advice in found if advice.trait == "norm placement")
    assert "C3, pre-activation matters most of these: does not hold for searches" in pre.meaning
    assert "docs/results/paper.md" in pre.source


def test_the_update_is_probed_in_training_mode_where_that_differs():
    def probe(spec):
        return probe_update(build_network(task_of(3, 16, 10), spec))

    assert set(probe("resnet,blocks=1,width=8").checks) == {"eval", "train"}
    same = probe("convnet,width=8,dropout=0.3")
    assert set(same.checks) == {"eval"}
    assert "the same in training mode" in same.note
    network = build_network(task_of(3, 16, 10), "mlp,hidden=16")
    zero = {name: t * 0 if name.startswith("4.") else t for name, t in network.weights.items()}
    assert "degenerate_update" in degenerate(probe_update(replace(network, weights=zero)).checks["eval"])


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["leakmap", "inspect", *words])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            sys.exit(command())
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return call


def test_the_command_reads_a_user_s_own_file_and_stays_within_80_columns(call, tmp_path):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 5))\n"
    )
    code, out, err = call("nets.py:build", "--channels", "1", "--classes", "5", "--image-size", "16")
    assert (code, err) == (0, "")
    assert "3x3 convolution, stride 2" in out
    assert "was measured on other networks" in out
    assert max(map(len, out.splitlines())) <= 80


def test_json_is_all_that_stdout_holds_and_is_strict(call):
    def refuse(name):
        raise AssertionError(name)

    code, out, _ = call("resnet,blocks=1,width=8", "--image-size", "16", "--json")
    found = json.loads(out, parse_constant=refuse)
    assert code == 0
    assert found["traits"]["placement"] == "post"
    assert {"eval", "train"} == set(found["update"])
    assert found["advice"][0]["trait"] == "stem"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["resnett"], "did you mean resnet"),
        (["mlp", "--classes", "1"], "at least 2 classes"),
        (["mlp", "--weights", "nothing.pt"], "no weights file"),
        (["torchvision/resnet18", "--channels", "1"], "takes 3 channels"),
        ([], "Missing argument"),
    ],
)
def test_wrong_input_gives_one_sentence_and_exit_code_3(call, words, expected):
    code, out, err = call(*words)
    assert (code, out) == (3, "")
    assert expected in err
