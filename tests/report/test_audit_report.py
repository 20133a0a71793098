"""The report of an audit: nobody who is exposed is left out, and a bound that says little is seen to."""

import base64
import io
import re
from typing import get_args

import pytest
import torch
from PIL import Image

from leakmap import report
from leakmap.report import told
from leakmap.report.pictures import EXPOSED_ROWS, PICTURE_ROWS, uris
from leakmap.result.evidence import CopiesResult, ExposedPicture, ExposureResult
from leakmap.result.part import Rate
from leakmap.scoring.verdict import Rule
from tests.result.made_up import finished, made_up, verdict

SCORES = {"psnr": (12.0,), "ssim": (0.1,)}


def exposure(clients, found, high):
    share = Rate(value=len(found) / clients, low=0.0, high=high)
    pictures = [ExposedPicture(client=one, picture=0, level="exact", psnr=60.0 - i, ssim=1.0) for i, one in found]
    return ExposureResult(
        clients=len(found), of_clients=clients, client_share=share, pictures=len(found), of_pictures=clients,
        picture_share=share, found=tuple(pictures),
    )  # fmt: skip


def page(tmp_path, clients, exposed, without=()):
    rows = [
        {name: torch.rand(1, 3, 8, 8) for name in ("original", "reconstruction", "swapped update", "mean picture")}
        for _ in range(clients)
    ]
    for one in without:
        del rows[one]["swapped update"]
    result = made_up(
        *(finished(i, (1.0,), (20,), SCORES) for i in range(clients)),
        exposure=exposure(clients, list(enumerate(exposed)), 0.3),
        verdict=verdict("exact", "exposure") if exposed else verdict("none_found", "nothing"),
    )
    return report.write(tmp_path / "r.html", [report.Section(result, rows)]).read_text()


def shown(text):
    """The clients whose pictures are shown, in order, and how many of them are marked."""
    found = re.findall(r'<figure class="(?:large|small)( exposed)?">.*?<figcaption>Client (\d+):', text, re.S)
    return [int(client) - 1 for _, client in found], sum(bool(mark) for mark, _ in found)


def test_exposed_pictures_come_first_and_are_never_sampled_away(tmp_path):
    clients, marked = shown(page(tmp_path, 300, [7, 291]))
    assert (clients[:2], marked) == ([7, 291], 2)
    assert len(clients) == 2 + PICTURE_ROWS
    text = page(tmp_path, 300, range(100))
    clients, marked = shown(text)
    assert (clients[:EXPOSED_ROWS], marked) == ([*range(EXPOSED_ROWS)], EXPOSED_ROWS)
    assert f"{100 - EXPOSED_ROWS} more are exposed" in text
    assert len(text) < 2_000_000


def test_a_floor_without_a_reconstruction_has_an_empty_place(tmp_path):
    text = page(tmp_path, 3, [1], without=[0])
    assert text.count("no recon&shy;struction") == 1
    assert text.count('<span class="name">from another update</span>') == 3


def test_very_many_large_pictures_are_kept_small():
    few, many = uris([torch.rand(3, 100, 100), None]), uris([torch.rand(3, 100, 100)] * 600)
    assert (few[0][:15], few[1]) == ("data:image/png;", "")
    image = Image.open(io.BytesIO(base64.b64decode(many[0].partition(",")[2])))
    assert (image.format, max(image.size)) == ("WEBP", 91)


@pytest.mark.parametrize(("high", "amber"), [(0.26, True), (0.25, False)])
def test_a_bound_is_the_headline_and_amber_where_it_says_little(high, amber):
    result = made_up(exposure=exposure(4, [], high))
    assert told.headline(result).startswith(f"At most {high:.1%} of such clients are exposed")
    assert ("too few clients" in told.headline(result)) == told.too_few(result) == amber


def test_copies_are_told_of_looked_for_or_not():
    said = [
        told.copies(made_up(copies=copies))
        for copies in (None, CopiesResult(families=0, left_out=0), CopiesResult(families=2, left_out=1))
    ]
    assert said == [
        "near copies were not looked for, as there are more than 60,000 pictures", "no near copies were found",
        "2 pictures had near copies; 1 copy was left out",
    ]  # fmt: skip


def test_every_rule_is_told_in_words():
    assert set(told.RULES) == set(get_args(Rule))
