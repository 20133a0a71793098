import torch
from benchmarks.ladder import object_rank_score
from benchmarks.measures import MEASURES, leaks, split, trained_in_part

from leakmap import Task, build_network
from tests.result.made_up import finished, made_up


def entry(low, high, searched=None):
    figures = lambda a, b: {  # noqa: E731
        "clients": 6, "whole": {"relative": ((a + b) / 2, a, b), "p": 0.4 if b > 0.5 else 0.03}
    }  # fmt: skip
    return {"any": figures(low, high), "searches": {} if searched is None else {"even_steps": figures(*searched)}}


def test_no_picture_serves_two_purposes():
    parts = split(3728)
    places = torch.cat([parts.first, *parts.clients, parts.public])
    assert len(places.unique()) == len(places) == 3728


def test_what_a_measure_does_is_told_attack_by_attack():
    before = entry(0.1, 0.2)
    assert leaks(entry(0.45, 0.55), before) == "chance"
    assert leaks(entry(0.3, 0.4), before) == "less"
    assert leaks(entry(0.15, 0.3), before) == "as much"
    assert leaks(entry(0.01, 0.05), before) == "more"
    assert leaks(entry(0.3, 0.4, searched=(0.45, 0.55)), before) == "chance", "corrected for two attacks"
    told = entry(0.45, 0.55, searched=(0.01, 0.05))
    told["searches"]["even_steps"]["whole"]["p"] = 0.01
    assert leaks(told, before) == "less"
    assert leaks(told, entry(0.1, 0.2, searched=(0.3, 0.6))) == "more"
    assert leaks({"searches": told["searches"]}, before) == "not compared"
    assert leaks({"searches": {}}, before) == "nothing tried applies"


def test_what_is_not_trained_is_not_sent():
    task = Task((3, 32, 32), 10, (0.5,) * 3, (0.5,) * 3)
    for key, names in (("head", ["head.weight", "head.bias"]), ("patches-kept", None)):
        measure = MEASURES[key]
        network = build_network(task, "vit,dim=12,depth=1")
        sent = trained_in_part(network, measure.trained).trained()
        assert sent == names if names else not [name for name in sent if name.startswith(("embedding", "position"))]
        assert set(sent) < set(network.trained())


def test_objects_are_ranked_as_pictures_are_and_clients_without_any_are_left_out():
    some = finished(3, (1.0,), (20,), object_ranks=(1.0, 3.0), object_galleries=(3, 3))
    assert object_rank_score(made_up(some, finished(0, (1.0,), (20,)))) == {3: 0.5}
