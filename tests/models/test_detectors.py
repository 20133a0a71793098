"""Detectors of torchvision and ultralytics: their own training loss, of pictures as they are given, in either mode."""

import copy
import os
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec

import pytest
import torch
from torch.func import functional_call

from leakmap import Batch, LocalRule, Task, ThreatModel, build_network, observe, simulate
from leakmap.attacker.matching.context import Guess, SearchContext
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine
from leakmap.client.training import calibrated
from leakmap.errors import ModelError, UnknownName
from leakmap.models import models
from leakmap.models.adapt import replace_layers
from leakmap.models.detection_loss import grid
from leakmap.models.torchvision_detection import SAMPLING_SEED, detectors, roi_align
from leakmap.problem.objects import pack
from leakmap.seeds import derive

SSD, FASTER = "torchvision/ssdlite320_mobilenet_v3_large", "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"


def slow(*names: str):
    return [pytest.param(f"torchvision/{name}", marks=pytest.mark.slow) for name in names]


LARGE = slow(
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "fasterrcnn_resnet50_fpn",
)
TORCHVISION = [SSD, FASTER, *LARGE]
extra = pytest.mark.skipif(
    find_spec("ultralytics") is None, reason="the extra leakmap[yolo] (ultralytics, AGPL-3.0) is not installed"
)
"""Looked for, not imported: the adapter imports it with its side effects contained."""
ULTRALYTICS = [pytest.param(f"ultralytics/{name}", marks=extra) for name in ("yolov5n", "yolov8n", "yolo26n")]


def task_of(name: str, objects: int = 3) -> Task:
    size = 268 if "ssd300" in name else 96 if name == FASTER else 64
    return Task((3, size, size), 3, (0.5,) * 3, (0.25,) * 3, objects=objects)


@cache
def _built(name: str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return models.build(name, task_of(name))


def built(name: str):
    return copy.deepcopy(_built(name))


def batch(name: str, count: int = 2):
    """Pictures, of which the first has two objects and no other has any."""
    task = task_of(name)
    x = torch.randn(count, *task.shape, generator=torch.Generator().manual_seed(0))
    objects = [torch.tensor([[0, 0.5, 0.5, 0.375, 0.5], [2, 0.25, 0.3125, 0.25, 0.25]])]
    return x, pack(objects + [torch.zeros(0, 5)] * (count - 1), task.objects)


def trainable(module):
    return [p for p in module.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", [*TORCHVISION, *ULTRALYTICS])
def test_the_loss_is_a_scalar_in_either_mode_with_a_gradient_for_every_weight_and_the_pictures(name):
    module = built(name)
    x, y = batch(name)
    x.requires_grad_()
    for training in (True, False):
        module.train(training)
        buffers = copy.deepcopy(dict(module.named_buffers()))
        loss = module(x, y)
        gradients = torch.autograd.grad(loss, [*trainable(module), x])
        assert loss.shape == ()
        assert all(bool(g.isfinite().all()) for g in (loss, *gradients))
        assert bool(gradients[-1].any())
        moved = {key for key, tensor in module.named_buffers() if not torch.equal(tensor, buffers[key])}
        assert all("running_" in key or "num_batches" in key for key in moved)
        assert bool(moved) == (training and bool(buffers))
        torch.rand(1)
        state = torch.get_rng_state()
        assert torch.equal(module(x, y), loss)
        assert torch.equal(torch.get_rng_state(), state)


def assert_equal_in_either_mode(module, batch, reference, expected):
    """In loss and gradient; the library gives losses in training mode only, so there BatchNorm alone is changed."""
    reference.train()
    for training in (False, True):
        module.train(training)
        for layer in reference.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.train(training)
        losses = [module(*batch), expected()]
        first, second = (
            torch.autograd.grad(loss, next(m.parameters()))[0]
            for loss, m in zip(losses, (module, reference), strict=True)
        )
        torch.testing.assert_close(losses[0], losses[1])
        assert bool(second.any())
        torch.testing.assert_close(first / second.abs().max(), second / second.abs().max())


@pytest.mark.parametrize("name", TORCHVISION)
def test_it_is_the_loss_that_torchvision_gives_for_the_same_boxes_with_the_same_names_of_weights(name):
    from torchvision.models import get_model

    module = built(name)
    x, y = batch(name)
    size = x.shape[-1]
    reference = get_model(name.removeprefix("torchvision/"), weights=None, weights_backbone=None, num_classes=4)
    reference.load_state_dict(module.state_dict())
    transform = reference.transform
    transform.image_mean, transform.image_std, transform.size_divisible = [0.0] * 3, [1.0] * 3, 1
    transform.min_size, transform.max_size, transform.fixed_size = (size,), size, None
    transform.torch_choice = lambda sizes: sizes[0]  # the library draws a random number for its one size
    boxes = torch.tensor([[0.3125, 0.25, 0.6875, 0.75], [0.125, 0.1875, 0.375, 0.4375]]) * size
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]

    def expected():
        torch.manual_seed(SAMPLING_SEED)
        return sum(reference(list(x), targets).values())

    assert_equal_in_either_mode(module, (x, y), reference, expected)


@pytest.mark.parametrize("name", ULTRALYTICS)
def test_it_is_the_loss_that_ultralytics_gives_with_the_same_names_of_weights(name):
    module = built(name)
    x, y = batch(name)
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    reference = DetectionModel(f"{name.removeprefix('ultralytics/')}.yaml", ch=3, nc=3, verbose=False)
    reference.args = get_cfg()
    reference.load_state_dict(module.state_dict())
    boxes = torch.tensor([[0.5, 0.5, 0.375, 0.5], [0.25, 0.3125, 0.25, 0.25]])
    targets = {"img": x, "batch_idx": torch.zeros(2), "cls": torch.tensor([[0.0], [2.0]]), "bboxes": boxes}
    assert_equal_in_either_mode(module, (x, y), reference, lambda: reference(targets)[0].sum())


@pytest.mark.parametrize("name", [SSD, pytest.param(FASTER, marks=pytest.mark.slow), *LARGE, *ULTRALYTICS])
def test_boxes_and_classes_count_and_empty_rows_do_not(name):
    module = built(name).train()
    x, y = batch(name)
    loss = module(x, y)
    other = y.clone()
    other[0, 0, 0] = 1
    wide = y.clone()
    wide[0, 0, 3] = 2**16
    assert module(x, other) != loss
    assert module(x, wide) != loss
    empty = torch.zeros(2, 1, 5, dtype=torch.int64)
    empty[..., 0] = -1
    assert torch.equal(module(x, torch.cat([y, empty], 1)), loss)
    assert bool(module(x, empty).isfinite())


@extra
@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_the_static_assigner_does_not_look_at_the_predictions(name):
    x, y = batch("")
    gradients = []
    for assigner in ("static", "task_aligned"):
        module = built(f"ultralytics/{name},assigner={assigner}").train()
        head = module.model[-1]
        for _ in range(2):
            gradients.append(torch.autograd.grad(module(x, y), head.cv2[0][-1].bias)[0])
            with torch.no_grad():
                head.cv3[0][-1].bias += torch.tensor([4.0, -2.0, 1.0])
    static, after, aligned, followed = gradients
    assert bool(static.any())
    assert torch.equal(static, after)
    assert not torch.allclose(aligned, followed, rtol=1e-3)


@extra
def test_points_are_where_ultralytics_has_them():
    from ultralytics.utils.tal import make_anchors

    strides = (8, 16, 32)
    levels = [torch.zeros(1, 1, 64 // stride, 96 // stride) for stride in strides]
    places, steps = make_anchors(levels, torch.tensor(strides), 0.5)
    points = grid((64, 96), strides, torch.zeros(()))
    assert torch.equal(points.places, places * steps)
    assert torch.equal(points.strides, steps[:, 0])


def test_objects_without_an_area_do_not_count():
    module = built(SSD).train()
    x, y = batch(SSD)
    flat = y.clone()
    flat[0, 2] = torch.tensor([1, 2**15, 2**15, 0, 2**14])
    assert torch.equal(module(x, flat), module(x, y))


@pytest.mark.parametrize("name", [SSD, pytest.param(FASTER, marks=pytest.mark.slow), *LARGE, *ULTRALYTICS])
def test_copies_and_swapped_weights_reach_the_loss_and_leave_the_original_alone(name):
    module = built(name).train()
    x, y = batch(name)
    loss = module(x, y)
    state = {key: t * 0.9 if t.is_floating_point() else t.clone() for key, t in module.state_dict().items()}
    twin = copy.deepcopy(module)
    twin.load_state_dict(state)
    swapped = functional_call(module, state, (x, y))
    assert torch.equal(twin(x, y), swapped)
    assert not torch.equal(swapped, loss)
    assert torch.equal(module(x, y), loss)


@pytest.mark.parametrize("name", [SSD, *slow("retinanet_resnet50_fpn", "fcos_resnet50_fpn"), *ULTRALYTICS])
def test_a_function_of_the_gradient_has_a_gradient_for_the_pictures(name):
    module = replace_layers(built(name))
    x, y = batch(name)
    x.requires_grad_()
    for training in (True, False):
        gradients = torch.autograd.grad(module.train(training)(x, y), trainable(module), create_graph=True)
        (twice,) = torch.autograd.grad(sum(g.square().sum() for g in gradients), x)
        assert bool(twice.isfinite().all())
        assert bool(twice.any())


@pytest.mark.parametrize("mode", ["eval", pytest.param("train", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [SSD, pytest.param(FASTER, marks=pytest.mark.slow), *LARGE, *ULTRALYTICS])
def test_the_distance_at_the_truth_is_zero_and_elsewhere_a_derivative_is_found(name, mode):
    task = task_of(name)
    x, y = batch(name)
    truth = task.denormalize(x)
    network = calibrated(build_network(task, name), (truth * 255).to(torch.uint8), y)
    rule = LocalRule(mode=mode, dropout=0.0)
    seen = observe(simulate(network, rule, Batch(truth, y)), ThreatModel(labels="known"))
    engine = Engine(SearchContext(seen, rule, y, 0), DISTANCES["cosine"])
    assert float(engine.value(Guess(task.normalize(truth), y))) < 1e-6
    found = engine.value_and_grad(Guess(task.normalize(truth) + 0.1 * torch.randn(x.shape), y))
    assert float(found.match) > 1e-6
    assert torch.isfinite(found.gradient[0]).all()
    assert found.gradient[0].any()


@pytest.mark.parametrize("name", [SSD, pytest.param(FASTER, marks=pytest.mark.slow), *ULTRALYTICS])
def test_double_precision_stays_double(name):
    module = built(name).double().eval()
    x, y = batch(name)
    loss = module(x.double(), y)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(built(name).eval()(x, y).item(), rel=1e-3)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", ULTRALYTICS)
def test_the_head_moves_with_what_it_keeps_beside_its_weights(name):
    assert built(name).to("meta").model[-1].stride.is_meta


@pytest.mark.parametrize("name", [SSD, *ULTRALYTICS])
def test_the_seed_decides_the_weights_and_a_network_builds_the_same_module_again(name):
    task = task_of(name)
    network = build_network(task, name, seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(3, "weights"))
        fresh, other = (models.build(name, task).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, fresh[key]) for key, tensor in network.weights.items())
    assert any(not torch.equal(tensor, other[key]) for key, tensor in network.weights.items())
    module = network.module().eval()
    x, y = batch(name)
    assert torch.equal(module(x, y), copy.deepcopy(module)(x, y))
    frozen = {key for key, p in module.named_parameters() if not p.requires_grad}
    assert frozen == ({"model.22.dfl.conv.weight", "model.24.dfl.conv.weight"} & {*fresh})


@pytest.mark.parametrize(
    ("name", "objects", "fits"),
    [
        ("torchvision/resnet50", 3, r"no detector .* did you mean \w+_resnet50_fpn"),
        ("torchvision/maskrcnn_resnet50_fpn", 3, "did you mean fasterrcnn_resnet50_fpn"),
        ("torchvision/retinanet_resnet50_fpn", 0, r"no classifier .* did you mean \w*resnet50"),
        pytest.param("ultralytics/yolov8n-seg", 3, "did you mean .*yolov8n", marks=extra),
        pytest.param("ultralytics/yolov8", 3, "did you mean .*yolov8", marks=extra),
        pytest.param("ultralytics/../yolov8n", 3, "did you mean .*yolov8n", marks=extra),
        pytest.param("ultralytics/https://example.org/yolov8n.yaml", 3, "no detector", marks=extra),
    ],
)
def test_names_that_do_not_fit_the_pictures_are_refused_with_those_that_do(name, objects, fits):
    with pytest.raises(UnknownName, match=fits):
        models.build(name, task_of(name, objects))


@pytest.mark.parametrize("aligned", [True, False])
def test_regions_are_pooled_as_torchvision_does_also_beyond_the_borders(aligned):
    from torchvision.ops import roi_align as fused

    source = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 9, 7, generator=source, dtype=torch.float64)
    corner = torch.rand(40, 2, generator=source, dtype=torch.float64) * 40 - 12
    extent = torch.rand(40, 2, generator=source, dtype=torch.float64) * 40
    regions = torch.cat([(torch.arange(40) % 2)[:, None].double(), corner, corner + extent], 1)
    expected = fused(features, regions, (5, 4), 0.25, 2, aligned)
    torch.testing.assert_close(roi_align(features, regions, (5, 4), 0.25, 2, aligned), expected)


def test_every_detector_of_torchvision_that_learns_from_boxes_alone_is_known():
    assert len(detectors()) >= 9
    assert not [name for name in detectors() if "mask" in name or "keypoint" in name]


def test_settings_and_pictures_that_a_detector_cannot_take_are_refused():
    with pytest.raises(ModelError, match="leave head_std out"):
        models.build(f"{SSD},head_std=0.1", task_of(SSD))
    with pytest.raises(ModelError, match="takes 3 channels"):
        models.build(SSD, Task((1, 64, 64), 3, (0.5,), (0.25,), objects=3))


@extra
def test_sides_that_a_yolo_cannot_halve_often_enough_and_pictures_without_objects_are_refused():
    with pytest.raises(ModelError, match="multiples of 32; got 40 x 64"):
        models.build("ultralytics/yolov8n", Task((1, 40, 64), 1, (0.5,), (0.25,), objects=1))
    with pytest.raises(ModelError, match="choose a classifier"):
        models.build("ultralytics/yolov8n", task_of("", 0))


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch):
    for part in ("", ".nn.tasks", ".cfg", ".utils"):
        monkeypatch.setitem(sys.modules, f"ultralytics{part}", None)
    with pytest.raises(ModelError, match=r"install it with: pip install 'leakmap\[yolo\]'\.$"):
        models.build("ultralytics/yolov8n", task_of(""))


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/vit_tiny_patch16_224"])
def test_a_torchvision_of_another_torch_is_refused_with_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ModelError, match=rf"does not work with torch {re.escape(torch.__version__)} .* from one index"):
        models.build(name, task_of("", 0))


CONTAINED = """
import os, pathlib, sys, tempfile, warnings
import numpy as np, torch
from leakmap import Task
from leakmap.models import models

def state():
    printing = torch._tensor_str.get_printoptions(), np.get_printoptions()
    return dict(os.environ), torch.save, torch.get_num_threads(), printing, list(warnings.filters), \
        sorted(pathlib.Path.home().rglob("*")), torch.get_default_dtype()

torch.set_num_threads(1)
reached = []
sys.addaudithook(lambda event, _: event.startswith("socket.") and reached.append(event))
before = state()
module = models.build("ultralytics/yolov8n", Task((1, 32, 32), 1, (0.5,), (0.25,), objects=1))
module.eval()(torch.zeros(1, 1, 32, 32), torch.tensor([[[0, 2**15, 2**15, 2**14, 2**14]]]))
assert "ultralytics" in sys.modules
assert state() == before, [pair for pair in zip(before, state()) if pair[0] != pair[1]]
assert not reached, reached
assert not os.listdir(tempfile.gettempdir())
"""


@extra
def test_importing_ultralytics_leaves_the_process_the_home_folder_and_the_network_alone(tmp_path):
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run([sys.executable, "-c", CONTAINED], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@extra
def test_a_process_may_build_an_outline_without_memory_first():
    program = (
        "import contextlib\nimport torch\n"
        "from leakmap import Task, models\n"
        "task = Task((3, 64, 64), 3, (0.0,) * 3, (1.0,) * 3, objects=2)\n"
        "with contextlib.suppress(RuntimeError, NotImplementedError), torch.device('meta'):\n"
        "    models.build('ultralytics/yolov5n', task)\n"
        "models.build('ultralytics/yolov5n', task).to('cpu')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
