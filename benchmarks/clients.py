"""What benchmarks of attacks on many clients have in common: their pictures, one client's reconstruction, figures.

Victims are test pictures; public pictures are training pictures, or those of ``imagenet_public``. A rank is that of the
true picture among all test pictures of its class, on ImageNet, which has one a class, among all, by NCC with the
reconstructions of its client.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from benchmarks.markdown import bounds
from leakmap.attacker.attack import attack
from leakmap.attacker.protocol import Fitted
from leakmap.ceiling.releases import Releases
from leakmap.client.simulate import Batch, simulate
from leakmap.defences import NONE, defence_of
from leakmap.inspection.reference import ABOVE_CHANCE
from leakmap.local_rule import LocalRule
from leakmap.models.network import Network
from leakmap.observation.contents import Public
from leakmap.scoring.bands import BANDS
from leakmap.scoring.effects import holm
from leakmap.scoring.lineup import Similarity, cross_correlation
from leakmap.scoring.match import matched
from leakmap.scoring.metrics.psnr import decibels
from leakmap.scoring.statistics import clopper_pearson, rank_sum_p
from leakmap.seeds import derive
from leakmap.threat import ThreatModel, observe

RESNETS = Path(__file__).parent.parent / "tests/models/akamaster.py"
"""Where the networks stand whose published weights the benchmarks use."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of the channels that published networks are trained with."""


def neutral(text: object) -> str:
    """A text that may name these networks, wherever this folder lies."""
    return str(text).replace(f"{RESNETS.parent}/", "")


FEW = 20
"""Clients below which Student's t is not trusted."""
SMALLEST = 1e-15
"""p-value below which none is told."""
FINE = 64
"""Side up to which pictures are compared as they are, and at which larger ones can be compared besides."""
DELTA = 1e-5
"""Of an epsilon."""


def epsilon_of(defence: str) -> float | None:
    """What one release with this defence guarantees at :data:`DELTA`; None where it adds no Gaussian noise."""
    gaussian = None if defence == NONE else defence_of(defence).gaussian
    return None if gaussian is None else Releases(gaussian.noise).epsilon(DELTA)


class Client(Protocol):
    """What a client does, and what of it comes back."""

    @property
    def rule(self) -> LocalRule:
        """Its local rule."""
        ...

    @property
    def buffers(self) -> bool:
        """Whether buffers are returned."""
        ...


@dataclass(frozen=True)
class Pool:
    """Pictures of one data set.

    Args:
        victims: ``(V, C, H, W)`` in [0, 1].
        y: ``(V,)``.
        public: ``(P, C, H, W)`` that attacks are fitted to.
        public_y: ``(P,)``.
        training: ``(T, C, H, W)`` uint8 that networks are trained on.
        training_y: ``(T,)``.
        classes: How many.
    """

    victims: Tensor
    y: Tensor
    public: Tensor
    public_y: Tensor
    training: Tensor
    training_y: Tensor
    classes: int


@cache
def pool_of(data: Path, name: str) -> Pool:
    """The pictures of a data set; public and training pictures share none, and no victim is among them."""
    if name == "imagenet":
        victims, y = _folder(data / "imagenet_samples")
        public, public_y = _folder(data / "imagenet_public")
        return Pool(victims, y, public, public_y, public[:0].to(torch.uint8), public_y[:0], 1000)
    path = data / (
        "cifar10/cifar10_subset.npz" if name.startswith("cifar") else "pneumoniamnist/pneumoniamnist_balanced.npz"
    )
    arrays = np.load(path, allow_pickle=False)
    test, own = (torch.from_numpy(arrays[f"{part}_images"]) for part in ("test", "train"))
    test, own = (x.permute(0, 3, 1, 2) if x.ndim == 4 else x[:, None] for x in (test, own))
    y, own_y = (torch.from_numpy(arrays[f"{part}_labels"]).long().reshape(-1) for part in ("test", "train"))
    order, mixed = (torch.randperm(len(x), generator=torch.Generator().manual_seed(1)) for x in (test, own))
    test, y, own, own_y = test[order], y[order], own[mixed], own_y[mixed]
    # Weights that come from elsewhere leave all training pictures to the attacker; else each gets half of them.
    half = len(own) // 2 if name == "xray" or name == "cifar-halved" else 0
    left = own[half:].float() / 255
    return Pool(test.float() / 255, y, left, own_y[half:], own[:half], own_y[:half], int(y.max()) + 1)


def _folder(folder: Path) -> tuple[Tensor, Tensor]:
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    pictures = []
    for row in rows:
        name = Path(row["file"]).name
        found = next((folder / "images").rglob(name))
        cut = (16, 16, 240, 240)
        pictures.append(np.asarray(Image.open(found).convert("RGB").crop(cut)))
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked.float() / 255, torch.tensor([int(row.get("index") or row["imagenet_index"]) for row in rows])


def attacked(case: Client, network: Network, pool: Pool, own: Tensor, how: Fitted | str, client: int) -> Tensor:
    """The reconstructions of one client.

    Args:
        case: The client's rule, and what the server sees.
        network: What the server sent.
        pool: Where its pictures are from.
        own: Their places among the victims.
        how: A fitted attack, or one that needs no fit.
        client: Its number; seeds derive from it.
    """
    batch = Batch(pool.victims[own], pool.y[own])
    round = simulate(network, case.rule, batch, derive(7, "client", client))
    shown = Public(pool.public[:64], pool.public_y[:64])
    threat = ThreatModel("known", buffers=case.buffers, public=len(shown.labels))
    return attack(observe(round, threat, shown), how, seed=derive(7, "attack", client)).pictures


def figures(
    pool: Pool, index: Tensor, found: Sequence[Tensor], held: Tensor | None = None, side: int = 32
) -> dict[str, Any]:
    """NCC, PSNR and ranks, whole and by bands, of the pictures of all clients.

    Args:
        pool: Victims and candidates.
        index: ``(clients, N)`` places among the victims.
        found: ``(N, C, H, W)`` reconstructions of each client.
        held: ``(clients, M)`` places of all that each client holds, where that is more than what is reconstructed.
        side: At which large pictures are compared.
    """
    held = index if held is None else held
    candidates, found = compared(pool.victims, side), [compared(each, side) for each in found]
    single = len(pool.y) == len(pool.y.unique())
    matchings = [matched(each, candidates[own]) for each, own in zip(found, index, strict=True)]
    nccs = [
        cross_correlation(m, candidates[own]).diagonal().mean().item() for m, own in zip(matchings, index, strict=True)
    ]
    errors = [(m - candidates[own]).square().flatten(1).mean(1) for m, own in zip(matchings, index, strict=True)]
    told: dict[str, Any] = {
        "clients": len(index),
        "ncc": bounds(nccs),
        "psnr": bounds([float(decibels(error).mean()) for error in errors]),
    }
    kinds: dict[str, Similarity] = {"whole": cross_correlation, **BANDS, "without channel means": _centred}
    for name, similarity in kinds.items():
        ranks, galleries = [], []
        for each, own, all_of in zip(found, index, held, strict=True):
            among = torch.ones_like(pool.y, dtype=torch.bool) if single else torch.isin(pool.y, pool.y[own])
            scores = torch.zeros(len(candidates), dtype=torch.float64)
            scores[among] = similarity(each, candidates[among]).max(0).values.double()
            rank_of, size_of = [], []
            for truth in own.tolist():
                same = among.clone() if single else pool.y == pool.y[truth]
                # The client's other pictures are no candidates: being in the batch they are likely to be alike.
                same[all_of] = False
                better, equal = (scores[same] > scores[truth]).sum(), (scores[same] == scores[truth]).sum()
                rank_of.append(1 + float(better) + 0.5 * float(equal))
                size_of.append(int(same.sum()) + 1)
            ranks.append(rank_of)
            galleries.append(size_of)
        flat = [(r, g) for of, sizes in zip(ranks, galleries, strict=True) for r, g in zip(of, sizes, strict=True)]
        hits = sum(r == 1 for r, _ in flat)
        share = clopper_pearson(hits, len(flat))
        told[name] = {
            "first": (share.value, share.low, share.high),
            "chance": float(np.mean([1 / g for _, g in flat])),
            "relative": bounds(
                [
                    float(np.mean([(r - 1) / (g - 1) for r, g in zip(of, sizes, strict=True)]))
                    for of, sizes in zip(ranks, galleries, strict=True)
                ]
            ),
            "p": rank_sum_p(ranks, galleries) if name == "whole" else None,
        }
    return told


def compared(pictures: Tensor, side: int = 32) -> Tensor:
    """Pictures at the size at which they are compared: large ones are predicted, and so compared, at 32 pixels."""
    if max(pictures.shape[2:]) <= FINE:
        return pictures
    return torch.nn.functional.interpolate(pictures, (side, side), mode="bicubic", antialias=True)


def _centred(pictures: Tensor, candidates: Tensor) -> Tensor:
    """NCC of pictures without the mean of each channel: all but their colour."""
    one, other = (x - x.mean((2, 3), keepdim=True) for x in (pictures, candidates))
    return cross_correlation(one, other)


def class_mean(pool: Pool, public: Tensor, public_y: Tensor, index: Tensor) -> dict[str, Any]:
    """What a picture is worth that needs no client: the mean public picture of the class."""
    means = {int(c): public[public_y == c].mean(0) for c in pool.y.unique() if (public_y == c).any()}
    whole = public.mean(0)
    guesses = compared(torch.stack([means.get(int(pool.y[i]), whole) for i in index.flatten().tolist()]))
    truth = compared(pool.victims[index.flatten()])
    error = (guesses - truth).square().flatten(1).mean(1)
    return {
        "ncc": bounds(cross_correlation(guesses, truth).diagonal().tolist()),
        "psnr": bounds(decibels(error).tolist()),
    }


def chance_p(read: Mapping[str, Any]) -> float:
    """A one-sided p-value that relative ranks are lower than chance.

    Of few clients that on record, the exact rank sum. Of many it is that of Student's t over clients, with the standard
    error that the interval on record implies (of fewer than 200 clients the studentised bootstrap's, which is about as
    wide): so all records are told alike, those too whose rank sum counted a client as one picture.

    Args:
        read: What :func:`figures` says of an attack.
    """
    mean, low, high = read["whole"]["relative"]
    clients = read["clients"]
    if clients < FEW or low == high:
        return read["whole"]["p"]
    error = (high - low) / 2 / stats.t.ppf(0.975, clients - 1)
    return float(stats.t.cdf((mean - 0.5) / error, clients - 1))


def told_p(p: float) -> str:
    """A p-value in a table; of one so small its size says nothing more."""
    return f"{p:.1g}" if p >= SMALLEST else f"<{SMALLEST:g}"


def above_chance(read: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any of several attacks reads more than chance, corrected (Holm) for their number.

    Args:
        read: What :func:`figures` says of each.
    """
    return any(p < ABOVE_CHANCE for p in holm([chance_p(one) for one in read]))
