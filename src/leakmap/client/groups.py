"""Who is who among the pictures: groups that share no picture, by construction."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from leakmap.client import REHEARSED
from leakmap.client.copies import MOST, Merged, nearest_public, without_copies
from leakmap.client.data import Pictures
from leakmap.errors import DataError
from leakmap.seeds import generator

CONTROLS = 6
"""Pictures for the planted positive control."""
REFERENCE = 32
"""Pictures of the auditor, for floors, normalization, calibration and accuracy; the attacker does not get them."""
MOST_PUBLIC = 4000
"""Public pictures that ``auto`` grants at most: so many of 32 pixels are 49 MB as floats, and an attack is fitted to
them in minutes."""
MOST_BYTES = 2**28
"""Bytes of public pictures, as floats, that ``auto`` grants at most, as every process that fits an attack holds them
twice: 4,000 pictures of up to 74 pixels a side in three channels, 445 of 224."""
FEWEST_DISTRACTORS = 19
MOST_OF_A_CLASS = 400
"""Distractors kept of each class: enough for four line-ups of a class that share none."""
LINE_UP = 100
"""Distractors that ``auto`` leaves, in all and of each class that has line-ups of its own: all candidates of one."""
FEWEST_OF_A_CLASS = 4
"""Distractors of a class below which its pictures stand among those of all classes."""
MEMBERS = ("victims", "swaps", "controls", "reference", "public", "training", "rehearsals", "distractors")
_NONE = torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class Groups:
    """Disjoint index sets into one pool of pictures.

    Args:
        images: The pool, ``(N, C, H, W)`` uint8.
        labels: ``(N,)``.
        classes: Their names.
        victims: ``(V, B)``: one row a client.
        swaps: ``(2, V, B)``: other pictures with the labels of the victims, where such are left, for null audits.
        controls: ``(K, 1)``: clients of the planted positive control.
        reference: ``(F,)``: the auditor's own, for floors, normalization, calibration and accuracy.
        public: ``(P,)``: the attacker's.
        training: ``(T,)``: for briefly trained weights.
        rehearsals: ``(R, B)``: simulated clients on which settings are tuned, one row a client.
        distractors: ``(D,)``: for line-ups.
        objects: ``(N, M, 5)`` targets of detection, see :mod:`leakmap.problem.objects`; empty for classification.
        areas: ``(N, 4)``: top, left, bottom and right between letterbox bars; empty without bars.
        merged: What leaving out near copies did; None where they were not looked for.
        elsewhere: Whether the public pictures come from other photographs than all others.
        values: ``(N, ...)`` targets of tasks without classes, see :mod:`leakmap.problem.targets`; empty for others.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    victims: Tensor
    swaps: Tensor
    controls: Tensor
    reference: Tensor
    public: Tensor
    training: Tensor
    rehearsals: Tensor
    distractors: Tensor
    objects: Tensor = _NONE
    areas: Tensor = _NONE
    merged: Merged | None = None
    elsewhere: bool = False
    values: Tensor = _NONE

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all pictures and of who is who."""
        tensors = [self.images, self.labels, *(getattr(self, name) for name in MEMBERS)]
        tensors += [tensor for tensor in (self.objects, self.areas, self.values) if tensor.numel()]
        digest = hashlib.sha256("\x1f".join([*self.classes, *(str(tuple(t.shape)) for t in tensors)]).encode())
        for tensor in tensors:
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def training_digest(self) -> str:
        """SHA-256 of the pictures and labels that weights are trained on."""
        digest = hashlib.sha256(self.images[self.training].numpy().tobytes())
        digest.update(self.targets(self.training).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def reference_digest(self) -> str:
        """SHA-256 of the reference pictures."""
        return hashlib.sha256(self.images[self.reference].numpy().tobytes()).hexdigest()

    @cached_property
    def known(self) -> Tensor:
        """``(F + P,)``: what still floors are made of; the attacker knows the public ones."""
        return torch.cat([self.reference, self.public])

    @cached_property
    def nearest(self) -> tuple[Tensor, Tensor]:
        """Of each victim ``(V, B)`` the nearest of the known pictures, as an index, and its PSNR in dB."""
        place, psnr = nearest_public(self.images[self.victims.flatten()], self.images[self.known])
        return self.known[place].view_as(self.victims), psnr.view_as(self.victims)

    @cached_property
    def mean_picture(self) -> Tensor:
        """``(C, H, W)`` in [0, 1]: the mean of the known pictures."""
        sums = [self.images[part].sum(0, dtype=torch.int64) for part in self.known.split(256)]
        return (torch.stack(sums).sum(0).double() / (255 * len(self.known))).float()

    def counts(self) -> dict[str, int]:
        """How many pictures each group holds."""
        return {name: getattr(self, name).numel() for name in MEMBERS}

    def pictures(self, index: Tensor) -> Tensor:
        """The pictures of a group as floats in [0, 1], ``(*index.shape, C, H, W)``."""
        return self.images[index].float() / 255

    def targets(self, index: Tensor) -> Tensor:
        """What a group is labelled with: classes ``index.shape``, objects ``(*index.shape, M, 5)``, or values."""
        return next((one for one in (self.objects, self.values) if one.numel()), self.labels)[index]

    def digests(self, index: Tensor) -> list[str]:
        """SHA-256 of each picture of a group: pictures are told apart without being shown."""
        return [hashlib.sha256(self.images[i].numpy().tobytes()).hexdigest() for i in index.flatten().tolist()]


def divide(
    pictures: Pictures,
    *,
    victims: int,
    batch_size: int,
    public: int | Literal["auto"] = 0,
    training: bool = False,
    rehearsals: int = 0,
    given: bool = False,
    seed: int = 0,
) -> Groups:
    """Divides a source into groups that share no picture.

    Where the source has a spare set, reference, public and training pictures come from it, those of rehearsals too if
    enough are left, and the rest of it joins the distractors only if nothing was trained on it. Rehearsals are drawn
    after everything but the distractors, so that with and without them clients, network and public pictures are the
    same. Public pictures come from ``elsewhere`` alone, where the source has that.

    ``auto`` grants all that line-ups leave, see :data:`LINE_UP`, less those of :data:`REHEARSED` clients, or half of
    it where weights are trained, up to :data:`MOST_PUBLIC` and :data:`MOST_BYTES`; of pictures with objects none, as no
    attack on a detector is fitted. Public pictures are taken where line-ups miss them least: first those beyond
    :data:`MOST_OF_A_CLASS`.

    Of near copies one stays, see :mod:`leakmap.client.copies`, so that no group holds a copy of another's picture; of
    pictures that clients are given, all stay and their copies go.

    Args:
        pictures: The source.
        victims: Number of clients.
        batch_size: Pictures of each client.
        public: Public pictures that the threat model grants, or ``auto``.
        training: Whether weights will be trained.
        rehearsals: Number of simulated clients to tune on.
        given: Whether the victims hold the first pictures, in their order, as real clients do; else any.
        seed: For the shuffle.

    Raises:
        DataError: too few pictures, with the numbers.
    """
    held, simulated = victims * batch_size, rehearsals * batch_size
    pictures, merged = _once(pictures, held if given else 0)
    different = f"{len(pictures)} different pictures" + _but(merged)
    spare, elsewhere = pictures.spare, pictures.elsewhere
    sets = [one for one in (pictures, spare, elsewhere) if one is not None]
    images, labels = torch.cat([each.images for each in sets]), torch.cat([each.labels for each in sets])
    own = torch.randperm(len(pictures), generator=generator(seed, "groups")).tolist()
    shuffled = torch.randperm(len(spare), generator=generator(seed, "spare")).tolist() if spare else []
    other = [len(pictures) + i for i in shuffled] if spare else own

    victim = list(range(held)) if given else own[: -held - 1 : -1]
    own[:] = [i for i in own if i >= held] if given else own[:-held]
    reference = min(REFERENCE, (len(pictures) + (len(spare) if spare else 0)) // 8)
    asked = 0 if public == "auto" or elsewhere else public
    most = (len(pictures) - _kept_apart(simulated, reference + asked, spare, training)) // (3 * batch_size)
    fewer = f"Give --victims {most} or fewer, or lower " if not given and 0 < most < victims else "Lower "
    need = 2 * held + CONTROLS + FEWEST_DISTRACTORS + (0 if spare else reference + asked)
    if len(own) < need or len(other) < reference + asked:
        raise DataError(
            f"{different} are too few: {held} for victims, {2 * held} for swapped updates, "
            f"{CONTROLS} for the control, {reference} for reference, {asked} public and at least {FEWEST_DISTRACTORS} "
            f"distractors are needed. {fewer}--batch-size or --public, or give more pictures."
        )
    if elsewhere and public != "auto" and public > len(elsewhere):
        raise DataError(
            f"{public} public pictures are granted, and {len(elsewhere)} of other photographs are there. Lower "
            "--public, or give other pictures."
        )
    swaps = [[_same_label(own, labels, int(labels[v])) for v in victim] for _ in range(2)]
    controls = [own.pop() for _ in range(CONTROLS)]
    referenced = [other.pop() for _ in range(reference)]
    if elsewhere:
        start = len(images) - len(elsewhere)
        free = [start + i for i in torch.randperm(len(elsewhere), generator=generator(seed, "elsewhere")).tolist()]
        spared = len(free)
    else:
        pool = own if training or spare is None else own + other
        kept, needed = set(_enough(pool, labels)), _needed(pool, labels)
        last = other[::-1]
        free = sorted(last, key=lambda i: (i in kept) + (i in needed))
        unused = sum(i not in needed for i in free)
        spared = unused // 2 if training else unused - REHEARSED * batch_size
    shown = free[: _automatic(spared, pictures) if public == "auto" else public]
    other[:] = _without(other, shown)
    trained: list[int] = []
    if training:
        room = len(other) if spare else max(0, len(other) - FEWEST_DISTRACTORS - min(80, len(other) // 2))
        trained = [other.pop() for _ in range(room)]
        if not trained:
            raise DataError(f"{different} leave none to train on. {fewer}--batch-size or --public.")
    source = other if len(other) >= simulated else own
    left = len(own if spare is None else own + other)
    if simulated and (len(source) < simulated or left - simulated < FEWEST_DISTRACTORS):
        raise DataError(
            f"Of {len(images)} different pictures {left} are left for {simulated} of rehearsals and at least "
            f"{FEWEST_DISTRACTORS} distractors. {fewer}--rehearsals or --batch-size, or give more pictures."
        )
    rehearsed = [source.pop() for _ in range(simulated)]
    distractors = _enough(own if spare is None else own + other, labels)
    parts = (victim, *swaps, controls, referenced, shown, trained, rehearsed, distractors)
    used = torch.tensor(sorted(i for part in parts for i in part))
    place = {int(index): position for position, index in enumerate(used)}

    def at(indices: list[int]) -> Tensor:
        return torch.tensor([place[i] for i in indices], dtype=torch.int64)

    return Groups(
        images[used],
        labels[used],
        pictures.classes,
        at(victim).view(victims, batch_size),
        torch.stack([at(swap) for swap in swaps]).view(2, victims, batch_size),
        at(controls).view(-1, 1),
        at(referenced),
        at(shown),
        at(trained),
        at(rehearsed).view(rehearsals, batch_size),
        at(distractors),
        _joined([each.objects for each in sets], used),
        _joined([each.areas for each in sets], used),
        merged,
        bool(elsewhere and shown),
        _joined([each.values for each in sets], used),
    )


def _automatic(spared: int, pictures: Pictures) -> int:
    """How many public pictures ``auto`` grants of those that nothing else needs."""
    if pictures.objects is not None:
        return 0
    return max(0, min(spared, MOST_PUBLIC, MOST_BYTES // (4 * pictures.images[0].numel())))


def _without(indices: list[int], taken: list[int]) -> list[int]:
    gone = set(taken)
    return [i for i in indices if i not in gone]


def _kept_apart(simulated: int, reference: int, spare: Pictures | None, training: bool) -> int:
    """Pictures that a source must hold besides those of clients and their swapped updates."""
    if spare is not None:
        rest = 0 if training else len(spare) - reference
        own = 0 if rest >= simulated else max(simulated, FEWEST_DISTRACTORS + simulated - rest)
        return CONTROLS + max(FEWEST_DISTRACTORS, own)
    own = max(2 * FEWEST_DISTRACTORS + 1, 2 * simulated) if training else FEWEST_DISTRACTORS + simulated
    return CONTROLS + reference + own


def _once(pictures: Pictures, given: int) -> tuple[Pictures, Merged | None]:
    """The source with each picture once, where it is not too large to search."""
    if sum(len(one) for one in (pictures, pictures.spare, pictures.elsewhere) if one) > MOST:
        return pictures, None
    return without_copies(pictures, given)


def _but(merged: Merged | None) -> str:
    return f" ({merged.left_out} near copies are left out)" if merged and merged.left_out else ""


def _joined(parts: list[Tensor | None], used: Tensor) -> Tensor:
    """Rows of both sets that are used; empty where there are none."""
    given = [tensor for tensor in parts if tensor is not None]
    return torch.cat(given)[used] if given else _NONE


def _enough(indices: list[int], labels: Tensor, most: int = MOST_OF_A_CLASS) -> list[int]:
    """The first ones of each class, in order."""
    kept: list[int] = []
    seen: Counter[int] = Counter()
    for index in indices:
        label = int(labels[index])
        seen[label] += 1
        if seen[label] <= most:
            kept.append(index)
    return kept


def _needed(pool: list[int], labels: Tensor) -> set[int]:
    """Those that line-ups take, whoever the clients are: public pictures must not tell the classes of these."""
    of_class = Counter(labels[pool].tolist())
    own = [i for i in pool if of_class[int(labels[i])] >= FEWEST_OF_A_CLASS]
    return {*pool[:LINE_UP], *_enough(own, labels, LINE_UP)}


def _same_label(pool: list[int], labels: Tensor, label: int) -> int:
    """Takes a picture out of the pool, one with this label if any is left."""
    for position in range(len(pool) - 1, -1, -1):
        if int(labels[pool[position]]) == label:
            return pool.pop(position)
    return pool.pop()
