"""Every registered data source: what it gives, and what a path can do to it."""

import pytest
import torch

from leakmap.client.data import load_pictures, sources
from leakmap.errors import DataError
from tests.contract.examples import examples, installed, specification

WITH_PATHS = [name for name in sources.names() if name.endswith(":")]


@pytest.fixture(params=examples(sources))
def source(request, tmp_path) -> tuple[str, str]:
    name, example = request.param
    return name, specification(example, tmp_path)


def test_pictures_are_bytes_of_the_wanted_size_with_labels_in_range_and_no_two_alike(source):
    name, text = source
    for size in (32, 40):
        with installed():
            found = load_pictures(text, size)
        for part in filter(None, (found, found.spare)):
            count = len(part)
            assert part.images.shape == (count, part.images.shape[1], size, size)
            assert part.images.shape[1:] == found.images.shape[1:]
            assert part.images.dtype == torch.uint8
            assert part.labels.shape == (count,)
            assert part.labels.dtype == torch.int64
            assert 0 <= part.labels.min() <= part.labels.max() < len(part.classes)
            assert part.classes == found.classes
            assert (part.objects is not None) == sources.of_objects(name)
            if part.objects is not None:
                assert part.objects.shape == (count, part.objects.shape[1], 5)
                assert part.objects[..., 0].max() < len(part.classes)
        everything = torch.cat([part.images for part in filter(None, (found, found.spare))])
        assert len(everything.flatten(1).unique(dim=0)) == len(everything)
        assert found.images.shape[1] in (1, 3)


def test_a_second_reading_gives_the_same(source):
    with installed():
        first, second = (load_pictures(source[1], 32) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


@pytest.mark.parametrize("name", WITH_PATHS)
def test_a_path_to_nothing_usable_ends_in_one_sentence(name, tmp_path):
    (tmp_path / "garbage").write_bytes(b"\x93NUMPY\0" * 50)
    for number, parts in enumerate(("empty", "a/x.png", "b/x.png", "images/val/0.png", "labels/val/0.txt")):
        file = tmp_path / "folder" / parts
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no picture" * number)
    hostile = ("absent", "garbage", "folder", "garbage/below", "a\0b", "\udcff", "x" * 5000)
    for path in (*(str(tmp_path / part) for part in hostile), "/dev/null", "~nobody-of-that-name/x"):
        with pytest.raises(DataError) as error:
            load_pictures(f"{name}{path}", 32)
        assert "\n" not in str(error.value), path
