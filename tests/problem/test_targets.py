"""What a picture is labelled with, and the form in which a loss takes it."""

import pytest
import torch
from torch.nn import functional as F

from leakmap import Spec, Task
from leakmap.errors import BadSetting
from leakmap.problem.targets import form_for, target_told_by

ONE, SIX = torch.randn(2, 1), torch.randn(2, 6)
PLANES = torch.randn(2, 1, 4, 4)


def task(**changes):
    return Task(**{"shape": (3, 4, 4), "classes": 1, "mean": (0.0,) * 3, "std": (1.0,) * 3, **changes})


@pytest.mark.parametrize(
    ("target", "outputs", "loss", "shape", "floating"),
    [
        ("binary", ONE, F.binary_cross_entropy_with_logits, (2, 1), True),
        ("binary", ONE, lambda o, y: F.binary_cross_entropy_with_logits(o.squeeze(1), y), (2,), True),
        ("binary", ONE, lambda o, y: F.cross_entropy(torch.cat([-o, o], 1), y), (2,), False),
        ("regression", ONE, F.mse_loss, (2, 1), True),
        ("regression", ONE, lambda o, y: ((o[:, 0] - y) ** 2).mean(), (2,), True),
        ("multilabel", SIX, F.binary_cross_entropy_with_logits, (2, 6), True),
        ("multilabel", SIX, F.multilabel_margin_loss, (2, 6), False),
        ("pixels", PLANES, lambda o, y: (o.sigmoid() * y).sum(), (2, 1, 4, 4), True),
        ("pixels", PLANES, lambda o, y: (o[:, 0].sigmoid() * y).sum(), (2, 4, 4), False),
        ("class", SIX, F.mse_loss, (2, 6), True),
    ],
)
def test_a_loss_gets_targets_in_the_form_that_it_takes_and_never_one_that_is_broadcast(
    target, outputs, loss, shape, floating
):
    classes = 1 if target == "pixels" else outputs.shape[1]
    y = task(target=target, classes=classes).tried(3)
    given = form_for(target, loss, outputs, y)(y[:2], outputs)
    assert (tuple(given.shape), given.is_floating_point()) == (shape, floating)


@pytest.mark.parametrize(
    ("outputs", "loss", "told"),
    [
        (ONE, lambda o, y: F.binary_cross_entropy_with_logits(o.squeeze(1), y.float()), "binary"),
        (ONE, lambda o, y: F.binary_cross_entropy(o.sigmoid(), y), "binary"),
        (ONE, lambda o, y: F.mse_loss(o[:, 0], y.float() / 100), "regression"),
        (SIX, F.cross_entropy, "class"),
        (SIX, F.binary_cross_entropy_with_logits, "multilabel"),
        (SIX, F.l1_loss, "regression"),
        (PLANES, F.l1_loss, "pixels"),
        (SIX, lambda o, y: o.logits, None),
    ],
)
def test_outputs_and_loss_tell_the_target(outputs, loss, told):
    assert target_told_by(outputs, loss) == told


def test_a_task_refuses_outputs_that_do_not_fit_and_targets_that_are_not_its_own():
    for changes, words in (
        ({"target": "binary", "classes": 2}, "one output"),
        ({"target": "class"}, "binary or regression"),
        ({"target": "age"}, "is one of class, binary"),
        ({"target": "binary", "objects": 3}, "have no other target"),
    ):
        with pytest.raises(BadSetting, match=words):
            task(**changes)
    for target, y, words in (
        ("binary", torch.tensor([0, 2]), "outside 0..1"),
        ("regression", torch.tensor([[1.0], [float("nan")]]), "not finite"),
        ("regression", torch.tensor([[1], [2]]), "expected floats"),
        ("pixels", torch.zeros(2, 3, 4, dtype=torch.int64), "expected"),
        ("binary", torch.tensor([0.3, 0.7]), "expected torch.int64"),
    ):
        assert words in task(target=target).wrong(y, 2)
        assert not task(target=target).wrong(task(target=target).blank(2), 2)
    own = task(target="regression", loss=Spec("nets.py:loss"), output="logits").leaky()
    assert (own.target, str(own.loss), own.output) == ("regression", "mse", "")
