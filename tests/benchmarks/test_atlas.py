from dataclasses import asdict, replace

import pytest
import torch
from benchmarks.atlas import augmented, holdings, simulated
from benchmarks.atlas_cells import BASES, CELLS, SMALL, Cell
from benchmarks.atlas_page import heat_map, leaks, page
from benchmarks.atlas_reference import client_in_words, effects, measured, write_reference
from benchmarks.clients import Pool, chance_p, figures

from leakmap.local_rule import LocalRule
from leakmap.report.charts import write
from leakmap.scoring.bands import BANDS


def entry(relative, speaks="learned_inverse", p=0.01):
    share = (0.2, 0.1, 0.3)
    whole = {"first": share, "chance": 0.012, "relative": relative, "p": p}
    one = {"clients": 100, "ncc": share, "psnr": (14.0, 13.0, 15.0), "whole": whole, "rehearsed": {"ncc": 0.3}}
    one |= {band: {"first": share} for band in BANDS}
    return {
        "attacks": {speaks: one},
        "speaks": speaks,
        "class_mean": {"ncc": share, "psnr": share},
        "seconds": 60.0,
        "versions": "leakmap",
        "date": "2026-11-29",
    }


def test_every_kind_of_client_is_measured_once():
    assert len(CELLS) >= 200
    assert len({cell.content for cell in CELLS.values()}) == len(CELLS)
    assert {cell.group for cell in CELLS.values()} == {*BASES, "crossed", "production", "named"}
    assert len({cell.model for cell in CELLS.values() if cell.group == "named"}) == 25


def test_an_axis_changes_one_thing_of_its_base():
    for cell in CELLS.values():
        if cell.group in BASES and cell.varied and cell.weights != "full" and "GroupNorm" not in cell.value:
            base, own = asdict(BASES[cell.group]), asdict(cell)
            apart = {name for name in base if base[name] != own[name]} - {"varied", "value"}
            # Local steps need as many pictures.
            assert apart <= ({"rule", "count"} if cell.varied in ("steps", "optimiser") else apart)
            assert len(apart - {"count"}) <= 1 or cell.varied in ("steps", "optimiser"), cell


def test_no_two_clients_hold_the_same_picture_where_there_are_enough():
    few, many = holdings(846, 4, 150), holdings(846, 16, 100)
    assert len(few.unique()) == few.numel()
    assert many.shape == (100, 16)
    assert all(len(row.unique()) == 16 for row in many)


def test_pictures_are_augmented_each_in_its_own_way():
    pictures = torch.rand(1, 3, 8, 8).expand(6, 3, 8, 8)
    found = augmented(pictures, 5)
    assert found.shape == pictures.shape
    assert len({tuple(one.flatten().tolist()) for one in found}) > 1
    assert torch.equal(found, augmented(pictures, 5))


def test_clients_that_take_long_are_simulated_less_often():
    assert simulated(BASES["training"]) == 1000
    assert simulated(replace(BASES["returned"], count=32)) > simulated(replace(BASES["training"], count=32))


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (BASES["inference"], "inference mode, 1 picture"),
        (BASES["returned"], "training mode, 1 picture, buffers returned"),
        (
            Cell("production", rule=LocalRule("delta", batch_size=16, momentum=0.9), count=33, buffers=True),
            "training mode, 2 steps of 16 pictures and one of 1, momentum, buffers returned",
        ),
        (
            Cell("x", rule=LocalRule(defence="sign"), count=2),
            "training mode, 2 pictures, sign, buffers kept",
        ),
    ],
)
def test_a_client_is_told_in_words(cell, words):
    assert client_in_words(cell) == words


def keys_of(*cells):
    return [next(key for key, one in CELLS.items() if one.content == cell.content) for cell in cells]


def test_an_effect_is_that_of_one_change_beside_its_base():
    base, wide = keys_of(BASES["inference"], replace(BASES["inference"], model=SMALL.replace("16", "32")))
    found = {base: entry((0.3, 0.25, 0.35)), wide: entry((0.1, 0.05, 0.15))}
    (effect,) = [one for one in effects(found) if one.trait == "width"]
    assert (effect.value, effect.change) == ("32", "more")
    assert not effects({wide: found[wide]})


def test_a_search_of_few_clients_speaks_but_tells_no_change():
    base, wide = keys_of(BASES["inference"], replace(BASES["inference"], model=SMALL.replace("16", "32")))
    found = {base: entry((0.3, 0.25, 0.35)), wide: entry((0.3, 0.25, 0.35))}
    search = entry((0.2, 0.0, 0.6), "even_steps")["attacks"]["even_steps"] | {"clients": 6}
    found[wide]["attacks"]["even_steps"], found[wide]["speaks"] = search, "even_steps"
    assert measured(CELLS[wide], found[wide]).clients == 6
    assert leaks(found[wide])
    (effect,) = [one for one in effects(found) if one.trait == "width"]
    assert effect.after == (0.3, 0.25, 0.35)


def test_the_page_counts_what_is_above_chance(tmp_path):
    one, other = keys_of(BASES["inference"], BASES["training"])
    found = {one: entry((0.3, 0.25, 0.35)), other: entry((0.46, 0.415, 0.505), p=0.4)}
    assert leaks(found[one])
    assert leaks(found[other])  # by many clients' means, whatever the rank sum says, which counts a batch as a picture
    few = entry((0.5, 0.4, 0.6), p=0.6)["attacks"]["learned_inverse"] | {"clients": 6}
    assert chance_p(few) == 0.6
    found[other]["attacks"]["even_steps"] = few
    assert not leaks(found[other])  # two attacks were tried
    text = page("About.", found)
    assert "More than chance is read of 1 of 2 kinds of client" in text
    write_reference(found, tmp_path / "reference.json")
    assert "inference mode" in (tmp_path / "reference.json").read_text()
    assert write(heat_map(found), tmp_path / "atlas.svg").read_text().count("<text")
    assert measured(CELLS[one], found[one]).above_chance


def test_figures_leave_out_what_the_client_holds_besides():
    pictures = torch.rand(6, 3, 8, 8)
    y = torch.zeros(6, dtype=torch.int64)
    pool = Pool(pictures, y, pictures, y, pictures, y, 1)
    index = torch.tensor([[0]])
    # The reconstruction is the client's other picture, which is no candidate.
    plain = figures(pool, index, [pictures[1:2]])
    held = figures(pool, index, [pictures[1:2]], torch.tensor([[0, 1]]))
    assert plain["whole"]["chance"] == pytest.approx(1 / 6)
    assert held["whole"]["chance"] == pytest.approx(1 / 5)
    assert figures(pool, index, [pictures[:1]])["whole"]["first"][0] == 1
