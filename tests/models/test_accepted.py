"""Modules that leakmap takes, and those that it refuses in a sentence."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from leakmap import Task, build_network
from leakmap.errors import ModelError

TASK = Task((3, 16, 16), 2, (0.5,) * 3, (0.25,) * 3)


def net(last: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), last or nn.Linear(768, 2))


def pruned() -> nn.Module:
    module = net()
    prune.l1_unstructured(module[1], "weight", 0.5)
    return module


def uncopied() -> nn.Module:
    module = net()
    module.kept = (number for number in range(3))
    return module


REFUSED = {
    "no parameters": (nn.Flatten, "no trainable parameter"),
    "frozen": (lambda: net().requires_grad_(False), "no trainable parameter"),
    "lazy": (lambda: net(nn.LazyLinear(2)), "lazy tensor '1.weight'"),
    "complex": (lambda: net(nn.Linear(768, 2, dtype=torch.complex64)), "complex tensor '1.weight'"),
    "half": (lambda: net(nn.Linear(768, 2)).half(), "float16.*pass model.float"),
    "meta": (lambda: net(nn.Linear(768, 2, device="meta")), "on the device 'meta'"),
    "pruned": (pruned, "prune.remove"),
    "not copied": (uncopied, "cannot be copied"),
    "wrapped": (lambda: nn.DataParallel(net()), "model.module"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_module_that_cannot_be_attacked_is_refused_with_what_to_pass(case):
    make, words = REFUSED[case]
    with pytest.raises(ModelError, match=words):
        build_network(TASK, make())


def test_hooks_of_the_user_are_not_called_and_those_of_torch_are_kept():
    module, calls = net(spectral_norm(nn.Linear(768, 2))), []
    module.register_forward_hook(lambda *given: calls.append(given))
    own = build_network(TASK, module).module().eval()
    assert not calls
    assert own[1]._forward_pre_hooks
    assert len(module._forward_hooks) == 1
    module(torch.zeros(1, 3, 16, 16))
    assert len(calls) == 1
    assert build_network(TASK, net(parametrizations.weight_norm(nn.Linear(768, 2)))).trained()
