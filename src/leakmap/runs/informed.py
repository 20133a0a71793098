"""A line-up by an attacker who is shown the candidates: how far a defence really is from its ceiling.

An attack that is told nothing of the candidates is far from what the noise of a defence allows. This one simulates the
client on each of them, without noise, and ranks them by how likely what the client sent is after each: under Gaussian
noise, by their distance to it. No attacker names the true one more often where one release of one picture is all that
was sent (the lemma of Neyman and Pearson); so a mechanism whose noise or clipping is missing shows here.

It also knows the client's other pictures, all labels, and the order of the pictures of a simulated client: more than
any server. A ceiling holds for such attackers too.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from leakmap.client.simulate import Batch, simulate
from leakmap.local_rule import LocalRule
from leakmap.observation.observation import Observation
from leakmap.runs.trial import Deranged
from leakmap.scoring.score import Score


def informed(
    rule: LocalRule, own: Observation, other: Observation, held: Batch, candidates: Batch, seed: int
) -> tuple[Score, Deranged]:
    """The line-up of a client's first picture.

    Args:
        rule: The client's, with its defence.
        own: What the server sees of the client.
        other: What it would see of one with other pictures: at chance, unless the line-up tells the true picture from
            the others without any update.
        held: The client's pictures.
        candidates: The true picture first, then the distractors, each with what it is labelled with.
        seed: The client's, for the order of its pictures and its dropout masks; its noise is not used.

    Returns:
        The score, with the candidate that was ranked first as its picture, and the ranks of the other update.

    Source: the prior-aware attack of Hayes, Mahloujifar and Balle 2023, arXiv:2302.07225, section 4.
    """
    distances: list[tuple[float, float]] = []
    for place in range(len(candidates.y)):
        batch = Batch(
            torch.cat([candidates.pictures[place][None], held.pictures[1:]]),
            torch.cat([candidates.y[place][None], held.y[1:]]),
        )
        expected = simulate(own.network, rule, batch, seed, noise=False).update.tensors
        distances.append((_distance(own.update.tensors, expected), _distance(other.update.tensors, expected)))
    size = len(distances)
    ranked, by_chance = (_rank(found) for found in zip(*distances, strict=True))
    nearest = min(range(size), key=lambda place: distances[place][0])
    picture = candidates.pictures[nearest][None].cpu()
    score = Score(picture, {}, (ranked,), (size,), math.nan, places=(0,))
    return score, Deranged((by_chance,), (size,), (), {})


def _distance(sent: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Squared, but for what all candidates share, in float64: noise of millions of entries dwarfs what differs."""
    pairs = [(sent[name].double().flatten(), tensor.double().flatten()) for name, tensor in expected.items()]
    return math.fsum(float(e @ e) - 2 * float(s @ e) for s, e in pairs)


def _rank(distances: tuple[float, ...]) -> float:
    """Of the first one; ties count half."""
    others = distances[1:]
    return 1 + sum(d < distances[0] for d in others) + 0.5 * sum(d == distances[0] for d in others)
