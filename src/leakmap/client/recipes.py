"""Where the pictures of published tables come from, and whether files are those: nothing is fetched here."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from leakmap.capturing.files import read_npz
from leakmap.client.data import load_pictures
from leakmap.errors import DataError, UnknownName
from leakmap.files import written
from leakmap.registry.spec import near_misses

Kind = Literal["sha256", "md5", "array"]
_NPZ_LIMIT = 2**30


@dataclass(frozen=True)
class Expected:
    """A file, and what it must be.

    Args:
        name: Its name; of an array ``FILE.npz:NAME``.
        kind: SHA-256 of the file, MD5 where its publishers state only that, or SHA-256 of an array's bytes.
        digest: In hexadecimal.
    """

    name: str
    kind: Kind
    digest: str


@dataclass(frozen=True)
class Recipe:
    """How to obtain pictures.

    Args:
        name: Of the recipe.
        what: The pictures in a sentence.
        steps: What to do, a shell command or a sentence each.
        files: What there is then.
        source: How leakmap is told of them.
        make: Makes the last files out of what was obtained, given the folder and the file to write.
    """

    name: str
    what: str
    steps: tuple[str, ...]
    files: tuple[Expected, ...]
    source: str
    make: Callable[[str, Path], None] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Verified:
    """One file of a recipe.

    Args:
        name: Of the file.
        state: Whether it is what it must be.
    """

    name: str
    state: Literal["right", "missing", "wrong"]


FIRST_TEST, FIRST_OF_A_BATCH, BATCHES, A_BATCH = 846, 932, 4, 10_000
SUBSET = "cifar10_subset.npz"


def _subset(folder: str, path: Path) -> None:
    """The first pictures of CIFAR-10's test batch, and of four of its training batches, as ``npz:`` reads them."""
    from torchvision.datasets import CIFAR10

    try:
        test, train = (CIFAR10(folder, train=which) for which in (False, True))
    except (RuntimeError, OSError) as error:
        raise DataError(f"{folder} holds no CIFAR-10 ({' '.join(str(error).split())[:120]}); see its recipe.") from None
    kept = np.concatenate([np.arange(FIRST_OF_A_BATCH) + A_BATCH * batch for batch in range(BATCHES)])
    arrays = {
        "test_images": test.data[:FIRST_TEST],
        "test_labels": np.asarray(test.targets[:FIRST_TEST], dtype=np.int64),
        "train_images": train.data[kept],
        "train_labels": np.asarray(train.targets, dtype=np.int64)[kept],
        "class_names": np.asarray(test.classes),
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    written(path, write)


_RECIPES = (
    Recipe(
        "cifar10",
        "CIFAR-10: 10,000 test and 50,000 training pictures of 32 pixels, 10 classes.",
        (
            "curl -O https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "leakmap data recipe cifar10 --check .",
            "tar xf cifar-10-python.tar.gz",
        ),
        (
            Expected(
                "cifar-10-python.tar.gz", "sha256", "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
            ),
        ),
        "cifar10:.",
    ),
    Recipe(
        "cifar10-subset",
        "The 4,574 pictures of CIFAR-10 that most tables use: the first 846 of the test batch, and the first 932 of "
        "each of the training batches 1 to 4.",
        ("leakmap data recipe cifar10, and then:", f"leakmap data recipe cifar10-subset --make {SUBSET} --from ."),
        tuple(
            Expected(f"{SUBSET}:{name}", "array", digest)
            for name, digest in (
                ("test_images", "b5d7385b4cafad5e6cb253cef6faf8132d2239c0f01d2ba752dbd25b96a28195"),
                ("test_labels", "6b958d131170e0f89a941844d324d6ad4709e120bf4a6a139e4a2517d8ae4702"),
                ("train_images", "683f339c8e87e97103c57f3bf7208a27e790b125e815166225406aa05f9fed8b"),
                ("train_labels", "17e51cb8e1226baff9a70ec771b299ca06d1791e9982bc43512b2763d051a651"),
            )
        ),
        f"npz:{SUBSET}",
        _subset,
    ),
    Recipe(
        "pneumoniamnist",
        "PneumoniaMNIST of MedMNIST v2: 5,856 chest X-rays of 28 pixels, 2 classes.",
        ("curl -o pneumoniamnist.npz 'https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1'",),
        (Expected("pneumoniamnist.npz", "md5", "28209eda62fecd6e6a2d98b1501bb15f"),),
        "npz:pneumoniamnist.npz",
    ),
    Recipe(
        "pneumoniamnist-balanced",
        "The same with the class pneumonia thinned out to half of the pictures: 3,166, as the table of fitted inverses "
        "uses them. The file is in the repository aksufatih/snn-medmnist on GitHub at commit "
        "5df79ab2ac7bf898a8c7bf39830053619defa2f7.",
        ("Check out that commit and copy its pneumoniamnist.npz as pneumoniamnist_balanced.npz.",),
        (
            Expected(
                "pneumoniamnist_balanced.npz",
                "sha256",
                "f36c2b3e34de9d60c5c734118bc6daff281eaf76b67a57d26ad958da948274b0",
            ),
        ),
        "npz:pneumoniamnist_balanced.npz",
    ),
    Recipe(
        "imagenette",
        "Imagenette v2 at 160 pixels: 13,394 pictures of ten classes of ImageNet.",
        (
            "curl -O https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",
            "leakmap data recipe imagenette --check .",
            "tar xf imagenette2-160.tgz",
        ),
        (Expected("imagenette2-160.tgz", "md5", "e793b78cc4c9e9a4ccc0c1155377a412"),),
        "folder:imagenette2-160/val",
    ),
    Recipe(
        "coco",
        "COCO val2017: 5,000 pictures with objects of 80 classes.",
        (
            "curl -O http://images.cocodataset.org/zips/val2017.zip",
            "curl -O http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
            "leakmap data recipe coco --check .",
            "unzip -q val2017.zip && unzip -q annotations_trainval2017.zip annotations/instances_val2017.json",
        ),
        (
            Expected("val2017.zip", "sha256", "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
            Expected(
                "annotations_trainval2017.zip",
                "sha256",
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            ),
        ),
        "coco:.",
    ),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}


def recipe_of(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        UnknownName: there is none.
    """
    if name not in RECIPES:
        raise UnknownName(f"There is no recipe {name!r}; {near_misses(name, RECIPES)}")
    return RECIPES[name]


def verify(recipe: Recipe, folder: Path | str) -> Iterator[Verified]:
    """Whether the files in a folder are those of a recipe, one after the other."""
    for one in recipe.files:
        name, _, array = one.name.partition(":")
        path = Path(folder) / name
        if not path.is_file():
            yield Verified(one.name, "missing")
        else:
            found = _array_digest(path, array) if one.kind == "array" else _digest(path, one.kind)
            yield Verified(one.name, "right" if found == one.digest else "wrong")


def make(recipe: Recipe, folder: Path | str, path: Path | str) -> None:
    """Makes the file of a recipe out of what another one obtained.

    Args:
        recipe: One that makes something.
        folder: Where that lies.
        path: The file to write.

    Raises:
        DataError: the recipe makes nothing, or the folder holds something else.
    """
    if recipe.make is None:
        raise DataError(f"The recipe {recipe.name} makes no file; its files are downloaded as they are.")
    recipe.make(str(folder), Path(path))
    load_pictures(f"npz:{path}")


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _array_digest(path: Path, name: str) -> str:
    try:
        found = read_npz(path, _NPZ_LIMIT)[name]
    except Exception:  # whatever a file that is none ends in
        return ""
    return hashlib.sha256(np.ascontiguousarray(torch.as_tensor(found).numpy()).tobytes()).hexdigest()
