"""Pictures that no table of docs/results attacks, grants as public or rehearses on: for choosing defaults on.

Victims, swapped pictures and planted controls of an audit come from the test split of a source that has a training
split, whatever the audit's seed and sizes. So training pictures are never attacked, except by benchmarks.labels, which
draws its clients among distractors. Those, and training pictures that are public or rehearsed on in an audit of the
seeds and sizes below, are left out. What remains still serves other audits as distractors, and to train their briefly
trained weights: every training picture does.
"""

import hashlib
import itertools
from functools import cache

import torch

from benchmarks.labels import CLIENTS, PUBLIC, REPEATS
from leakmap.client.data import Pictures, load_pictures
from leakmap.client.groups import divide
from leakmap.seeds import generator

SEED, STUDIED = 100, 256
SEEDS = (*range(7), *range(20, 26))
SIZES = ((12, 1), (24, 1), (16, 4), (16, 8))
"""Clients and their pictures in docs/results."""
REHEARSALS = 4


@cache
def studied(data: str) -> tuple[Pictures, set[str]]:
    """Pictures that no other table attacks, and the digests of those that others do."""
    everything = load_pictures(data)
    used = used_elsewhere(everything)
    return untouched(everything, used), used


def used_elsewhere(everything: Pictures) -> set[str]:
    """SHA-256 of every picture that another table attacks, grants as public or rehearses on."""
    used: set[str] = set()
    for seed, (victims, batch) in itertools.product(SEEDS, SIZES):
        groups = divide(everything, victims=victims, batch_size=batch, public=PUBLIC, rehearsals=REHEARSALS, seed=seed)
        for members in (groups.victims, groups.swaps, groups.controls, groups.known, groups.rehearsals):
            used.update(groups.digests(members))
    groups = divide(everything, victims=12, batch_size=1, public=PUBLIC)
    for (name, (count, _)), repeat in itertools.product(CLIENTS.items(), range(REPEATS)):
        drawn = torch.randint(len(groups.distractors), (count,), generator=generator(repeat, name))
        used.update(groups.digests(groups.distractors[drawn]))
    return used


def untouched(everything: Pictures, used: set[str]) -> Pictures:
    """Training pictures outside ``used``; all other training pictures are their spare set."""
    spare = everything.spare
    if spare is None:
        raise SystemExit("These data have no training split: nothing is sure to stay apart from victims elsewhere.")
    digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in spare.images]
    order = torch.randperm(len(spare), generator=generator(SEED, "apart")).tolist()
    free = [i for i in order if digests[i] not in used][:STUDIED]
    if len(free) < STUDIED:
        raise SystemExit(f"Only {len(free)} training pictures are used by no table; {STUDIED} are needed.")
    rest = sorted(set(order).difference(free))
    others = Pictures(spare.images[rest], spare.labels[rest], spare.classes)
    return Pictures(spare.images[free], spare.labels[free], spare.classes, others)
