"""What the sentences about an audit say."""

import pytest

from leakmap.auditing.words import statement, what_leaks
from leakmap.plan.plan import Plan
from leakmap.scoring.verdict import Client, Verdict


@pytest.mark.parametrize(
    ("bands", "expected"),
    [
        ((), "Neither colours, layout nor detail of the pictures, each alone, are above chance."),
        (("layout",), "Layout of the pictures is above chance, no colours and no detail."),
        (("colour", "layout"), "Colours and layout of the pictures are above chance, no detail."),
        (("colour", "layout", "detail"), "Colours, layout and detail of the pictures are above chance."),
    ],
)
def test_the_sentence_on_what_leaks_names_the_bands(bands, expected):
    assert what_leaks(bands) == expected


def test_a_partial_leak_is_counted_in_the_pose_that_showed_it():
    plan, partial = Plan("resnet", "samples"), Verdict("partial", (), "first_ranks")
    clients = [Client((1.0 + 40 * i,), (100,), {}, pose_ranks=(1.0 if i < 4 else 50.0,)) for i in range(12)]
    assert "first in 4 of 12 line-ups in any pose (" in statement(plan, partial, clients, [])
    upright = [Client((1.0,), (100,), {}, pose_ranks=(50.0,))] * 12
    assert "first in 12 of 12 line-ups (" in statement(plan, partial, upright, [])
