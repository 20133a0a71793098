"""result.json: what is written is what is read, and anything else ends in a sentence."""

import json
import math
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from typer.testing import CliRunner

from leakmap import LocalRule, Plan, Spec, read_result, result_schema
from leakmap.cli.main import app
from leakmap.errors import StoreError
from leakmap.result.clients import FinishedClient, LostClient
from leakmap.result.part import Estimate
from leakmap.result.result import Result
from leakmap.result.values import first_ranks, gain_over_best_floor, mean_score, rank_score
from tests.result.made_up import finished, gain, line_up, made_up

DOCS = Path(__file__).parents[2] / "docs"
PLAN = Plan("mlp", "samples", LocalRule("delta", epochs=2), attack=Spec("linear", {"steps": 3}), metrics=("lpips",))


def whole():
    """A client with numbers that are not finite, and a lost one."""
    one = finished(
        0, (1.0,), (20,), {"psnr": (math.inf,)}, {"psnr": {"swapped": (9.0,)}}, objective=math.nan,
        curve=(1.0, math.nan), notes={"restart": 2, "confidence": math.inf, "layers": ("a", "b")},
    )  # fmt: skip
    return made_up(one, LostClient(client=1, failure="NonFinite: loss"), plan=PLAN, accuracy=math.nan)


def changed(**changes):
    return json.dumps(json.loads(whole().as_json()) | changes)


def test_a_result_is_read_back_as_it_was_in_memory(tmp_path):
    result = whole()
    (tmp_path / "result.json").write_text(result.as_json())
    read = read_result(tmp_path / "result.json")
    assert read == result
    assert read.plan.rule.epochs == 2
    assert (read.accuracy, read.finished[0].scores["psnr"], read.finished[0].curve) == (None, (None,), (1.0, None))
    assert [type(client) for client in read.clients] == [FinishedClient, LostClient]
    assert set(json.loads(result.as_json())["clients"][1]) == {"client", "failure"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed(schema=2), "has schema 2, this version of leakmap reads schema 4"),
        (changed(schema="9" * 100), "'schema'"),
        (changed(verdict={"level": "safe", "reasons": [], "statement": ""}), r"'verdict\.level'"),
        (changed(unfinished="0"), "'unfinished'"),
        (changed(gate={}), "'gate'"),
        (changed(plan={"model": "mlp", "data": "samples", "victims": 0}), "victims must be at least 1"),
        (changed(plan={"model": "mlp", "data": "samples", "code": "x"}), r"'plan\.code'"),
        ("[" * 10**5, "does not hold a result"),
        ("null", "does not hold a result"),
        (b"\xff\xfe", "does not hold a result"),
        (" " * (2**24 + 1), "larger than 16777216 bytes"),
    ],
)
def test_what_is_no_result_of_this_schema_ends_in_a_sentence(text, said):
    with pytest.raises(StoreError, match=said):
        Result.from_json(text, "result.json")


@pytest.mark.parametrize(
    ("client", "said"),
    [
        ({"galleries": [1]}, "candidates; got one of 1"),
        ({"galleries": [10**400]}, "candidates; got one of 1000"),
        ({"galleries": [20, 20]}, "ranks holds 1 numbers, and there are 2 line-ups"),
        ({"ranks": [0.5]}, "ranks holds 0.5, which is no place in a line-up of 20"),
        ({"ranks": [21]}, "ranks holds 21, which"),
        ({"ranks": [], "galleries": []}, "at least one picture"),
        ({"pose_ranks": [1, 1]}, "pose_ranks holds 2"),
        ({"swapped_ranks": [-3]}, "swapped_ranks holds -3"),
        ({"band_ranks": {"detail": [1e300]}}, r"detail holds 1e\+300"),
        ({"object_ranks": [1]}, "object_ranks holds 1 numbers, and there are 0 line-ups"),
        ({"scores": {"psnr": [9]}}, "scores holds no ssim for each of 1 pictures"),
        ({"scores": {"psnr": [9, 9], "ssim": [1]}}, "scores holds no psnr for each of 1 pictures"),
        ({"floors": {"psnr": {}}}, "floors holds nothing about ssim"),
    ],
)
def test_a_client_that_no_audit_has_ends_in_a_sentence(client, said):
    first, lost = json.loads(whole().as_json())["clients"]
    with pytest.raises(StoreError, match=rf"audit \(of client 0, .*{said}.*; make it again"):
        Result.from_json(changed(clients=[first | client, lost]), "result.json")


def test_parts_of_a_result_that_do_not_fit_each_other_end_in_a_sentence():
    told = json.loads(gain("mean").model_dump_json())
    for changes, said in (
        ({"metrics": {"ncc": told}}, "metrics holds ncc, which client 0 has no scores of"),
        ({"metrics": {"psnr": told | {"best_floor": "nothing"}}}, "psnr is nothing, which is none of its floors"),
        ({"exposure": exposing(client=1)}, "picture 0 of client 1, which is not there"),
        ({"exposure": exposing(picture=-1)}, "picture -1 of client 0"),
    ):
        with pytest.raises(StoreError, match=f"{said}.*; make it again"):
            Result.from_json(changed(**changes), "result.json")
    Result.from_json(changed(metrics={"psnr": told}, exposure=exposing()))


def exposing(client=0, picture=0):
    share = {"value": 1.0, "low": 0.0, "high": 1.0}
    found = {"client": client, "picture": picture, "level": "exact", "psnr": 60.0, "ssim": 1.0}
    counts = dict.fromkeys(("clients", "of_clients", "pictures", "of_pictures"), 1)
    return {**counts, "client_share": share, "picture_share": share, "found": [found]}


def test_a_missing_file_ends_in_a_sentence(tmp_path):
    with pytest.raises(StoreError, match="cannot be read"):
        read_result(tmp_path / "none.json")


def test_a_part_refuses_what_it_does_not_know_and_stays_as_it_is():
    with pytest.raises(ValidationError, match="middle"):
        Estimate.model_validate({"value": 1.0, "low": 0.0, "high": 2.0, "middle": 1.0})
    with pytest.raises(ValidationError, match="frozen"):
        line_up().p = 1.0


def test_the_published_schema_and_page_are_those_of_the_types_and_say_what_every_key_is():
    printed = [CliRunner().invoke(app, ["schema", *options]).stdout for options in ([], ["--markdown"])]
    assert printed == [(DOCS / name).read_text() for name in ("result.schema.json", "result.md")]
    schema = result_schema()
    for name, of in {"Result": schema, **schema["$defs"]}.items():
        assert of["description"]
        for key, value in of["properties"].items():
            assert value.get("description"), f"{name}.{key}"


def test_the_schema_takes_a_result_and_no_other_key():
    validator = Draft202012Validator(result_schema())
    assert validator.is_valid(json.loads(whole().as_json()))
    for text in (changed(schema=1), changed(gate={}), changed(clients=[{"client": 0}])):
        assert not validator.is_valid(json.loads(text))


def test_the_line_up_score_is_half_by_chance_whatever_the_gallery():
    for size in (5, 100):
        ranks = tuple(float(rank) for rank in range(1, size + 1))
        client = finished(3, ranks, (size,) * size)
        result = made_up(client, LostClient(client=4, failure=""))
        assert rank_score(result) == {3: pytest.approx(0.5)}
        assert first_ranks(result) == {3: 1 / size}
    assert rank_score(made_up(finished(0, (1.0,), (20,)))) == {0: 1.0}


def test_the_gain_is_over_the_floor_that_is_best_in_this_audit_where_all_values_are_finite():
    floors = {"psnr": {"a": (10.0, 10.0), "b": (12.0, 12.0)}}
    clients = [
        finished(i, (1.0, 1.0), (9, 9), {"psnr": psnr}, floors) for i, psnr in enumerate([(14.0, 16.0), (None, 16.0)])
    ]
    result = made_up(*clients, LostClient(client=2, failure="not finished"), metrics={"psnr": gain("b")})
    assert gain_over_best_floor(result) == {0: 3.0}
    assert gain_over_best_floor(result, "ssim") == {}
    assert mean_score(result, "psnr") == {0: 15.0}
