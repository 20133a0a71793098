"""Sources and the division into disjoint groups."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from leakmap import memory
from leakmap.client import REHEARSED
from leakmap.client.data import Pictures, distinct, folder, load_pictures
from leakmap.client.groups import LINE_UP, MEMBERS, MOST_BYTES, MOST_PUBLIC, divide
from leakmap.errors import BadSetting, DataError, UnknownName, UsageError


def random_images(count, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_samples_are_real_and_repeatable():
    first, second = load_pictures("samples"), load_pictures("samples")
    assert torch.equal(first.images, second.images)
    assert first.images.shape[1:] == (3, 32, 32)
    assert len(first) >= 300
    assert torch.bincount(first.labels).min() >= 15
    assert load_pictures("samples", 48).images.shape[1:] == (3, 48, 48)


def test_npz_with_a_spare_set_and_grey_conversion(tmp_path):
    arrays = {"test_images": random_images(8), "test_labels": np.arange(8) % 2}
    np.savez(tmp_path / "a.npz", train_images=random_images(5, seed=1), train_labels=np.zeros((5, 1), int), **arrays)
    found = load_pictures(f"npz:{tmp_path / 'a.npz'}")
    assert found.images.shape == (8, 3, 16, 16)
    assert len(found.spare) == 5
    assert np.array_equal(found.images[0].permute(1, 2, 0), arrays["test_images"][0])
    assert load_pictures(f"npz:{tmp_path / 'a.npz'},channels=1", 20).images.shape == (8, 1, 20, 20)


def test_floats_are_read_exactly_beside_numbers_as_labels_and_take_memory_as_floats(tmp_path, monkeypatch):
    units = np.random.default_rng(0).uniform(-1024, 3071, (6, 20, 20)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=units, labels=np.linspace(0, 1, 12).reshape(6, 2))
    source = f"npz:{tmp_path / 'a.npz'},low=-1024,high=3071"
    found = load_pictures(source)
    assert np.allclose(found.exact[:, 0] * 4095 - 1024, units, atol=1e-3)
    assert torch.equal(found.images, (found.exact * 255).round().byte())
    assert found.values[1].tolist() == pytest.approx([2 / 11, 3 / 11])
    monkeypatch.setattr(memory, "free_memory", lambda: 2**22)  # enough for bytes
    with pytest.raises(UsageError, match=r"6 pictures of 300x300 take"):
        load_pictures(source, 300)


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"pixels": random_images(3)}, "pixels"),
        (
            {"images": random_images(3).astype(float), "labels": np.zeros(3, int)},
            "from .* expected 0 to 1",
        ),
        ({"images": random_images(3).astype(complex), "labels": np.zeros(3, int)}, "complex128"),
        ({"images": random_images(3), "labels": np.zeros(2, int)}, "labels"),
        ({"images": random_images(3), "labels": np.array(["a", "b", "c"])}, "labels"),
        ({"images": random_images(3), "labels": np.array([object()] * 3)}, "cannot be read"),
        ({"images": random_images(3, side=8), "labels": np.zeros(3, int)}, "16x16"),
    ],
)
def test_a_wrong_npz_gives_one_sentence(arrays, word, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=word) as error:
        load_pictures(f"npz:{tmp_path / 'a.npz'}")
    assert "\n" not in str(error.value)


def test_damaged_files_give_one_sentence(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(DataError, match="cannot be read"):
        load_pictures(f"npz:{tmp_path / 'a.npz'}")
    with pytest.raises(DataError, match="no file"):
        load_pictures("npz:nowhere.npz")
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
    (tmp_path / "d" / "a" / "x.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="x.png"):
        load_pictures(f"folder:{tmp_path / 'd'}")


def test_folders_of_png_and_jpeg_grey_and_rgb(tmp_path):
    for i, image in enumerate(random_images(6, side=24)):
        directory = tmp_path / ("cat" if i % 2 else "dog")
        directory.mkdir(exist_ok=True)
        Image.fromarray(image).save(directory / f"{i}.{'png' if i < 4 else 'jpg'}")
    found = load_pictures(f"folder:{tmp_path}", 16)
    assert found.images.shape == (6, 3, 16, 16)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for file in tmp_path.rglob("*.*"):
        Image.open(file).convert("L").save(file)
    assert load_pictures(f"folder:{tmp_path}").images.shape == (6, 3, 24, 24)
    assert load_pictures(f"folder:{tmp_path},channels=1").images.shape[1] == 1
    Image.fromarray(random_images(1, side=30)[0]).save(tmp_path / "cat" / "odd.png")
    with pytest.raises(DataError, match="--image-size"):
        load_pictures(f"folder:{tmp_path}")


def test_cifar10_is_never_fetched_unasked(tmp_path):
    with pytest.raises(DataError, match="download=true"):
        load_pictures(f"cifar10:{tmp_path}")


def test_unknown_sources_and_settings_have_near_misses():
    with pytest.raises(UnknownName, match="samples"):
        load_pictures("sample")
    with pytest.raises(BadSetting, match="channels"):
        load_pictures("folder:x,channel=3")


def test_exact_duplicates_are_dropped_also_across_the_two_sets():
    images = torch.from_numpy(random_images(4)).permute(0, 3, 1, 2)
    spare = Pictures(images[[1, 3]], torch.zeros(2).long(), ("a",))
    found = distinct(Pictures(images[[0, 1, 0]], torch.zeros(3).long(), ("a",), spare))
    assert (len(found), len(found.spare)) == (2, 1)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(30, 400),
    spare=st.integers(0, 200),
    victims=st.integers(1, 12),
    batch=st.integers(1, 4),
    public=st.integers(0, 40) | st.just("auto"),
    training=st.booleans(),
    seed=st.integers(0, 5),
)
def test_no_picture_is_in_two_groups(count, spare, victims, batch, public, training, seed):
    labels = torch.arange(count) % 5
    images = torch.zeros(count, 1, 16, 16, dtype=torch.uint8)
    extra = Pictures(torch.ones(spare, 1, 16, 16, dtype=torch.uint8), torch.arange(spare) % 5, ()) if spare else None
    pictures = Pictures(images, labels, tuple("abcde"), extra)
    try:
        groups = divide(pictures, victims=victims, batch_size=batch, public=public, training=training, seed=seed)
    except DataError as error:
        assert "few" in str(error) or "train" in str(error)
        return
    everything = torch.cat([getattr(groups, name).flatten() for name in MEMBERS])
    assert len(everything.unique()) == len(everything)
    assert groups.victims.shape == (victims, batch)
    assert public == "auto" or len(groups.public) == public
    assert len(groups.distractors) >= 19
    if spare:
        assert (groups.images[groups.known] == 1).all()
        assert (groups.images[groups.victims] == 0).all()


@pytest.mark.parametrize("spare", [0, 900])
@pytest.mark.parametrize("training", [False, True])
def test_automatic_public_pictures_leave_what_line_ups_take_and_what_is_rehearsed_on(spare, training):
    def pictures(count, value, spare=None):
        images = torch.full((count, 1, 16, 16), value, dtype=torch.uint8)
        return Pictures(images, torch.arange(count) % 5, tuple("abcde"), spare)

    source = pictures(1500, 0, pictures(spare, 1) if spare else None)
    how = {"victims": 9, "batch_size": 2, "training": training}
    found, without = (divide(source, public=public, **how) for public in ("auto", 0))
    assert len(found.public) > 200
    assert torch.equal(*(torch.cat([g.victims.flatten(), g.swaps.flatten()]) for g in (found, without)))
    for groups in (found, without):
        of_class = torch.bincount(groups.labels[groups.distractors], minlength=5)
        assert (of_class >= LINE_UP).all() or (training and not spare)
    if training and spare:
        assert abs(len(found.public) - len(found.training)) <= 1
    again, tuned = divide(source, public=len(found.public), **how), divide(source, public="auto", rehearsals=4, **how)
    assert again.digest == found.digest
    assert len(tuned.public) == len(found.public)
    assert training or len(tuned.distractors) >= len(found.distractors) - REHEARSED * 2


def test_automatic_public_pictures_have_a_largest_number_and_a_largest_size():
    few = Pictures(torch.zeros(400, 3, 1, 1, dtype=torch.uint8), torch.arange(400) % 5, tuple("abcde"))
    for side, most in ((1, MOST_PUBLIC), (128, MOST_BYTES // (4 * 3 * 128**2))):
        source = replace(few, images=torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(400, -1, -1, -1))
        many = source.only([0] * (MOST_PUBLIC + 9))
        groups = divide(replace(source, elsewhere=many), victims=9, batch_size=1, public="auto")
        assert len(groups.public) == most
    with pytest.raises(DataError, match="5000 public pictures are granted, and 4009 of other photographs are there"):
        divide(replace(few, elsewhere=few.only([0] * (MOST_PUBLIC + 9))), victims=9, batch_size=1, public=5000)
    objects = replace(few, objects=torch.zeros(400, 1, 5, dtype=torch.int64))
    assert not len(divide(objects, victims=9, batch_size=1, public="auto").public)


def test_swapped_pictures_have_the_victims_labels_while_any_are_left():
    pictures = load_pictures("samples")
    groups = divide(pictures, victims=12, batch_size=2)
    for swap in groups.swaps:
        assert torch.equal(groups.labels[swap], groups.labels[groups.victims])


def test_different_seeds_choose_different_victims():
    pictures = load_pictures("samples")
    assert not torch.equal(*(divide(pictures, victims=6, batch_size=1, seed=s).victims for s in (0, 1)))


@pytest.mark.parametrize("spare", [0, 40])
@pytest.mark.parametrize(("training", "rehearsals"), [(False, 0), (True, 0), (False, 10), (True, 4)])
def test_too_few_pictures_name_the_largest_number_of_clients_that_fits(spare, training, rehearsals):
    def pictures(count, spare=None):
        return Pictures(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), torch.arange(count) % 5, tuple("abcde"), spare)

    source = pictures(400, pictures(spare) if spare else None)
    how = {"batch_size": 4, "training": training, "rehearsals": rehearsals}
    with pytest.raises(DataError, match=r"Give --victims \d+ or fewer") as error:
        divide(source, victims=100, **how)
    most = int(re.search(r"--victims (\d+)", str(error.value))[1])
    divide(source, victims=most, **how)
    with pytest.raises(DataError):
        divide(source, victims=most + 1, **how)


def class_folders(root, count=6):
    for number, picture in enumerate(random_images(count)):
        folder = root / ("cat", "dog")[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number}.png")
    return root


def test_what_lies_beside_pictures_is_left_out_or_refused_in_a_sentence(tmp_path, caplog):
    root = class_folders(tmp_path)
    (root / "cat" / "._0.png").write_bytes(b"macOS")
    (root / "cat" / "folder.png").mkdir()
    (root / "dog" / "copy.png").write_bytes((root / "cat" / "0.png").read_bytes())
    assert len(load_pictures(f"folder:{root}")) == 6
    assert "two classes: 1, such as one in 'cat' and in 'dog'" in caplog.text
    with pytest.raises(BadSetting, match="'most'"):
        load_pictures(f"folder:{root},most=0")
    os.mkfifo(root / "cat" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png is no file"):
        load_pictures(f"folder:{root}")


def test_pictures_that_memory_cannot_hold_are_refused_after_the_first(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(folder, "read_picture", lambda file: read.append(file) or torch.zeros(3, 4000, 4000).byte())
    monkeypatch.setattr(memory, "free_memory", lambda: 2**29)
    with pytest.raises(UsageError, match=r"6 pictures of 4000x4000 take 1\.2 GB of memory, and 0\.5 GB are free"):
        load_pictures(f"folder:{class_folders(tmp_path)}")
    assert len(read) == 1


def test_arrays_in_files_of_their_own_are_the_same_pictures_and_pickles_are_refused(tmp_path):
    pictures, labels = np.random.default_rng(0).random((6, 16, 16, 3)), np.arange(6) % 3
    np.savez(tmp_path / "a.npz", images=pictures, labels=labels)
    np.save(tmp_path / "x.npy", pictures)
    np.save(tmp_path / "y.npy", labels)
    whole, found = (
        load_pictures(s) for s in (f"npz:{tmp_path}/a.npz", f"npy:{tmp_path}/x.npy,labels={tmp_path}/y.npy")
    )
    assert torch.equal(found.exact, whole.exact)
    assert torch.equal(found.labels, whole.labels)
    np.save(tmp_path / "y.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects, which are never read"):
        load_pictures(f"npy:{tmp_path}/x.npy,labels={tmp_path}/y.npy")
    with pytest.raises(DataError, match="x.npy comes without labels"):
        load_pictures(f"npy:{tmp_path}/x.npy")
