"""Verdicts of whole audits whose reconstructions are made up from real pictures: other poses, another camera."""

import functools

import pytest
import torch

from leakmap.client.data import load_pictures
from leakmap.scoring.invariance import invariant_ncc
from leakmap.scoring.lineup import cross_correlation
from leakmap.scoring.metrics import metrics
from leakmap.scoring.verdict import Client, Evidence, Level, judge
from leakmap.seeds import generator
from tests.scoring.test_invariance import NOISE, POSES
from tests.scoring.test_scoring import LEAKY_CONTROL

CLIENTS, GALLERY = 12, 20
TINT = torch.tensor([-0.25, 0.0, 0.25]).view(3, 1, 1)


def drawn(pool, seed: int):
    """A victim for each client, and the others of its line-up."""
    order = torch.randperm(pool, generator=generator(seed, "audit"))
    victims, rest = order[:CLIENTS], order[CLIENTS:]
    picks = [rest[torch.randperm(len(rest), generator=generator(seed, "line-up", i))] for i in range(CLIENTS)]
    return victims, [pick[: GALLERY - 1] for pick in picks]


def rank(similarity, truth: int, others) -> float:
    """Of a candidate in a row of similarities; ties count half."""
    own, rest = similarity[truth], similarity[others]
    return 1 + float((rest > own).sum()) + 0.5 * float((rest == own).sum())


def client(ranks, poses, psnr: float = 9.0, ssim: float = 0.1) -> Client:
    floors = {"psnr": {"swapped": (10.0,)}, "ssim": {"swapped": (0.2,)}}
    return Client((ranks,), (GALLERY,), {"psnr": (psnr,), "ssim": (ssim,)}, floors, (poses,))


@functools.cache
def photographs() -> torch.Tensor:
    pool = load_pictures("samples").images / 255
    return pool[torch.randperm(len(pool), generator=generator(0, "photographs"))[:60]]


def level(seed: int, plain, any_pose) -> Level:
    """Of an audit that recovers every picture, by the likeness of every recovered picture to every picture."""
    victims, others = drawn(60, seed)
    found = []
    for reconstructed in (victims, victims.roll(5), victims.roll(1)):
        pairs = zip(reconstructed.tolist(), victims.tolist(), others, strict=True)
        found.append([client(rank(plain[r], t, pick), rank(any_pose[r], t, pick)) for r, t, pick in pairs])
    own, swapped, deranged = found
    return judge(Evidence(own, swapped, LEAKY_CONTROL, deranged)).level


@pytest.mark.parametrize("pose", POSES)
def test_reconstructions_in_another_pose_are_found(pose):
    pool = photographs()
    copies = POSES[pose](pool)
    contrast = pool.flatten(1).std(1)[:, None, None, None]
    copies = copies + NOISE * contrast * torch.randn(copies.shape, generator=generator(0, pose))
    plain, any_pose = cross_correlation(copies, pool), invariant_ncc(copies, pool)
    assert sum(level(seed, plain, any_pose) == "partial" for seed in range(20)) >= 19
    if pose == "inverted":
        assert not any(level(seed, plain, plain) == "partial" for seed in range(20))


def of_another_camera(pool, seed: int) -> Evidence:
    """Clients whose pictures have a tint, and a constant "reconstruction" that has it too; others have none."""
    victims, others = drawn(len(pool), seed)
    own = (pool[victims] + TINT).clamp(0, 1)
    picks = [pool[pick] for pick in others]
    grey = pool.mean((0, 2, 3)).view(1, 3, 1, 1).expand(1, *pool.shape[1:])
    painted = grey + TINT
    values = {name: metrics.build(name)(painted.expand_as(own), own).tolist() for name in ("psnr", "ssim")}

    def ranked(answer, similarity):
        rows = [similarity(answer, torch.cat([truth[None], pick]))[0] for truth, pick in zip(own, picks, strict=True)]
        return [rank(row, 0, torch.arange(1, GALLERY)) for row in rows]

    both = list(zip(ranked(painted, cross_correlation), ranked(painted, invariant_ncc), strict=True))
    numbers = zip(both, values["psnr"], values["ssim"], strict=True)
    attacked = [client(*r, psnr=psnr, ssim=ssim) for r, psnr, ssim in numbers]
    middle = [client(r, r) for r in ranked(grey, cross_correlation)]
    return Evidence(attacked, middle, LEAKY_CONTROL, [client(*r) for r in both])


def test_a_constant_picture_of_the_clients_camera_raises_no_alarm():
    pool = load_pictures("samples", 16).images / 255
    alarms, without = 0, 0
    for seed in range(40):
        evidence = of_another_camera(pool, seed)
        alarms += judge(evidence).level not in ("none_found", "inconclusive")
        old = Evidence(evidence.clients, evidence.swapped, evidence.control)
        without += judge(old).level not in ("none_found", "inconclusive")
    assert alarms == 0
    assert without > 30
