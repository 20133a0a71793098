"""`patch_positions`: exact where learned positions stand right behind a patch embedding, and a sentence where not."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leakmap import LocalRule, Observation, Task, ThreatModel, Update, attack, attacks, build_network, observe, simulate
from leakmap.attacker.attacks.patch_positions import solve
from leakmap.attacker.attacks.patch_subspace import Prior, subspace_of
from leakmap.attacker.closed_form import diagnose
from leakmap.attacker.gradients import mean_gradient
from leakmap.attacker.patches import examined
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.client.simulate import Batch
from leakmap.errors import NotApplicable
from leakmap.observation.contents import Public
from leakmap.plan.plan import Plan
from leakmap.registry.spec import Spec
from tests.conftest import batch_of

SMALL = "vit,dim=96"


@pytest.fixture
def cifar() -> Task:
    return Task((3, 32, 32), 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def seen(model, task, rule=None, count=1):
    """A batch and what the server sees of it."""
    batch, network = batch_of(count, task), build_network(task, model)
    return batch, observe(simulate(network, rule or LocalRule(), batch), ThreatModel())


def psnr(observation, batch) -> float:
    found = attack(observation, "patch_positions")
    return float(-10 * (found.pictures - batch.pictures).double().square().mean().log10())


def why(model, task, count=None, rule=None) -> str:
    (finding,) = (f for f in diagnose(build_network(task, model), count, rule) if f.attack == "patch_positions")
    assert not finding.qualifies
    return str(finding)


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        (SMALL, LocalRule()),
        (SMALL, LocalRule(mode="eval")),
        (f"{SMALL},class_token=false", LocalRule()),
        (f"{SMALL},dropout=0.2", LocalRule()),
        (f"{SMALL},prenorm=false", LocalRule()),
        (f"{SMALL},patch=8,depth=1", LocalRule()),
        (SMALL, LocalRule("delta", lr=0.1)),
        (SMALL, LocalRule("delta", lr=0.1, epochs=3, momentum=0.9)),
        (SMALL, LocalRule(defence="clip_noise,noise=0")),
    ],
    ids=str,
)
def test_it_is_exact(model, rule, cifar):
    assert psnr(*seen(model, cifar, rule)[::-1]) > 50


def test_a_delta_in_a_file_is_read_like_one_in_memory(cifar, tmp_path):
    batch, observation = seen(SMALL, cifar, LocalRule("delta", lr=0.5))
    observation.to_file(tmp_path / "client.safetensors")
    assert psnr(Observation.from_file(tmp_path / "client.safetensors"), batch) > 50


class Unnamed(nn.Module):
    """A transformer with nothing that a name or a place would give away.

    Args:
        linear: Whether a linear layer embeds the patches, else a convolution.
        channels_first: Whether the positions are a map.
        registers: Tokens between class token and patches, which have no positions.
        positions: ``learned``, ``frozen``, ``fixed``, ``interpolated``, ``shared`` by rows and columns, or ``again``,
            added once more behind the first layer.
    """

    def __init__(self, *, linear=False, channels_first=False, registers=0, positions="learned"):
        super().__init__()
        width, side = 40, 4
        self.a = nn.Linear(3 * 16, width) if linear else nn.Conv2d(3, width, 4, 4, bias=False)
        self.b = nn.Parameter(torch.randn(1, 1 + registers, width))
        at = {"interpolated": (side // 2, side // 2), "shared": (2, side)}.get(positions, (side, side))
        where = torch.randn(1, width, *at) if channels_first else torch.randn(1, *at, width)
        if positions == "fixed":
            self.register_buffer("c", where)
        else:
            self.c = nn.Parameter(where, positions != "frozen")
        self.d, self.e, self.f = (
            nn.LayerNorm(width),
            nn.MultiheadAttention(width, 4, batch_first=True),
            nn.Linear(width, 4),
        )
        self.linear, self.channels_first, self.positions = linear, channels_first, positions

    def forward(self, x):
        where = self.c.permute(0, 2, 3, 1) if self.channels_first else self.c
        if self.positions == "interpolated":
            where = F.interpolate(where.permute(0, 3, 1, 2), 4, mode="bilinear").permute(0, 2, 3, 1)
        if self.positions == "shared":
            where = where[:, 0, :, None] + where[:, 1, None]
        where = where.reshape(1, 16, -1)
        if self.linear:
            x = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(len(x), 16, 48)
            x = self.a(x) + where
        else:
            x = self.a(x).flatten(2).transpose(1, 2) + where
        x = torch.cat([self.b.expand(len(x), -1, -1), x], dim=1)
        for _ in range(2):
            y = self.d(x)
            x = x + self.e(y, y, y, need_weights=False)[0]
            if self.positions == "again":
                x = torch.cat([x[:, :-16], x[:, -16:] + where], dim=1)
        return self.f(x[:, 0])


@pytest.mark.parametrize(
    "facts",
    [{}, {"linear": True}, {"channels_first": True, "linear": True}, {"registers": 3}],
    ids=["convolution", "linear", "map of positions", "registers"],
)
def test_it_is_found_by_what_flows_not_by_names(facts, task):
    torch.manual_seed(1)
    assert psnr(*seen(Unnamed(**facts), task)[::-1]) > 50


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("frozen", "c is frozen"),
        ("fixed", "has no learned positions"),
        ("again", "has no learned positions that are added right behind it, one for each patch, and nowhere else"),
        ("interpolated", "c that are interpolated or shared"),
        ("shared", "c that are interpolated or shared"),
    ],
)
def test_positions_of_other_kinds_are_refused(positions, message, task):
    assert message in why(Unnamed(positions=positions), task)
    with pytest.raises(NotApplicable, match=message):
        attack(seen(Unnamed(positions=positions), task)[1], "patch_positions")


@pytest.mark.parametrize(
    ("model", "count", "rule", "message"),
    [
        (SMALL, 2, LocalRule(), "2 pictures, so that the gradient of a position is a mixture"),
        (SMALL, 2, LocalRule("delta", batch_size=1), "2 pictures"),
        (SMALL, 1, LocalRule("delta", optimizer="adam"), "trained by adam"),
        (SMALL, 1, LocalRule(defence="sign"), "leaves no sizes"),
        (SMALL, 1, LocalRule(defence="topk,keep=0.3"), "leaves out entries"),
        ("vit,dim=48", 1, LocalRule(), "64 patches in 48 dimensions, which are more unknowns than equations"),
        ("convnet,width=8", 1, LocalRule(), "does not begin with an embedding of patches"),
    ],
    ids=str,
)
def test_it_says_why_it_does_not_apply(model, count, rule, message, cifar):
    assert message in why(model, cifar, count, rule)
    with pytest.raises(NotApplicable, match=message):
        attack(seen(model, cifar, rule, count)[1], "patch_positions")


def test_an_embedding_that_is_not_shared_or_not_the_clients_is_refused(cifar):
    _, observation = seen(SMALL, cifar)
    tensors = dict(observation.update.tensors)
    zero = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    source = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(tensor.shape, generator=source) for name, tensor in tensors.items()}
    for other in (zero, noise):
        with pytest.raises(NotApplicable, match="says no more"):
            attack(replace(observation, update=Update("gradient", other)), "patch_positions")
    del tensors["position"]
    with pytest.raises(NotApplicable, match="'position', which is not shared"):
        attack(replace(observation, update=Update("gradient", tensors)), "patch_positions")


def test_the_cut_follows_the_noise(task):
    """Directions that noise drowns are left out, and noise is found without knowing the patches."""
    source = torch.Generator().manual_seed(0)
    truth = torch.randn(20, 30, generator=source, dtype=torch.float64)
    left = torch.linalg.qr(torch.randn(20, 20, generator=source, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(50, 20, generator=source, dtype=torch.float64)).Q
    values = torch.logspace(0, -5, 20, dtype=torch.float64)
    tokens = left * values @ right.T
    noise = torch.randn(50, 30, generator=source, dtype=torch.float64)
    assert float((solve(tokens, tokens.T @ truth, 1e-12).patches - truth).abs().max()) < 1e-8
    for deviation in (1e-4, 1e-2):
        weight = tokens.T @ truth + deviation * noise
        found = solve(tokens, weight, 1e-12)
        assert int((values > 2 * deviation).sum()) <= found.kept <= int((values > deviation / 2).sum())
        for other in (torch.linalg.pinv(tokens.T) @ weight, torch.zeros_like(truth)):
            assert float((found.patches - truth).norm()) < 0.9 * float((other - truth).norm())


def test_an_untrained_head_of_zeros_hides_nothing_of_the_architecture():
    task = Task((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)
    network = build_network(task, SMALL)
    weights = {name: tensor * (0 if name.startswith("head") else 1) for name, tensor in network.weights.items()}
    (finding,) = (f for f in diagnose(replace(network, weights=weights)) if f.attack == "patch_positions")
    assert finding.qualifies


def test_libraries_transformers_are_read(task):
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'leakmap[models]'")
    small = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 16, "patch_size": 4, "num_classes": 4}
    for other in ({}, {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5}, {"pre_norm": True}):
        torch.manual_seed(0)
        module = timm.models.VisionTransformer(**small, **other)
        assert psnr(*seen(module, task)[::-1]) > 50


def test_the_suite_finds_it_and_its_control_is_read(tmp_path):
    plan = Plan(SMALL, "samples", image_size=32, victims=2, attack=Spec("patch_positions"))
    found = perform(plan, prepare(plan))
    assert found.result.verdict.level == "exact"
    assert found.result.closed_forms.qualify == ("patch_positions",)
    batch, observation = seen(SMALL, Task((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3))
    suite = attack(observation, "strongest")
    assert suite.notes["won"] == "patch_positions"
    assert (suite.pictures - batch.pictures).abs().max() < 1e-2


def test_patches_of_both_pictures_lie_in_the_subspace_and_nothing_else_is_known_of_them(cifar):
    batch, observation = seen("vit,patch=8,dim=96", cifar, count=2)
    _, found = examined(observation.network, None, LocalRule())
    assert found is not None
    gradient = mean_gradient(observation, (found.position, found.embedding))
    tokens, weight = found.of_tokens(gradient[found.position]), gradient[found.embedding].flatten(1)
    subspace = subspace_of(tokens, weight, 2)
    shown = cifar.normalize(batch.pictures).flatten(1).double()[:, found.pixels]
    assert subspace.free.shape == (16, 192)
    for picture in shown:
        off = picture - subspace.base
        left = off - off @ subspace.free.T @ subspace.free
        assert left.norm() < 1e-3 * off.norm()
    # A prior that knows the first picture finds it, and one that knows nothing the shortest patches.
    wide = torch.eye(192, dtype=torch.float64)
    assert (subspace.most_likely(Prior(shown[0, 3], wide))[3] - shown[0, 3]).norm() < 1e-2
    assert (subspace.most_likely(Prior(torch.zeros(192).double(), wide)) - subspace.base).norm() < 1e-6


def test_a_picture_of_the_subspace_is_nearer_than_the_mean_public_one():
    plan = Plan("vit,patch=8,dim=96", "samples", image_size=16, victims=8, threat=ThreatModel("known", public=60))
    setup = prepare(plan).main
    groups, pictures = setup.groups, setup.groups.pictures(setup.groups.public)
    public = Public(pictures, groups.labels[groups.public])
    ratios = []
    for first in range(0, 8, 2):
        held = groups.victims.flatten()[first : first + 2]
        truth = Batch(groups.pictures(held), groups.labels[held])
        observation = observe(simulate(setup.network, LocalRule(), truth), plan.threat, public)
        found, mean = attack(observation, "patch_subspace").pictures[:1], pictures.mean(0, keepdim=True)
        near = [min(float((guess - x).square().mean()) for x in truth.pictures) for guess in (found, mean)]
        ratios.append(near[0] / near[1])
    assert max(ratios) < 1
    one = Batch(truth.pictures[:1], truth.y[:1])
    alone = observe(simulate(setup.network, LocalRule(), one), plan.threat, public)
    assert attacks.build("patch_subspace").why_not(alone)
    assert (attack(alone, "patch_subspace").pictures - one.pictures).abs().max() < 1e-3
    many = replace(observation, count=25, labels=None, label_counts=None)
    with pytest.raises(NotApplicable, match="leave everything open"):
        attack(many, "patch_subspace")
