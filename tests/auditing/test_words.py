"""What the sentences about an audit say."""

from types import SimpleNamespace

import pytest
import torch

from leakmap import Spec, ThreatModel
from leakmap.auditing.flags import flags_of
from leakmap.auditing.words import statement, what_leaks
from leakmap.plan.plan import Captured, Plan
from leakmap.scoring.verdict import Client, Rule, Verdict

RULES: tuple[Rule, ...] = ("ranks", "floors")


@pytest.mark.parametrize(
    ("bands", "expected"),
    [
        ((), "Neither colours, layout nor detail of the pictures, each alone, are above chance."),
        (
            ("layout",),
            "Layout of the pictures is above chance, no colours and no detail. "
            "A person sees light and dark masses at most, neither colours nor detail.",
        ),
        (
            ("colour", "layout"),
            "Colours and layout of the pictures are above chance, no detail. "
            "A person sees masses and colours at most, no detail.",
        ),
        (("colour", "layout", "detail"), "Colours, layout and detail of the pictures are above chance."),
    ],
)
def test_the_sentence_on_what_leaks_names_the_bands(bands, expected):
    assert what_leaks(bands) == expected


@pytest.mark.parametrize(
    ("attack", "public", "captured", "objects", "told"),
    [
        ("strongest", 0, None, 0, "--public auto takes them from the spare pictures of --data"),
        ("strongest", 0, Captured(("f",), ("t",), "o"), 0, "--public auto takes them from --others"),
        ("strongest", 20, None, 0, None),
        ("strongest", 0, None, 2, None),
        ("inverting_gradients", 0, None, 0, None),
        ("strongest_v1", 0, None, 0, None),
    ],
)
def test_what_granting_public_pictures_would_add_is_said_where_it_would(attack, public, captured, objects, told):
    groups = SimpleNamespace(
        labels=torch.zeros(60).long(),
        distractors=torch.arange(60),
        victims=torch.arange(1)[None],
        nearest=(torch.zeros(1, 1).long(), torch.zeros(1, 1)),
        objects=torch.zeros(objects),
        classes=("a",),
    )
    plan = Plan("convnet", "samples", threat=ThreatModel(public=public), attack=Spec(attack), captured=captured)
    flag = flags_of(plan, groups, None, []).get("fitting_withheld")
    assert flag is None if told is None else told in flag


def test_a_partial_leak_is_counted_in_the_pose_that_showed_it():
    plan, partial = Plan("resnet", "samples"), Verdict("partial", (), "first_ranks")
    clients = [Client((1.0 + 40 * i,), (100,), {}, pose_ranks=(1.0 if i < 4 else 50.0,)) for i in range(12)]
    assert "first in 4 of 12 line-ups in any pose (" in statement(plan, partial, clients, [])
    upright = [Client((1.0,), (100,), {}, pose_ranks=(50.0,))] * 12
    assert "first in 12 of 12 line-ups (" in statement(plan, partial, upright, [])


def test_what_lies_above_the_floors_alone_is_not_said_to_tell_pictures_apart():
    clients = [Client((50.0,), (100,), {})] * 12
    told = {r: statement(Plan("resnet", "samples"), Verdict("statistical", (), r), clients, []) for r in RULES}
    assert "tell pictures apart better than chance: first in 0 of 12" in told["ranks"]
    assert "is closer to their pictures than any floor" in told["floors"]
    assert "better than chance" not in told["floors"]
