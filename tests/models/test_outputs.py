"""What models return besides one tensor, and what user code raises."""

from collections import namedtuple
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from leakmap import LocalRule, ThreatModel, attack, build_network, observe, simulate
from leakmap.errors import ModelError
from tests.conftest import batch_of

Both = namedtuple("Both", "logits aux")


@dataclass
class Given:
    logits: torch.Tensor


class Wrapped(nn.Module):
    """Gives its scores in a wrapping, in training mode alone if ``late``."""

    def __init__(self, wrap, late=False):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(768, 8))
        self.head, self.aux = nn.Linear(8, 4), nn.Linear(8, 4)
        self.wrap, self.late = wrap, late

    def forward(self, x):
        features = self.body(x).sigmoid()
        scores = self.head(features)
        return self.wrap(scores, self.aux(features)) if self.training or not self.late else scores


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda scores, other: (scores, [other]), "0"),
        (Both, "logits"),
        (Both, "0"),
        (lambda scores, other: {"out": scores, "aux": other}, "out"),
        (lambda scores, other: Given(scores), "logits"),
        (lambda scores, other: SimpleNamespace(loss=None, logits=scores), "logits"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_one_part_of_what_a_model_returns_is_taken_in_the_mode_of_the_client(wrap, output, late, task):
    own, rule = replace(task, output=output), LocalRule(mode="train")
    model = Wrapped(wrap, late)
    with pytest.raises(ModelError, match=r"in train mode; expected class scores of shape \(2, 4\)\. .*--output"):
        build_network(task, model, mode="train")
    network, batch = build_network(own, model, mode="train"), batch_of(2, task)
    plain = build_network(task, Wrapped(lambda scores, other: scores))
    plain = replace(plain, weights=network.weights)
    sent, expected = (simulate(one, rule, batch).update.tensors for one in (network, plain))
    assert all(torch.equal(sent[name], expected[name]) for name in expected)
    found = attack(observe(simulate(network, rule, batch), ThreatModel()), "inverting_gradients,steps=2")
    assert found.y.tolist() == [0, 1]
    with pytest.raises(ModelError, match="which has no 'scores'"):
        build_network(replace(task, output="scores"), model, mode="train")


def test_code_of_the_users_own_that_fails_is_told_with_its_file_and_line(task):
    def loss(outputs, y):
        return nn.functional.cross_entropy(outputs.logits, y)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(768, 4)

        def forward(self, x, more=None):
            return self.head(x.flatten(1)) + more.sum()

    here = r"AttributeError: .* \(test_outputs\.py, line \d+\)"
    with pytest.raises(ModelError, match=rf"^The loss does not take .* {here}\.$"):
        build_network(task, "mlp,hidden=8", loss=loss)
    with pytest.raises(ModelError, match=rf"does not take inputs of shape .* {here}\. .*wrapped in a module"):
        build_network(task, Two())

    def late(outputs, y):
        return {}["x"] if len(y) > 3 else outputs.square().sum()

    network = build_network(task, "mlp,hidden=8", loss=late)
    with pytest.raises(ModelError, match=r"^The loss failed: KeyError: .*test_outputs\.py, line"):
        simulate(network, LocalRule(), batch_of(4, task))
    with pytest.warns(FutureWarning, match="parametrizations"):
        old = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(768, 4)))
    old(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ModelError, match="parametrizations"):
        build_network(task, old)
