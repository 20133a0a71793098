"""What the server knows before any client answers, and what it cannot know."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import get_args, get_type_hints

import torch
from torch import Tensor

from leakmap import LocalRule, Network, Observation, Public, ThreatModel, Update
from leakmap.attacker.setting import Setting, setting_of
from leakmap.threat import known_before
from tests.conftest import observed


def held(kind: type, place: str = "") -> Iterator[tuple[str, type]]:
    """Every type within a type, with the names of the fields that lead there."""
    yield place, kind
    for name, inner in get_type_hints(kind).items() if is_dataclass(kind) else ():
        for part in (inner, *get_args(inner)):
            yield from held(part, f"{place}.{name}")


def test_by_type_it_has_no_room_for_what_a_client_sends():
    kinds = dict(held(Setting))
    assert not {Update, Observation}.intersection(kinds.values())
    tensors = {place for place, kind in held(Setting) if kind is Tensor}
    assert tensors == {".network.weights", ".public.pictures", ".public.labels"}
    assert {field.name for field in fields(Setting)}.isdisjoint({"update", "buffers", "labels", "label_counts"})


def test_that_of_an_observation_is_that_of_its_threat_model_and_the_same_for_every_client(task):
    for threat in (ThreatModel("known", public=4), ThreatModel(count=False, rule=False, buffers=False)):
        rule = LocalRule("delta", epochs=2)
        _, own = observed("convnet,width=8", task, rule=rule, threat=threat, seed=1)
        other = observed("convnet,width=8", task, rule=rule, threat=threat, seed=2)[1]
        public = Public(torch.rand(8, *task.shape), torch.zeros(8, dtype=torch.int64)) if threat.public else None
        before = known_before(own.network, rule, 2, threat, own.public or public)
        for seen in (own, replace(other, network=own.network)):
            assert alike(setting_of(seen)) == alike(before)


def alike(setting: Setting) -> tuple:
    public = setting.public and (setting.public.pictures.tolist(), setting.public.labels.tolist())
    weights = {name: tensor.tolist() for name, tensor in setting.network.weights.items()}
    return setting.network.model, weights, setting.share, setting.count, setting.rule, setting.granted, public


def test_a_copy_shares_no_memory(task):
    setting = setting_of(observed("convnet,width=8", task, threat=ThreatModel(public=4))[1])
    copied = setting.copied()
    assert isinstance(copied.network, Network)
    for tensor in copied.network.weights.values():
        tensor.zero_()
    copied.public.pictures.zero_()
    assert any(bool(tensor.any()) for tensor in setting.network.weights.values())
    assert bool(setting.public.pictures.any())
