"""The page of benchmarks.strength: what it claims follows from what was measured."""

import torch
from benchmarks.peers.contestants import BREACHING_IG, LEAKPRO_IG

from benchmarks import strength, strength_page


def entry(own, peer):
    """A case in which the suite and a peer reach these NCCs on each client."""

    def reached(ncc):
        return [{"ncc": v, "psnr": 20 * v, "ranks": [10 - 8 * v], "term": 0.1, "seconds": 1.0} for v in ncc]

    return {
        "title": "a network",
        "seconds": 8,
        "options": "--only convnet",
        "reached": {"strongest": reached(own), BREACHING_IG: reached(peer), LEAKPRO_IG: reached([0.0] * len(peer))},
        "rehearsed": {"low_variation": [0.5]},
        "paces": {"low_variation": [100, 1]},
        "fitting": 1.0,
        "test pictures": [[400 + i] for i in range(len(own))],
        "versions": "none",
    }


def test_a_case_counts_as_won_only_within_the_interval_of_every_score():
    better, worse = [0.8, 0.9, 0.7, 0.85, 0.8, 0.75, 0.9, 0.8], [0.1, 0.2, 0.1, 0.15, 0.2, 0.1, 0.1, 0.3]
    text = strength_page.page("x", {"won": entry(better, worse), "lost": entry(worse, better)})
    assert "PSNR: won." in text
    assert "Not in all three: lost" in text
    best, gains = strength_page.beside(entry(better, worse))["ranks"]
    assert best == BREACHING_IG
    assert min(gains) > 0, "a lower rank is a gain"


def test_public_pictures_and_candidates_hold_no_copy_of_a_victim_and_no_choice_was_made_on_one(shared):
    bout = strength.BOUTS["convnet"]
    field = strength.field_of(bout, shared, choosing=False)
    chosen = strength.field_of(bout, shared, choosing=True)
    assert int(field.clients.min()) >= strength_page.CHOICES > int(chosen.clients.max())
    assert len(field.clients) >= 8
    for group in (field.public, field.others):
        alike = strength.cross_correlation(group.pictures[:300], field.pictures.flatten(0, 1))
        assert float(alike.max()) < strength_page.COPY
    assert torch.equal(field.case(0).pictures, field.pictures[0])
