"""Recipes of data: what they say is checked against files, and what is another file is seen."""

import hashlib

import pytest

from leakmap.client.recipes import RECIPES, Expected, Recipe, recipe_of, verify
from leakmap.errors import UnknownName


def test_files_are_told_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"pictures")
    (tmp_path / "b").write_bytes(b"others")
    right = hashlib.sha256(b"pictures").hexdigest()
    expected = tuple(Expected(name, "sha256", right) for name in ("a", "b", "c"))
    expected += (Expected("a", "md5", hashlib.md5(b"pictures").hexdigest()), Expected("a:images", "array", right))
    found = [one.state for one in verify(Recipe("mine", "", (), expected, ""), tmp_path)]
    assert found == ["right", "wrong", "missing", "right", "wrong"]
    with pytest.raises(UnknownName, match="cifar10"):
        recipe_of("cifar-10")


def test_the_arrays_of_the_subset_are_those_that_tables_were_measured_on(shared):
    assert {one.state for one in verify(RECIPES["cifar10-subset"], shared / "cifar10")} == {"right"}
    assert {one.state for one in verify(RECIPES["pneumoniamnist-balanced"], shared / "pneumoniamnist")} == {"right"}
