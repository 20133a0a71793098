"""Detection through the four verbs: targets of boxes, what is granted of them, and what is scored."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from leakmap import Batch, LocalRule, Observation, Task, ThreatModel, build_network, observe, simulate
from leakmap.attacker.labels import recover
from leakmap.attacker.matching.context import SearchContext
from leakmap.attacker.reconstruction import Reconstruction
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.client.data import load_pictures
from leakmap.client.training import calibrated, train
from leakmap.errors import BadSetting, ModelError, ObservationError
from leakmap.plan.plan import Plan
from leakmap.problem.objects import GRID, pack, unpack
from leakmap.registry.spec import Spec
from leakmap.runs.store import Store
from leakmap.scoring.lineup import rank
from leakmap.scoring.regions import cut, fitted, large_objects
from leakmap.scoring.score import metric_values, overlap, score
from leakmap.seeds import generator
from tests.conftest import matching_term, pictures

SCENE = Task((3, 32, 32), 8, (0.5, 0.45, 0.4), (0.25, 0.25, 0.3), objects=3)
OWN = '''
import torch
from torch import nn
from torch.nn import functional as F

class Centres(nn.Module):
    """Scores of every class and a size at every cell of a grid of stride 4."""
    def __init__(self, classes=8):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU()
        )
        self.cls = nn.Conv2d(8, classes, 1)
        self.size = nn.Conv2d(8, 2, 1)
        nn.init.constant_(self.cls.bias, -4.0)

    def forward(self, x, y):
        features = self.body(x)
        scores, sizes = self.cls(features), self.size(features)
        loss = F.softplus(scores).mean() * 8
        for i, row, column, label, box in places(y, scores.shape[-1]):
            loss = loss - scores[i, label, row, column] + (sizes[i, :, row, column] - box).square().sum()
        return loss / len(x)

def places(y, cells):
    for i, own in enumerate(y.tolist()):
        for label, cx, cy, w, h in own:
            if label >= 0:
                at = [min(cells - 1, v * cells // 2**16) for v in (cy, cx)]
                yield i, *at, label, torch.tensor([w, h]) / 2**16

def centres():
    return Centres()
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> str:
    """A user's own detector."""
    path = tmp_path_factory.mktemp("own") / "centres.py"
    path.write_text(OWN)
    return f"{path}:centres"


def held(count: int, seed: int = 0) -> Batch:
    first, second = (0.3, 0.4, 0.3, 0.5), (0.7, 0.6, 0.4, 0.4)
    found = [torch.tensor([[(i + seed) % 8, *first], [(i + 3) % 8, *second]]) for i in range(count)]
    return Batch(pictures(count, SCENE, seed), pack(found, 3))


def within(boxes: torch.Tensor) -> bool:
    """Whether all boxes lie in their pictures."""
    left = (boxes[:, :2] - boxes[:, 2:] / 2).min()
    return bool(left > -1e-4) and bool((boxes[:, :2] + boxes[:, 2:] / 2).max() < 1 + 1e-4)


@pytest.mark.parametrize(
    "rule", [LocalRule(), LocalRule(mode="eval"), LocalRule(share="delta", batch_size=2, epochs=2)]
)
def test_the_update_of_a_detector_is_matched_exactly_at_the_truth(own, rule):
    network = build_network(SCENE, own, seed=1)
    batch = held(4)
    seen = observe(simulate(network, rule, batch), ThreatModel(labels="known"))
    context = SearchContext(seen, rule, seen.labels, 0)
    assert matching_term(context, SCENE.normalize(batch.pictures)) < 1e-9
    assert matching_term(context, SCENE.normalize(held(4, 5).pictures)) > 1e-4
    empty = replace(context, y=torch.full_like(seen.labels, -1))
    assert matching_term(empty, SCENE.normalize(batch.pictures)) > 1e-2


def test_what_a_server_is_granted_of_the_objects(own):
    round = simulate(build_network(SCENE, own), LocalRule(), held(3))
    known = observe(round, ThreatModel(labels="known"))
    assert known.labels.equal(held(3).y)
    assert recover(known, "auto", 0).y.equal(held(3).y)
    counts = observe(round, ThreatModel(labels="counts"))
    assert counts.labels is None
    assert int(counts.label_counts.sum()) == 6
    placed = recover(counts, "auto", 0)
    assert placed.y.shape == (3, 3, 5)
    assert overlap(placed.y, held(3).y) == 1
    assert not placed.y.equal(recover(counts, "auto", 1).y)
    boxes = unpack(placed.y)[2]
    assert within(boxes)
    assert observe(round, ThreatModel()).label_counts is None


@pytest.mark.parametrize("share", ["gradient", "delta"])
def test_classes_of_objects_are_read_off_the_class_biases(own, share):
    right = []
    for seed in (0, 1, 2, 4, 5):
        batch = held(1, seed)
        round = simulate(build_network(SCENE, own, seed=seed), LocalRule(share=share), batch)
        found = recover(observe(round, ThreatModel()), "auto", 0)
        assert found.rule == "objects"
        assert 0 < found.confidence <= 1
        right.append(overlap(found.y, batch.y))
    assert min(right) == 1


def test_an_observation_with_objects_survives_its_file_and_refuses_broken_ones(own):
    network = build_network(SCENE, own)
    seen = observe(simulate(network, LocalRule(), held(2)), ThreatModel(labels="known"))
    again = Observation.from_bytes(seen.to_bytes(), code=network.code)
    assert again.labels.equal(seen.labels)
    assert again.network.task == SCENE
    for place, value, said in (
        ((0, 0, 0), 8, "class outside 0..7"),
        ((0, 0, 0), -2, "class below -1"),
        ((0, 0, 1), GRID + 1, "box outside the picture"),
        ((0, 0, 3), 0, "without width or height"),
    ):
        broken = seen.labels.clone()
        broken[place] = value
        with pytest.raises(ObservationError, match=said):
            replace(seen, labels=broken)
    with pytest.raises(ObservationError, match="expected"):
        replace(seen, labels=seen.labels[:, :2])


def test_calibration_measures_the_statistics_and_training_learns_the_objects(own):
    network = build_network(SCENE, own)
    images, y = (held(8).pictures * 255).to(torch.uint8), held(8).y
    found = calibrated(network, images, y)
    inputs = F.conv2d(SCENE.normalize(images.float() / 255), network.weights["body.0.weight"], stride=2, padding=1)
    assert torch.allclose(found.weights["body.1.running_mean"], inputs.mean((0, 2, 3)), atol=1e-5)
    assert found.weights["body.0.weight"].equal(network.weights["body.0.weight"])
    trained = train(network, images, y, 10, 0)
    x = SCENE.normalize(images.float() / 255)
    losses = [each.module().train()(x, y).item() for each in (network, trained)]
    assert losses[1] < losses[0]


AREA = torch.tensor([[8, 0, 24, 32], [0, 4, 32, 28]])


def test_bars_and_regions_are_scored_apart():
    batch = replace(held(2), areas=AREA)
    blurred = (batch.pictures + 0.1).clamp(0, 1)
    spoilt = blurred.clone()
    spoilt[0, :, :8], spoilt[0, :, 24:], spoilt[1, :, :, :4], spoilt[1, :, :, 28:] = 0.0, 1.0, 1.0, 0.0
    assert metric_values(blurred, batch) == metric_values(spoilt, batch)
    others = [
        torch.rand(9, 3, *cut(picture, area).shape[1:]) for picture, area in zip(batch.pictures, AREA, strict=True)
    ]
    scores = [score(Reconstruction(found, batch.y, 0.0), batch, others) for found in (blurred, spoilt)]
    assert scores[0].ranks == scores[1].ranks == (1.0, 1.0)
    inner = batch.pictures.clone()
    for found, own in zip(inner, batch.y, strict=True):
        for _, cx, cy, w, h in (own[own[:, 0] >= 0].double() / GRID * 32).tolist():
            found[:, round(cy - h / 2) : round(cy + h / 2), round(cx - w / 2) : round(cx + w / 2)] += 0.1
    values = metric_values(inner, batch)
    assert all(value == pytest.approx(20, abs=0.5) for value in values["psnr_in_boxes"])
    assert min(values["psnr_around_boxes"]) == 60


def test_objects_stand_in_line_ups_of_their_own():
    batch = held(2)
    others = [torch.rand(9, 3, 32, 32)] * 2
    crops = pictures(5, SCENE, 11)
    objects = [[crops[..., : b - t, : r - le] for t, le, b, r in large_objects(y, 32, 32)[1].tolist()] for y in batch.y]
    found = score(Reconstruction(batch.pictures, batch.y, 0.0), batch, others, objects=objects)
    assert found.object_ranks == (1.0,) * 4
    assert found.object_galleries == (6,) * 4
    noise = Reconstruction(pictures(2, SCENE, 12), batch.y, 0.0)
    blind = score(noise, batch, others, objects=objects)
    assert max(blind.object_ranks) > 1


def test_the_shape_of_the_bars_picks_nobody_out():
    source = generator(3, "letterbox")
    areas = [torch.tensor(a) for a in ([8, 0, 24, 32], [0, 4, 32, 28], [4, 0, 28, 32])]
    scenes = pictures(60, SCENE, 7)
    fractions = []
    for i in range(20):
        area = areas[i % 3]
        guess = torch.full((1, 3, 32, 32), 0.5)
        top, left, bottom, right = area.tolist()
        guess[0, :, top:bottom, left:right] = (
            torch.rand(3, 4, 4, generator=source)
            .repeat_interleave(8, 1)
            .repeat_interleave(8, 2)[:, : bottom - top, : right - left]
        )
        truth = cut(scenes[i], area)
        others = torch.stack([fitted(scenes[j], areas[j % 3], truth) for j in range(20, 60)])
        fractions.append(rank(cut(guess, area), truth, others) / 41)
    assert 0.3 < sum(fractions) / 20 < 0.7


def test_an_audit_of_a_users_own_detector(own, tmp_path):
    plan = Plan(
        own,
        "scenes",
        LocalRule(mode="eval"),
        ThreatModel(),
        Spec.parse("inverting_gradients,steps=4"),
        image_size=32,
        victims=2,
        gallery=20,
        calibrate=True,
    )
    store = Store(tmp_path / "out")
    found = perform(plan, prepare(plan), store)
    result = found.result
    assert not result.failures
    assert result.verdict.level != "exact"
    assert {"psnr", "ssim", "psnr_in_boxes", "psnr_around_boxes"} == set(result.metrics)
    assert result.objects.attack.n == result.objects.swapped.n > 0
    assert result.labels.rule == "objects"
    assert "--calibrate" in result.command
    assert len(result.finished[0].classes) == 1
    assert perform(plan, prepare(plan), store).result.resumed_runs == 12


def test_detectors_and_pictures_must_fit(own):
    with pytest.raises(ModelError, match="pictures and their objects"):
        prepare(Plan("convnet", "scenes", image_size=32, victims=12))
    with pytest.raises(ModelError, match="does not take inputs"):
        prepare(Plan(own, "samples", image_size=32))
    with pytest.raises(BadSetting, match="its own loss"):
        prepare(Plan(own, "scenes", image_size=32, victims=12, loss="cross_entropy,label_smoothing=0.1"))
    with pytest.raises(BadSetting, match="calibrate"):
        Plan(own, "scenes", calibrate=True, train_epochs=1)


def test_scenes_have_exact_boxes_and_repeat_no_tile():
    found = load_pictures("scenes", 32)
    assert len(found) >= 100
    assert found.objects.shape[1:] == (2, 5)
    _, classes, boxes = unpack(found.objects)
    assert set(classes.tolist()) == set(range(8))
    assert within(boxes)
    assert load_pictures("scenes", 32).images.equal(found.images)
