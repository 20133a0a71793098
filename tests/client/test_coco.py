"""Pictures with objects: geometry, both layouts, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from leakmap.client import annotations as module
from leakmap.client.data import load_pictures
from leakmap.client.data.coco import GREY, letterbox
from leakmap.errors import BadSetting, DataError, UsageError
from leakmap.problem.objects import EMPTY, GRID, corners, unpack

WIDTH, HEIGHT = 40, 20
BOX = (10, 5, 20, 10)
"""Left, top, width and height in pixels."""
LINE = "1 0.5 0.5 0.5 0.5"
"""The same box, of class 1."""


def picture(file, seed=0, box=BOX, shape=(HEIGHT, WIDTH)):
    """A dark picture, bright where the box is; the seed makes it unlike every other."""
    pixels = np.random.default_rng(seed).integers(0, 30, (*shape, 3), dtype=np.uint8)
    left, top, width, height = box
    pixels[top : top + height, left : left + width] = 250
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def yolo(root, labels=(LINE,), split="val", seed=0, yaml="names: [cat, dog]\n"):
    """One picture for each label file."""
    for i, text in enumerate(labels):
        picture(root / "images" / split / f"{i}.png", seed + i)
        file = root / "labels" / split / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if yaml is not None:
        (root / "data.yaml").write_text(yaml)
    return root


def annotation(**changes):
    return {"id": 1, "image_id": 7, "category_id": 9, "bbox": list(BOX), "iscrowd": 0} | changes


def image(**changes):
    return {"id": 7, "file_name": "0.png", "width": WIDTH, "height": HEIGHT} | changes


def annotated(root, split="val", **changes):
    """One picture with one object in COCO's layout."""
    categories = [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}]
    data = {"images": [image()], "annotations": [annotation()], "categories": categories} | changes
    picture(root / "images" / split / "0.png")
    return written(root, json.dumps(data), split)


def written(root, text, split="val"):
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(text)
    return root


def load(root, size=32, **settings):
    return load_pictures(",".join([f"coco:{root}", *(f"{key}={value}" for key, value in settings.items())]), size)


def refused(root, word, **settings):
    with pytest.raises(DataError, match=word) as error:
        load(root, **settings)
    text = str(error.value)
    assert "\n" not in text
    assert text.isprintable()
    assert len(text) < 600


def pixels(pictures):
    """Picture, class and left, top, right, bottom in pixels of every object, sorted."""
    number, kind, boxes = unpack(pictures.objects)
    rows = torch.cat([number[:, None], kind[:, None], corners(boxes) * pictures.images.shape[-1]], 1)
    return torch.tensor(sorted(rows.tolist()))


@pytest.mark.parametrize("write", [yolo, annotated])
@pytest.mark.parametrize("size", [32, 40, 80])
def test_a_wide_picture_is_centred_between_grey_bars_and_its_box_moves_along(write, size, tmp_path):
    found = load(write(tmp_path), size)
    quarter = size // 4
    assert found.images.shape == (1, 3, size, size)
    assert found.images.dtype == torch.uint8
    assert found.areas.tolist() == [[quarter, 0, 3 * quarter, size]]
    assert found.objects.tolist() == [[[1, GRID // 2, GRID // 2, GRID // 2, GRID // 4]]]
    assert found.labels.tolist() == [0]
    assert found.classes == ("cat", "dog")
    assert (found.images[0, :, :quarter] == GREY).all()
    assert (found.images[0, :, 3 * quarter :] == GREY).all()
    assert (found.images[0, :, quarter : 3 * quarter] != GREY).float().mean() > 0.95


@pytest.mark.parametrize("shape", [(60, 45), (45, 60), (48, 48), (37, 61)])
def test_the_box_is_where_the_bright_rectangle_is(shape, tmp_path):
    height, width = shape
    box = (3, 8, 24, 12)
    line = f"0 {(3 + 12) / width} {(8 + 6) / height} {24 / width} {12 / height}"
    yolo(tmp_path, [line])
    picture(tmp_path / "images" / "val" / "0.png", box=box, shape=shape)
    found = load(tmp_path, 96)
    bright = (found.images[0].float().mean(0) > 180).nonzero()
    (_, _, left, top, right, bottom) = pixels(found)[0]
    measured = torch.cat([bright.min(0).values.flip(0), bright.max(0).values.flip(0) + 1]).float()
    assert (measured - torch.stack([left, top, right, bottom])).abs().max() <= 1
    assert len(bright) == pytest.approx(float((right - left) * (bottom - top)), rel=0.1)


def test_a_tall_picture_and_an_odd_rest_of_bars():
    square, area = letterbox(torch.zeros(3, 50, 21, dtype=torch.uint8), 50)
    assert area == (0, 14, 50, 35)
    assert (square == GREY).nonzero()[:, 2].unique().tolist() == [*range(14), *range(35, 50)]


def test_a_square_picture_of_the_right_size_keeps_its_pixels():
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    square, area = letterbox(image, 32)
    assert torch.equal(square, image)
    assert area == (0, 0, 32, 32)


def test_fine_detail_is_averaged_and_not_skipped():
    stripes = torch.tensor([200, 0, 0, 200], dtype=torch.uint8).repeat(32).expand(3, 128, 128)
    square, _ = letterbox(stripes, 32)
    assert (square[:, :, 1:-1].float() - 100).abs().max() <= 1


def test_the_smallest_box_keeps_a_width_and_a_height(tmp_path):
    found = load(yolo(tmp_path, ["0 0.5 0.5 1e-7 1e-7"]))
    assert found.objects[0, 0, 3:].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [("0 0.5 0.5 1.001 1.001", [0.0, 8, 32, 24]), ("0 0.9 0.25 0.2005 0.5", [25.592, 8, 32, 16])],
)
def test_boxes_that_stick_out_by_rounding_are_clipped(line, expected, tmp_path):
    assert torch.allclose(pixels(load(yolo(tmp_path, [line])))[0, 2:], torch.tensor(expected), atol=2e-3)


@pytest.mark.parametrize("width", [33, 37, 40, 61])
def test_a_box_of_a_json_file_may_stick_out_by_a_whole_pixel(width, tmp_path):
    out = annotation(bbox=[-1, -1, width + 2, HEIGHT + 2])
    annotated(tmp_path, images=[image(width=width)], annotations=[out])
    picture(tmp_path / "images" / "val" / "0.png", shape=(HEIGHT, width))
    found = load(tmp_path, 64)
    assert torch.allclose(pixels(found)[0, [3, 2, 5, 4]], found.areas[0].float(), atol=2e-3)


def test_the_validation_split_is_the_clients_and_the_training_split_is_spare(tmp_path):
    yolo(tmp_path, [LINE], "valid")
    yolo(tmp_path, [LINE], "test", 10)
    yolo(tmp_path, [f"{LINE}\n\n0 0.2 0.2 0.1 0.1\n", LINE], "train", 20)
    found = load(tmp_path)
    assert (len(found), len(found.spare)) == (1, 2)
    assert torch.equal(found.images, load(tmp_path, split="valid").images)
    assert found.objects.shape == (1, 2, 5)
    assert found.spare.objects.shape == (2, 2, 5)
    assert found.objects[0, :, 0].tolist() == [1, EMPTY]
    assert found.spare.areas.shape == (2, 4)
    assert len(load(tmp_path, split="train")) == 2
    assert load(tmp_path, split="train").spare is None
    assert len(load(tmp_path, split="test", spare="valid").spare) == 1
    assert len(load(tmp_path, spare="valid").spare) == 1
    refused(tmp_path, "'dev'; there are test, train, valid", split="dev")
    refused(tmp_path, "both split and spare", split="test", spare="test")


def test_a_single_split_has_no_spare_and_several_strange_ones_are_asked_about(tmp_path):
    yolo(tmp_path, split="first")
    assert load(tmp_path).spare is None
    yolo(tmp_path, split="second")
    refused(tmp_path, "unclear: give split")


def test_most_spreads_evenly_and_most_objects_names_file_and_setting(tmp_path):
    yolo(tmp_path, [f"0 0.5 0.5 {i / 10} 0.5" for i in range(1, 10)])
    widths = load(tmp_path, most=3).objects[:, 0, 3].tolist()
    assert widths == [round(GRID * i / 10) for i in (1, 5, 9)]
    yolo(tmp_path, ["", f"{LINE}\n{LINE}"])
    refused(tmp_path, r"1\.png has 2 objects, more than 1; raise most_objects", most_objects=1)
    for wrong in ({"most_objects": 1001}, {"most_objects": 0}, {"most": 0}, {"layout": "xml"}):
        with pytest.raises(BadSetting):
            load(tmp_path, **wrong)


def test_pictures_without_objects_are_dropped_unless_asked_for(tmp_path):
    yolo(tmp_path, [LINE, "", LINE])
    (tmp_path / "labels" / "val" / "2.txt").unlink()
    (tmp_path / "labels" / "val" / "classes.txt").write_text("cat\ndog\n")
    assert len(load(tmp_path)) == 1
    found = load(tmp_path, empty="true")
    assert found.objects[:, 0, 0].tolist() == [1, EMPTY, EMPTY]
    (tmp_path / "labels" / "val" / "0.txt").write_text("\n")
    refused(tmp_path, "3 pictures, none with objects")
    assert (load(tmp_path, empty="true").objects[..., 0] == EMPTY).all()


def test_elongated_pictures_are_left_out(tmp_path):
    yolo(tmp_path, [LINE, LINE])
    picture(tmp_path / "images" / "val" / "0.png", shape=(18, 40))
    assert len(load(tmp_path, 32)) == 1
    assert len(load(tmp_path, 36)) == 2
    picture(tmp_path / "images" / "val" / "1.png", shape=(18, 40))
    refused(tmp_path, "larger image size")


def test_crowds_and_boxes_without_area_are_left_out(tmp_path):
    others = [annotation(iscrowd=1), annotation(bbox=[10, 5, 3.5, 0.0]), annotation(bbox=[10, 5, 0, 4])]
    annotated(tmp_path, annotations=[annotation(), *others])
    assert len(pixels(load(tmp_path))) == 1


@pytest.mark.parametrize("place", ["images/val/a/0.png", "val/a/0.png", "a/0.png"])
def test_pictures_of_a_json_file_may_lie_in_three_places(place, tmp_path):
    annotated(tmp_path, images=[image(file_name="a/0.png")])
    refused(tmp_path, "no such file")
    picture(tmp_path / place)
    assert len(load(tmp_path)) == 1


@pytest.mark.parametrize(
    "yaml",
    [
        "nc: 3\nnames: [traffic light, 'it''s', \"a, b\"]\npath: .\n",
        "names:\n  [\n    traffic light,\n    'it''s',\n    \"a, b\",\n  ]\n",
        "names: {1: it's, 0: traffic light, 2: 'a, b'}\n".replace("it's", '"it\'s"'),
        "names:  # three\n- traffic light\n- 'it''s'   # quoted\n\n# the last\n- a, b\nnc: 3\n",
        "train: images/train\r\nnames:\r\n  0: traffic light\r\n  2: a, b # end\r\n  1: it's\r\n",
    ],
)
def test_the_names_of_a_data_yaml(yaml, tmp_path):
    assert load(yolo(tmp_path, yaml=yaml)).classes == ("traffic light", "it's", "a, b")


def test_without_a_data_yaml_classes_are_numbered_over_both_splits(tmp_path):
    yolo(tmp_path, ["3 0.5 0.5 0.5 0.5"], "train", 5, yaml=None)
    assert load(yolo(tmp_path, yaml=None)).classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    "yaml",
    [
        "nc: 2\n",
        "names: 7\n",
        "names: []\n",
        "names:\n",
        "names: [a, b\n",
        "names: [a, b}\n",
        "names: [a, [b]]\n",
        "names: [a, b]c\n",
        "names: [a, b]\n  - c\n",
        "names:\n- a\n- b\n]- c\n",
        "names: [0: a, 1: b]\n",
        "names: {a, b}\n",
        "names:\n  - *anchor\n",
        "names:\n  - a: b\n",
        "names:\n  0: a\n  2: b\n",
        "names:\n  0: a\n  - b\n",
        'names: ["\x1b[31m", b]\n',
        f"names: [{'a' * 300}, b]\n",
        "names: [" + "a," * 10_001 + "]\n",
        "names: ['" + "a" * 200_000 + "\n",
        "names: [a" + " " * 200_000 + ":\n",
        "#" * (2**20 + 1),
    ],
)
def test_a_data_yaml_that_is_not_understood_is_refused(yaml, tmp_path):
    refused(yolo(tmp_path, yaml=yaml), r"data\.yaml")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("1 0.5 0.5 0.5", "line 1.*five numbers"),
        (f"{LINE}\n1 0.5 0.5 0.5 0.5 0.9", "line 2.*five numbers"),
        ("dog 0.5 0.5 0.5 0.5", "five numbers"),
        ("1 0.5 nan 0.5 0.5", "five numbers"),
        ("1 0.5 0.5 inf 0.5", "five numbers"),
        ("1 1e999 0.5 0.5 0.5", "five numbers"),
        ("\x1b]0;" + "x" * 5000, "five numbers"),
        ("2 0.5 0.5 0.5 0.5", "class '2'; expected one from 0 to 1"),
        ("-1 0.5 0.5 0.5 0.5", "class '-1'"),
        ("0.5 0.5 0.5 0.5 0.5", "class '0.5'"),
        ("1e300 0.5 0.5 0.5 0.5", "class '1e300'"),
        ("1 0.5 0.5 0 0.5", "more than 0"),
        ("1 0.5 0.5 0.5 -0.5", "more than 0"),
        ("1 0.5 0.5 1.0021 0.5", "inside the picture"),
        ("1 0.5 0.9 0.5 0.3", "inside the picture"),
        ("1 -0.5 0.5 0.1 0.1", "inside the picture"),
        ("1 1.0005 0.5 0.0005 0.5", "inside the picture"),
        ("#" * (2**20 + 1), "bytes; at most"),
    ],
)
def test_a_wrong_label_file_is_refused(text, word, tmp_path):
    refused(yolo(tmp_path, [text]), word)


def test_labels_that_are_no_text_or_have_no_picture_are_refused(tmp_path):
    yolo(tmp_path)
    (tmp_path / "labels" / "val" / "0.txt").write_bytes(b"\xff\xfe1 0.5")
    refused(tmp_path, "not text")
    (tmp_path / "labels" / "val" / "0.txt").unlink()
    (tmp_path / "labels" / "val" / "0.txt").mkdir()
    refused(tmp_path, "not a file")
    (tmp_path / "labels" / "val" / "lost.txt").write_text(LINE)
    refused(tmp_path, r"lost\.txt has no picture")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"images": None}, "no list 'images'"),
        ({"categories": {}}, "no list 'categories'"),
        ({"annotations": [3]}, r"annotations\[0\].*braces"),
        ({"annotations": [[[[[[[[[]]]]]]]]]}, "braces"),
        ({"categories": [{"id": 9}]}, "None for 'name'"),
        ({"categories": [{"id": 9, "name": 5}]}, "5 for 'name'"),
        ({"categories": [{"id": 9, "name": "a\nb"}]}, "characters that print"),
        ({"categories": [{"id": 9, "name": "\ud800"}]}, "characters that print"),
        ({"categories": []}, "0 classes"),
        ({"categories": [{"id": 9, "name": "a"}] * 2}, "each id once"),
        ({"images": [image(), image()]}, "each id once"),
        ({"images": [image(id="7")]}, "'7' for 'id'"),
        ({"images": [image(id=True)]}, "True for 'id'"),
        ({"images": [image(width=0)]}, "expected 1 to"),
        ({"images": [image(height=10**400)]}, "expected 1 to"),
        ({"images": [image(height=20.0)]}, "whole number"),
        ({"images": [image(width=41)]}, "20 high and 40 wide, but .* 20 high and 41 wide"),
        ({"annotations": [annotation(image_id=8)]}, "image 8, which is not among"),
        ({"annotations": [annotation(image_id=10**4000)]}, "not among"),
        ({"annotations": [annotation(category_id=1)]}, "category 1, which is not among"),
        ({"annotations": [annotation(bbox=None)]}, "bbox None"),
        ({"annotations": [annotation(bbox=[1, 2, 3])]}, "left, top, width and height"),
        ({"annotations": [annotation(bbox=[1, 2, 3, "4"])]}, "left, top, width and height"),
        ({"annotations": [annotation(bbox=[1, 2, 3, float("nan")])]}, "nan"),
        ({"annotations": [annotation(bbox=[1, 2, 3, float("inf")])]}, "inf"),
        ({"annotations": [annotation(bbox=[1, 2, 3, 10**400])]}, "left, top, width and height"),
        ({"annotations": [annotation(bbox=[1, 2, -3, 4])]}, "none below 0"),
        ({"annotations": [annotation(bbox=[1, 2, 3, 19.5])]}, "inside the picture"),
        ({"annotations": [annotation(bbox=[-1.1, 2, 3, 4])]}, "inside the picture"),
        ({"annotations": [annotation(bbox=[40, 2, 1, 4])]}, "inside the picture"),
        ({"annotations": [annotation(iscrowd="no")]}, "iscrowd 'no'"),
        ({"annotations": []}, "none with objects"),
    ],
)
def test_a_json_file_of_wrong_content_is_refused(changes, word, tmp_path):
    refused(annotated(tmp_path, **changes), word)


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"images": [}', "[" * 200_000, '{"a":' * 200_000, "[]", "7", '"\udc80"', "1" * 5000],
    ids=["empty", "open", "wrong", "nested lists", "nested objects", "list", "number", "surrogate", "digits"],
)
def test_a_corrupt_json_file_is_refused(text, tmp_path):
    annotated(tmp_path)
    (tmp_path / "annotations" / "instances_val.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(tmp_path, "instances_val.json")


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a/../../b.png",
        "..\\b.png",
        "C:b.png",
        "\\\\host\\b.png",
        "",
        ".",
        "\0",
        "a\nb",
        "x" * 300,
    ],
)
def test_file_names_that_leave_the_folder_are_refused(name, tmp_path):
    picture(tmp_path / "b.png")
    refused(annotated(tmp_path / "data", images=[image(file_name=name)]), "inside the folder")


def test_a_missing_picture_or_one_that_is_none_is_refused(tmp_path):
    annotated(tmp_path)
    file = tmp_path / "images" / "val" / "0.png"
    file.write_bytes(b"not a picture")
    refused(tmp_path, "cannot be read as a picture")
    file.unlink()
    refused(tmp_path, "no such file")
    refused(annotated(tmp_path, images=[image(file_name="é" * 200)]), "é has annotations, but there is no such file")


def test_a_picture_that_is_stored_turned_is_refused(tmp_path):
    yolo(tmp_path)
    source = tmp_path / "images" / "val" / "0.png"
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.open(source).save(source.with_suffix(".jpg"), exif=exif)
    source.unlink()
    assert len(load(tmp_path)) == 1
    exif[0x0112] = 6
    picture(source)
    Image.open(source).save(source.with_suffix(".jpg"), exif=exif)
    source.unlink()
    refused(tmp_path, "save it upright")


def test_too_large_or_too_many_files_are_refused_unread(tmp_path, monkeypatch):
    annotated(tmp_path)
    monkeypatch.setattr(module, "LONGEST_JSON", 100)
    refused(tmp_path, "at most 100 are read")
    yolo(tmp_path, [LINE] * 4)
    monkeypatch.setattr(module, "MOST_FILES", 3)
    refused(tmp_path, "holds 4 files; at most 3")


def test_what_is_not_there_or_not_said_is_asked_for(tmp_path):
    refused(tmp_path / "nowhere", "no folder")
    refused(tmp_path, "no split in the layout")
    refused(yolo(tmp_path), "no split in the layout", layout="json")
    with pytest.raises(DataError, match="--image-size"):
        load(tmp_path, None)
    with pytest.raises(UsageError, match="from 16 to 8192"):
        load(tmp_path, 15)
    annotated(tmp_path, "train", categories=[{"id": 9, "name": "cow"}])
    refused(tmp_path, "differ in the names")


@pytest.mark.parametrize(("pack", "count", "classes"), [("coco", 12, 80), ("bccd", 4, 3)])
def test_both_layouts_of_real_packs_agree(pack, count, classes, shared):
    ours, theirs = (load(shared / pack, 320, layout=layout, most=count) for layout in ("yolo", "json"))
    assert ours.classes == theirs.classes
    assert len(ours.classes) == classes
    for one, other in ((ours, theirs), (ours.spare, theirs.spare)):
        assert len(one) == count
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.areas, other.areas)
        assert one.objects.shape == other.objects.shape
        a, b = pixels(one), pixels(other)
        assert torch.equal(a[:, :2].unique(dim=0), b[:, :2].unique(dim=0))
        assert matched(a, b) <= 1
        top, left, bottom, right = one.areas[a[:, 0].long()].T
        assert (a[:, 2] >= left - 0.01).all()
        assert (a[:, 3] >= top - 0.01).all()
        assert (a[:, 4] <= right + 0.01).all()
        assert (a[:, 5] <= bottom + 0.01).all()
    assert ours.objects.shape[1] == ours.spare.objects.shape[1]
    assert (
        max((ours.objects[..., 0] != EMPTY).sum(1).max(), (ours.spare.objects[..., 0] != EMPTY).sum(1).max())
        == (ours.objects.shape[1])
    )


def matched(a, b):
    """The largest distance in pixels from an object of one set to the nearest of its picture and class in the other."""
    apart = (a[:, None] - b[None]).abs()
    distance = apart[..., 2:].amax(-1) + 1e6 * apart[..., :2].sum(-1)
    return max(distance.min(0).values.max(), distance.min(1).values.max())


def test_the_nuclei_of_white_cells_lie_in_their_boxes(shared):
    """They are stained violet: more blue than green. In the mirrored pictures the same boxes miss most of them."""
    found = load(shared / "bccd", 320, most=10)
    violet = found.images[:, 2].float() - found.images[:, 1].float()
    inside, missed = [], []
    for number, kind, left, top, right, bottom in pixels(found).round().long().tolist():
        if found.classes[kind] == "WBC":
            above, before, below, behind = found.areas[number].tolist()
            usual = violet[number, above:below, before:behind].mean()
            inside.append(float(violet[number, top:bottom, left:right].mean() - usual))
            missed.append(float(violet[number].flip(-1)[top:bottom, left:right].mean() - usual))
    assert len(inside) >= 5
    assert min(inside) > 20
    assert np.median(missed) < 10
