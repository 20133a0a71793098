"""Where pictures come from: one source per file.

A source is written ``NAME`` or, where it takes a path, ``NAME:PATH``. Its constructor takes the wanted image size
(None: as they are), then the path if there is one, and returns :class:`Pictures`.
"""

import hashlib
import logging
import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from leakmap.errors import DataError
from leakmap.memory import check_fits
from leakmap.registry.registry import Registry
from leakmap.registry.spec import Spec

SMALLEST = 16
"""Pictures below 16 pixels a side are refused: SSIM takes an 11-pixel window, and a line-up needs detail."""
LARGEST = 8192
MOST_CLASSES = 10**5
COPIES = 4
"""Bytes of memory for a byte of pictures: read one by one, stacked, without repetitions, and in groups."""
_log = logging.getLogger("leakmap")


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures of one size.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64; of pictures with objects, or of no class, all 0: line-ups mix them.
        classes: Their names; of pictures with objects those of the objects.
        spare: A second set from the same source, such as a training split: public pictures and training come from it.
        elsewhere: Pictures from other photographs, for the attacker alone: where a source cuts many pictures out of few
            photographs, its public pictures come from here and from nowhere else.
        objects: ``(N, M, 5)`` int64, see :mod:`leakmap.problem.objects`; None for classification.
        exact: ``(N, C, H, W)`` float32 in [0, 1]: the same where they are finer than 8 bits, as the client had them,
            else None. Pictures are scored and compared with 8 bits.
        areas: ``(N, 4)`` int64: top, left, bottom and right of the picture between letterbox bars; None without bars.
        values: Labels that are no class from 0 on: real numbers ``(N,)``, several ``(N, K)``, one of each pixel
            ``(N, H, W)``; see :mod:`leakmap.client.targets`. None where ``labels`` say all.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    spare: "Pictures | None" = None
    objects: Tensor | None = None
    areas: Tensor | None = None
    elsewhere: "Pictures | None" = None
    values: Tensor | None = None
    exact: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def only(self, index: Tensor | list[int]) -> "Pictures":
        """The same with these pictures alone, beside the whole other sets.

        Args:
            index: Positions, or ``(N,)`` bool.
        """
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            objects=None if self.objects is None else self.objects[index],
            areas=None if self.areas is None else self.areas[index],
            values=None if self.values is None else self.values[index],
            exact=None if self.exact is None else self.exact[index],
        )

    @property
    def floats(self) -> Tensor:
        """The pictures in [0, 1], as exactly as they are known."""
        return self.images.float() / 255 if self.exact is None else self.exact


sources: Registry[Pictures] = Registry("data", __name__)


def holds_objects(spec: Spec | str) -> bool:
    """Whether a source gives pictures with objects, as its file says.

    Raises:
        UnknownName: there is no such source.
    """
    return sources.of_objects(Spec.parse(spec).name)


def load_pictures(spec: Spec | str, size: int | None = None) -> Pictures:
    """Loads a source, without exact duplicates (a distractor equal to the truth would spoil a line-up).

    Args:
        spec: ``NAME[:PATH][,key=value…]``.
        size: Height and width to bring the pictures to: centre crop to a square, then resize. None keeps them.

    Raises:
        DataError: the pictures cannot be read, are too small, or differ in shape.
    """
    spec = Spec.parse(spec)
    if size is not None and not SMALLEST <= size <= LARGEST:
        raise DataError(f"An image size from {SMALLEST} to {LARGEST} is needed; got {size}.")
    try:
        found = sources.build(spec, size)
    except (OSError, RuntimeError) as error:  # what a path alone can do: too long, not permitted, ~ of nobody
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{reprlib.repr(str(spec))} cannot be read: {reason[:200]}.") from error
    return usable(found, str(spec))


def usable(pictures: Pictures, where: str) -> Pictures:
    """The same pictures without exact duplicates, if they are large enough.

    Raises:
        DataError: they are not; the message names ``where``.
    """
    height, width = pictures.images.shape[-2:]
    if min(height, width) < SMALLEST:
        raise DataError(
            f"{where} has pictures of {height}x{width}; at least {SMALLEST}x{SMALLEST} is needed: give an image size."
        )
    return distinct(pictures)


def check_room(count: int, shape: Sequence[int], width: int = 1) -> None:
    """Refuses pictures that together do not fit into memory, before they are read.

    Args:
        count: How many.
        shape: ``(C, H, W)`` of each.
        width: Bytes of a value: 1 of uint8, 4 of the floats that finer pictures are held in.

    Raises:
        UsageError: they do not fit.
    """
    what = f"{count} pictures of {shape[-2]}x{shape[-1]} take"
    check_fits(COPIES * width * count * math.prod(shape), what, "give a smaller --image-size, or fewer pictures")


def distinct(pictures: Pictures, seen: dict[bytes, str] | None = None) -> Pictures:
    """The same pictures without exact repetitions, also across the sets; an empty set is none.

    Of a picture that stands in two classes the first one counts, which is said in the log.
    """
    seen = {} if seen is None else seen
    known = len(seen)
    keep: list[int] = []
    torn: list[tuple[str, str]] = []
    for i, image in enumerate(pictures.images if pictures.exact is None else pictures.exact):
        digest = hashlib.sha256(image.numpy().tobytes()).digest()
        name = pictures.classes[int(pictures.labels[i])]
        if (first := seen.setdefault(digest, name)) != name:
            torn.append((first, name))
        if len(seen) > len(keep) + known:
            keep.append(i)
    if torn:
        first, second = torn[0]
        _log.warning(
            "Pictures that stand in two classes: %d, such as one in %r and in %r; each is taken once, in the first.",
            *(len(torn), first, second),
        )
    spare = None if pictures.spare is None else distinct(pictures.spare, seen)
    elsewhere = None if pictures.elsewhere is None else distinct(pictures.elsewhere, seen)
    return replace(pictures.only(keep), spare=spare or None, elsewhere=elsewhere or None)


def noise(count: int, side: int) -> np.ndarray:
    """``(count, side, side, 3)`` uint8, the same in every call: what the examples of sources write to files."""
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def square(images: Tensor, size: int | None) -> Tensor:
    """Centre crop of ``(…, H, W)`` to a square and antialiased resize to ``size``; unchanged for None.

    Of uint8 the result is rounded to uint8; floats stay as they are.
    """
    if size is None or tuple(images.shape[-2:]) == (size, size):
        return images
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cropped = images[..., top : top + side, left : left + side]
    flat = cropped.reshape(-1, 1, side, side).float()
    resized = F.interpolate(flat, size=(size, size), mode="bilinear", antialias=True)
    if images.dtype == torch.uint8:
        resized = resized.round().clamp(0, 255).to(torch.uint8)
    return resized.reshape(*images.shape[:-2], size, size)


def eight_bits(exact: Tensor) -> Tensor:
    """Pictures in [0, 1] as uint8."""
    return (exact * 255).round().to(torch.uint8)


def to_channels(images: Tensor, channels: int | None) -> Tensor:
    """``(N, C, H, W)`` with C brought to 1 (by luminance) or 3 (by repetition); unchanged for None."""
    have = images.shape[1]
    if channels is None or have == channels:
        return images
    if channels == 3 and have == 1:
        return images.repeat(1, 3, 1, 1)
    if channels == 1 and have == 3:
        luminance = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        grey = (images * luminance).sum(1, keepdim=True)
        return grey.round().to(torch.uint8) if images.dtype == torch.uint8 else grey.clamp(0, 1)
    raise DataError(f"Pictures with {have} channels cannot be brought to {channels}; channels is 1 or 3.")
