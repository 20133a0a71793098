"""Near copies: found, not confused with pictures that are alike, and kept out of the groups."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from leakmap.client.copies import CLOSE, Merged, families, nearest_public
from leakmap.client.data import Pictures, load_pictures
from leakmap.client.groups import divide
from leakmap.errors import DataError


@pytest.fixture(scope="module")
def samples() -> Pictures:
    return load_pictures("samples")


def each(change):
    """A change of one picture, applied to many ``(N, C, H, W)``."""

    def changed(images: torch.Tensor) -> torch.Tensor:
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        return torch.stack([torch.from_numpy(np.array(change(one))).permute(2, 0, 1) for one in pictures])

    return changed


def jpeg(picture: Image.Image, quality: int = 75) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


COPIES = {
    "JPEG": each(lambda one: jpeg(one, 50)),
    "mirrored JPEG": lambda images: each(jpeg)(images.flip(-1)),
    "resized": each(lambda one: one.resize((24, 24)).resize((32, 32))),
    "cropped": each(lambda one: one.resize((32, 32), Image.Resampling.BILINEAR, box=(1.2, 0.3, 31.6, 30.7))),
    "brighter": lambda images: (images * 1.2).clamp(max=255).to(torch.uint8),
    "less contrast, gamma": lambda images: (255 * (images / 255 * 0.6 + 0.2) ** 1.3).to(torch.uint8),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_of_one_family_and_different_pictures_are_not(samples, kind):
    images = samples.images[::2]
    count = len(images)
    found = families(torch.cat([images, COPIES[kind](images)]))
    assert torch.equal(found[:count], torch.arange(count))
    assert (found[count:] == torch.arange(count)).float().mean() > 0.95


def test_many_copies_of_one_picture_are_one_family_and_flat_pictures_none(samples):
    shades = torch.linspace(0.7, 1, 60).view(-1, 1, 1, 1)
    copies, flat = samples.images[:1] * shades, torch.full((4, 3, 32, 32), 90)
    found = families(torch.cat([flat, copies, flat]).to(torch.uint8))
    assert found.tolist() == [0, 1, 2, 3, *[4] * 60, 64, 65, 66, 67]


def test_x_rays_of_different_patients_are_no_copies(shared):
    with np.load(shared / "pneumoniamnist" / "pneumoniamnist_balanced.npz") as arrays:
        images = torch.from_numpy(np.unique(arrays["train_images"], axis=0)[:600, None])
    assert torch.equal(families(images), torch.arange(len(images)))


def test_the_real_copies_inside_cifar10_are_found(shared):
    pictures = load_pictures(f"npz:{shared / 'cifar10' / 'cifar10_subset.npz'}")
    found = families(torch.cat([pictures.images, pictures.spare.images]))
    copies = (found != torch.arange(len(found))).nonzero().flatten()
    assert len(copies) == 5


@pytest.mark.parametrize("sought", [False, True])
def test_no_victim_has_a_copy_in_another_group(samples, tmp_path, monkeypatch, sought):
    if not sought:
        monkeypatch.setattr("leakmap.client.groups.MOST", 0)
    for i, image in enumerate(samples.images[::3]):
        directory = tmp_path / "ab"[i % 2]
        directory.mkdir(exist_ok=True)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(directory / f"{i}.png")
        picture.save(directory / f"{i}.jpg", quality=95, subsampling=0)
    groups = divide(load_pictures(f"folder:{tmp_path}"), victims=12, batch_size=1, public=35)
    others = torch.ones(len(groups.images), dtype=torch.bool)
    others[groups.victims] = False
    _, near = nearest_public(groups.images[groups.victims[:, 0]], groups.images[others])
    _, flagged = groups.nearest
    assert ((near > CLOSE).any(), (flagged > CLOSE).any()) == (not sought, not sought)
    assert groups.merged == (Merged(120, 120) if sought else None)


def test_without_copies_the_groups_are_the_same(samples, monkeypatch):
    samples = replace(samples, elsewhere=None)
    on = divide(samples, victims=12, batch_size=1)
    monkeypatch.setattr("leakmap.client.groups.MOST", len(samples) - 1)
    off = divide(samples, victims=12, batch_size=1)
    assert (on.digest, on.merged, off.merged) == (off.digest, Merged(0, 0), None)


def test_given_victims_all_stay_and_copies_of_them_go(samples):
    own, others = samples.images[:3], samples.images[3:200]
    images = torch.cat([own, own[:1].flip(-1), others, COPIES["JPEG"](own[1:])])
    pictures = Pictures(images, torch.zeros(len(images)).long(), ("a",))
    groups = divide(pictures, victims=2, batch_size=2, given=True)
    assert torch.equal(groups.images[groups.victims.flatten()], images[:4])
    assert groups.merged == Merged(3, 2)


def test_public_pictures_of_other_photographs_are_no_copies_of_the_clients(samples):
    assert samples.elsewhere is not None
    copied = torch.cat([COPIES["JPEG"](samples.images[:40]), samples.elsewhere.images])
    elsewhere = Pictures(copied, torch.arange(len(copied)) % 8, samples.classes)
    groups = divide(replace(samples, elsewhere=elsewhere), victims=12, batch_size=1, public="auto")
    assert groups.elsewhere
    assert len(groups.public) == len(divide(samples, victims=12, batch_size=1, public="auto").public)
    assert (nearest_public(samples.images, groups.images[groups.public])[1] < CLOSE).all()


def test_the_nearest_picture_is_the_one_with_the_least_squared_error(samples):
    victims, public = samples.images[::9], samples.images[1::2]
    errors = (victims[:, None].double() - public[None].double()).square().mean((2, 3, 4))
    place, psnr = nearest_public(victims, public)
    assert torch.equal(place, errors.argmin(1))
    assert torch.allclose(psnr, -10 * (errors.min(1).values / 255**2).clamp(min=1e-6).log10())


def test_a_spare_set_of_copies_is_none(samples):
    spare = Pictures(samples.images.flip(-1), samples.labels, samples.classes)
    groups = divide(replace(samples, spare=spare), victims=12, batch_size=1)
    assert groups.digest == divide(samples, victims=12, batch_size=1).digest
    few = replace(samples.only(list(range(30))), spare=spare)
    with pytest.raises(DataError, match="near copies are left out"):
        divide(few, victims=12, batch_size=1)
