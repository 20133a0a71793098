"""The detector and what it minimises."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leakmap import Task, models
from leakmap.errors import BadSetting, ModelError
from leakmap.models.detection_loss import (
    Gains,
    ciou,
    decode,
    detection_loss,
    distribution_focal,
    grid,
    read_objects,
    static,
    task_aligned,
)
from leakmap.models.resnet import PostActivation, PreActivation
from leakmap.models.yolo import Bottleneck, CrossStage, PyramidPooling
from leakmap.problem.objects import GRID, pack

TASK = Task((3, 64, 64), 5, (0.5,) * 3, (0.25,) * 3, objects=3)
Y = pack(
    [
        torch.tensor([[3, 0.5, 0.5, 0.5, 0.6], [1, 0.2, 0.3, 0.2, 0.2], [1, 0.8, 0.8, 0.3, 0.2]]),
        torch.tensor([[4, 0.7, 0.6, 0.4, 0.4]]),
    ],
    3,
)
ODD = pack(
    [
        torch.tensor([[0, 0.5, 0.5, 0.0, 0.0], [1, 0.5, 0.5, 1e-4, 1.0], [2, 0.0, 0.0, 0.3, 0.3]]),
        torch.tensor([[0, 1.0, 1.0, 0.01, 0.01], [4, 0.5, 0.5, 1.0, 1.0], [4, 0.5, 0.5, 1.0, 1.0]]),
    ],
    3,
)


def build(settings="", task=TASK):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.build(f"yolo,width=4{settings}", task)


def noise(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


X = noise(2, 3, 64, 64)


def size_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


def count(module, kind):
    return sum(isinstance(layer, kind) for layer in module.modules())


def second_derivative(module, x, y):
    x = x.clone().requires_grad_()
    gradients = torch.autograd.grad(module(x, y), list(module.parameters()))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    signal = torch.autograd.grad(module(x, y), list(module.parameters()), create_graph=True)
    return torch.autograd.grad(torch.stack([part.square().sum() for part in signal]).sum(), x)[0]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("assigner", ["task_aligned", "static"])
@pytest.mark.parametrize("y", [Y, ODD], ids=["plain", "degenerate"])
def test_two_derivatives_are_finite_in_both_modes(train, assigner, y):
    module = build(f",assigner={assigner},sppf=false").train(train)
    found = second_derivative(module, X, y)
    assert found.isfinite().all()
    assert found.abs().max() > 0


def test_the_second_derivative_agrees_with_differences():
    """Where nothing is constant for differentiation: a static assignment, and no weight of the aspect ratio."""
    module = build(",assigner=static,box_gain=0,norm=group,stem=resnet,stages=residual,activation=silu").double()
    x, direction = X.double(), noise(2, 3, 64, 64, seed=1, dtype=torch.float64)

    def matched(x):
        signal = torch.autograd.grad(module(x, Y), list(module.parameters()))
        return torch.stack([part.square().sum() for part in signal]).sum()

    step = 1e-5
    difference = (matched(x + step * direction) - matched(x - step * direction)) / (2 * step)
    assert torch.allclose((second_derivative(module, x, Y) * direction).sum(), difference, rtol=1e-4)


def test_the_loss_falls_when_the_detector_is_trained():
    module, losses = build(), []
    for _ in range(15):
        loss = module(X, Y)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter -= 0.01 * gradient
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("assigner", ["task_aligned", "static"])
@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2)])
def test_the_order_of_the_objects_does_not_matter(assigner, order):
    module = build(f",assigner={assigner}")
    twins = pack([torch.tensor([[c, 0.5, 0.5, 0.4, 0.4] for c in (2, 0, 1)])] * 2)
    for y in (Y, ODD, twins):
        assert module(X, y[:, list(order)]).item() == pytest.approx(module(X, y).item(), rel=1e-5)


@pytest.mark.parametrize("assigner", ["task_aligned", "static"])
def test_empty_rows_are_ignored(assigner):
    module = build(f",assigner={assigner}")
    junk = torch.tensor([-1, *[GRID // 2] * 4]).expand(2, 4, 5)
    assert module(X, torch.cat([junk, Y], 1)).item() == pytest.approx(module(X, Y).item(), rel=1e-6)


@pytest.mark.parametrize("assigner", ["task_aligned", "static"])
def test_a_picture_without_objects_has_the_class_term_only(assigner):
    nothing = torch.full((1, 3, 5), -1)
    logits, sides = noise(1, 84, 5), noise(1, 84, 4, 8)
    gains = Gains(box=7.5, classes=0.5, dfl=1.5)
    assign = {"static": static, "task_aligned": task_aligned}[assigner]
    loss = detection_loss(logits, sides, nothing, (64, 64), (8, 16, 32), assign, gains)
    assert loss.item() == pytest.approx(0.5 * F.softplus(logits).sum().item(), rel=1e-5)


def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_pictures():
    module = build(",norm=group")
    apart = torch.stack([module(X[i : i + 1], Y[i : i + 1]) for i in range(2)])
    assert apart[0].item() != pytest.approx(apart[1].item(), rel=0.01)
    assert module(X, Y).item() == pytest.approx(apart.mean().item(), rel=1e-5)


@pytest.mark.parametrize(("assign", "many"), [(task_aligned, False), (static, True)])
def test_the_loss_is_what_its_parts_make_of_it(assign, many):
    gains, strides = Gains(box=7.5, classes=0.5, dfl=1.5), (8, 16, 32)
    logits, sides = noise(2, 84, 5), noise(2, 84, 4, 8, seed=1)
    points, boxes = grid((64, 64), strides, X), decode(sides, grid((64, 64), strides, X))
    target = assign(logits.sigmoid(), boxes, points, read_objects(Y, 5, (64, 64), X))
    pictures = []
    for i in range(2):
        total = 0.5 * F.binary_cross_entropy(logits[i].sigmoid(), target.scores[i], reduction="sum")
        for place in target.scores[i].sum(-1).nonzero().flatten().tolist():
            (x, y), stride, aim = points.places[place], points.strides[place], target.boxes[i, place]
            distances = torch.stack([x - aim[0], y - aim[1], aim[2] - x, aim[3] - y]) / stride
            parts = 7.5 * (1 - ciou(boxes[i, place], aim)) + 1.5 * distribution_focal(sides[i, place], distances).mean()
            total = total + target.scores[i, place].sum() * parts
        pictures.append(total / max(1.0, target.scores[i].sum().item()))
    assert ((target.scores.sum((1, 2)) > 1) == many).all()
    loss = detection_loss(logits, sides, Y, (64, 64), strides, assign, gains)
    assert loss.item() == pytest.approx(sum(pictures).item() / 2, rel=1e-5)


def test_the_mode_decides_about_batchnorm_only():
    plain, normalized = build(",norm=none"), build()
    assert torch.equal(plain.train()(X, Y), plain.eval()(X, Y))
    assert normalized.train()(X, Y).item() != pytest.approx(normalized.eval()(X, Y).item(), rel=1e-3)
    assert torch.equal(normalized(X, Y), normalized(X, Y))


def test_overlaps_computed_by_hand():
    box = torch.tensor([[0.0, 0.0, 4.0, 2.0]])
    assert ciou(box, box).item() == 1
    # Apart by 4 in x: no overlap, centres 8 apart, the enclosing box 12 x 2, the same shape.
    assert ciou(box, box + torch.tensor([8.0, 0, 8, 0])).item() == pytest.approx(-64 / 148)
    # Side by side in one corner: overlap 4 of 12, centres (1, 1) apart, the enclosing box 4 x 4.
    upright = torch.tensor([[0.0, 0.0, 2.0, 4.0]])
    aspect = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
    expected = 4 / 12 - 2 / 32 - aspect * aspect / (1 - 4 / 12 + aspect)
    assert ciou(box, upright).item() == pytest.approx(expected)
    point = torch.tensor([[1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    torch.autograd.backward(ciou(point, torch.zeros(1, 4)).sum())
    assert point.grad is not None
    assert point.grad.isfinite().all()


def test_the_weight_of_the_aspect_ratio_is_a_constant():
    """By hand, for the right edge of the boxes side by side: the overlap, the distance, then the aspect ratio alone."""
    box = torch.tensor([0.0, 0.0, 4.0, 2.0], requires_grad=True)
    ciou(box, torch.tensor([0.0, 0.0, 2.0, 4.0])).backward()
    angle = math.atan(2) - math.atan(0.5)
    aspect = 4 / math.pi**2 * angle**2
    weight = aspect / (1 - 4 / 12 + aspect)
    assert box.grad is not None
    assert box.grad[2].item() == pytest.approx(-1 / 18 - 1 / 64 - weight * 8 / math.pi**2 * angle * 0.1)


def test_distributions_computed_by_hand():
    sides = noise(6, seed=2)
    bins = -sides.log_softmax(0)
    distances = torch.tensor([3.0, 3.5, 0.25, -2.0, 5.0, 9.0])
    wanted = [bins[3], (bins[3] + bins[4]) / 2, 0.75 * bins[0] + 0.25 * bins[1], bins[0], bins[5], bins[5]]
    assert torch.allclose(distribution_focal(sides.expand(6, 6), distances), torch.stack(wanted))


def test_boxes_are_decoded_from_certain_distributions():
    points = grid((32, 64), (8, 32), X)
    assert points.places.shape == (4 * 8 + 2, 2)
    assert points.places[9].tolist() == [12, 12]
    assert points.strides[[0, -1]].tolist() == [8, 32]
    certain = 1e3 * F.one_hot(torch.tensor([1, 0, 2, 3]), 4).float().expand(1, 34, 4, 4)
    assert decode(certain, points)[0, 9].tolist() == [12 - 8, 12, 12 + 16, 12 + 24]


def objects_of(*rows):
    return read_objects(pack([torch.tensor(rows)]), 5, (64, 64), X)


def assigned_static(*rows):
    points = grid((64, 64), (8, 16, 32), X)
    return points, static(torch.empty(0), torch.empty(0), points, objects_of(*rows))


def test_objects_are_read_in_pixels():
    objects = read_objects(torch.cat([Y, torch.full((2, 1, 5), -1)], 1), 5, (64, 128), X)
    assert objects.present.sum(1).tolist() == [3, 1]
    row = int(objects.classes[1].sum(-1).argmax())
    assert objects.classes[1, row].tolist() == [0, 0, 0, 0, 1]
    assert torch.allclose(objects.boxes[1, row], torch.tensor([64.0, 25.6, 115.2, 51.2]), atol=1e-2)


def test_the_static_assigner_takes_points_around_the_centre_of_a_big_box():
    points, found = assigned_static([2, 0.5, 0.5, 0.75, 0.75])
    chosen = found.scores[0].sum(-1) > 0
    assert set(found.scores[0][chosen].flatten().tolist()) == {0, 1}
    assert found.scores[0][chosen].argmax(-1).unique().tolist() == [2]
    assert sorted(map(tuple, points.places[chosen].tolist())) == [(x, y) for x in (28, 36) for y in (28, 36)]
    assert found.boxes[0][chosen].unique(dim=0).tolist() == [[8, 8, 56, 56]]
    assert not found.boxes[0][~chosen].any()


@pytest.mark.parametrize(("side", "stride"), [(64, 8), (100, 16), (128, 16), (200, 32), (400, 32)])
def test_the_static_assigner_takes_the_level_that_fits(side, stride):
    points = grid((512, 512), (8, 16, 32), X)
    objects = read_objects(pack([torch.tensor([[0, 0.5, 0.5, side / 512, 0.05]])]), 5, (512, 512), X)
    found = static(torch.empty(0), torch.empty(0), points, objects)
    assert points.strides[found.scores[0].sum(-1) > 0].unique().tolist() == [stride]


def test_the_static_assigner_gives_a_tiny_box_its_nearest_point_and_the_smaller_box_the_choice():
    points, found = assigned_static([0, 0.26, 0.26, 0.01, 0.01])
    assert points.places[found.scores[0].sum(-1) > 0].tolist() == [[20, 20]]
    points, found = assigned_static([0, 0.5, 0.5, 0.9, 0.9], [1, 0.5625, 0.5625, 0.15, 0.15])
    at = {
        tuple(place): int(row.argmax())
        for place, row in zip(points.places.tolist(), found.scores[0], strict=True)
        if row.any()
    }
    assert at == {(28, 28): 0, (28, 36): 0, (36, 28): 0, (36, 36): 1}


def test_the_static_assigner_does_not_look_at_predictions():
    points, objects = grid((64, 64), (8, 16, 32), X), read_objects(Y, 5, (64, 64), X)
    found = [static(noise(2, 84, 5, seed=s).sigmoid(), noise(2, 84, 4, seed=s), points, objects) for s in (0, 1)]
    assert torch.equal(found[0].scores, found[1].scores)
    assert torch.equal(found[0].boxes, found[1].boxes)


def test_the_task_aligned_assigner_takes_the_best_points_inside():
    points, objects = grid((64, 64), (8, 16, 32), X), objects_of([3, 0.5, 0.5, 0.75, 0.75])
    half = torch.linspace(16, 40, 84)[torch.randperm(84, generator=torch.Generator().manual_seed(0))]
    boxes = torch.cat([points.places - half[:, None], points.places + half[:, None]], -1)[None]
    boxes[0, 0] = objects.boxes[0, 0]  # a perfect prediction, but from outside
    scores = noise(1, 84, 5).sigmoid()
    found = task_aligned(scores, boxes, points, objects)
    weights = found.scores[0].sum(-1)
    chosen = weights > 0
    overlap = ciou(boxes[0], objects.boxes[0]).clamp(min=0)
    inside = ((points.places > 8) & (points.places < 56)).all(1)
    alignment = torch.where(inside, scores[0, :, 3].sqrt() * overlap**6, 0)
    best = alignment.topk(10)
    assert sorted(best.indices.tolist()) == chosen.nonzero().flatten().tolist()
    assert torch.equal(found.scores[0].sum(0) > 0, torch.arange(5) == 3)
    assert torch.allclose(weights[best.indices], best.values / best.values[0] * overlap[best.indices].max())


def test_a_point_that_two_objects_claim_answers_for_the_one_that_it_overlaps_most():
    points = grid((64, 64), (32,), X)
    big, small = torch.tensor([0.0, 0, 64, 64]), torch.tensor([0.0, 0, 32, 32])
    objects = objects_of([0, 0.5, 0.5, 1.0, 1.0], [1, 0.25, 0.25, 0.5, 0.5])
    found = task_aligned(torch.full((1, 4, 5), 0.1), torch.stack([small, big, big, big])[None] + 1, points, objects)
    assert found.scores[0].argmax(-1).tolist() == [1, 0, 0, 0]
    assert torch.equal(found.boxes[0], torch.stack([small, big, big, big]))


def test_an_assignment_carries_no_derivative():
    points, objects = grid((64, 64), (8, 16, 32), X), read_objects(Y, 5, (64, 64), X)
    scores, boxes = noise(2, 84, 5).sigmoid().requires_grad_(), (32 + 16 * noise(2, 84, 4)).requires_grad_()
    found = task_aligned(scores, boxes, points, objects)
    assert not found.scores.requires_grad
    assert not found.boxes.requires_grad


def test_the_default_is_of_nano_size_and_builds_without_memory():
    with torch.device("meta"):
        module = models.build("yolo", Task((3, 640, 640), 80, (0.5,) * 3, (0.25,) * 3, objects=1))
    assert 3.1e6 < size_of(module) < 3.2e6
    assert all(layer.eps == 1e-3 for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))


def csp_blocks(module):
    return [len(layer.blocks) for layer in module.stages.modules() if isinstance(layer, CrossStage)]


def kinds(module, kind):
    """Where activations of a kind are: how many in the stages, the heads, and the strided convolutions of the neck."""
    return [count(part, kind) for part in (module.stages, module.heads, module.neck.downs)]


def constants(module):
    return [(part[1].eps, part[1].momentum) for part in (module.stem, module.neck.downs[0])]


KNOBS = {
    "resnet stem": (",stem=resnet", lambda m: (count(m.stem, nn.MaxPool2d), m.stem[0].kernel_size) == (1, (7, 7))),
    "residual stages": (",stages=residual", lambda m: count(m.stages, PostActivation) == 8 and not csp_blocks(m)),
    "preact stages": (",stages=preact", lambda m: count(m.stages, PreActivation) == 8 and not csp_blocks(m)),
    "depth": (",depth=2", lambda m: csp_blocks(m) == [2, 4, 4, 2]),
    "stride in blocks": (",stages=residual,downsample=block", lambda m: count(m.stages, nn.Conv2d) == 8 * 2 + 4 + 2),
    "no pyramid": (",sppf=false", lambda m: count(m, PyramidPooling) == 0),
    "residual neck": (",neck=residual", lambda m: (count(m.neck, PostActivation), count(m.neck, CrossStage)) == (4, 0)),
    "preact neck": (",neck=preact,neck_depth=2", lambda m: count(m.neck, PreActivation) == 8),
    "activation": (",activation=relu", lambda m: kinds(m, nn.SiLU) == [0, 12, 2]),
    "head activation": (",head_activation=relu", lambda m: kinds(m, nn.ReLU) == [0, 12, 2]),
    "norm constants": (",norm_eps=1e-5,norm_momentum=0.1", lambda m: constants(m) == [(1e-5, 0.1), (1e-3, 0.03)]),
    "group norm": (",norm=group", lambda m: count(m, nn.BatchNorm2d) == 0 and count(m, nn.GroupNorm) > 0),
    "no norm": (",norm=none", lambda m: count(m, nn.BatchNorm2d) == 0 and m.stem[0].bias is not None),
    "bins": (",reg_max=8", lambda m: m.heads[0].sides[-1].out_channels == 32),
    "static": (",assigner=static", lambda m: m.assign is static),
    "gains": (",box_gain=1,class_gain=2,dfl_gain=3", lambda m: m.gains == Gains(1, 2, 3)),
}
SAME_SIZE = {"activation", "head activation", "norm constants", "group norm", "static", "gains"}


@pytest.mark.parametrize("name", KNOBS)
def test_every_knob_does_what_it_says(name):
    settings, holds = KNOBS[name]
    module, stock = build(settings), build()
    assert holds(module)
    assert not holds(stock)
    assert (size_of(module) == size_of(stock)) == (name in SAME_SIZE)
    assert module(X, Y).isfinite()


@pytest.mark.parametrize("stem", ["strided", "resnet"])
@pytest.mark.parametrize("rest", ["", ",stages=residual,downsample=block"])
def test_the_levels_have_the_strides_that_they_should(stem, rest):
    module = build(f",stem={stem}{rest}")
    assert [len(head(level)[0][0]) for head, level in zip(module.heads, axis_levels(module), strict=True)] == [
        64,
        16,
        4,
    ]


def test_small_objects_teach_the_head_of_the_finest_level():
    module = build(",assigner=static,class_gain=0")
    module(X, Y).backward()
    taught = [head.sides[-1].bias.grad.abs().max().item() > 0 for head in module.heads]
    assert taught == [True, False, False]


def axis_levels(module):
    levels, out = [], module.stem(X)
    for stage in module.stages:
        out = stage(out)
        levels.append(out)
    return module.neck(*levels[1:])


def test_only_the_partial_stages_of_the_neck_have_no_shortcuts():
    module = build()
    found = [{b.shortcut for b in part.modules() if isinstance(b, Bottleneck)} for part in (module.stages, module.neck)]
    assert found == [{True}, {False}]
    assert all(
        block.shortcut is not None for block in build(",neck=residual").neck.modules() if hasattr(block, "shortcut")
    )


def test_initial_scores_are_small():
    module = build()
    logits = torch.cat(
        [head.classes(level).flatten() for head, level in zip(module.heads, axis_levels(module), strict=True)]
    )
    assert logits.sigmoid().max() < 0.02
    assert module.heads[0].classes[-1].bias[0].item() == pytest.approx(math.log(5 / 5 / 80**2))


def test_what_it_cannot_be_is_refused():
    with pytest.raises(ModelError, match=r"is a detector.*--data coco:DIR"):
        build(task=Task((3, 64, 64), 5, (0.5,) * 3, (0.25,) * 3))
    with pytest.raises(ModelError, match="a width of 72: use 96"):
        build(task=Task((3, 64, 72), 5, (0.5,) * 3, (0.25,) * 3, objects=1))
    with pytest.raises(ModelError, match="no block that could take the stride"):
        build(",downsample=block")
    for setting in ("reg_max=1", "box_gain=-1", "norm=layer", "norm_eps=0", "neck=shallow"):
        with pytest.raises(BadSetting):
            build(f",{setting}")
