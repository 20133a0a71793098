"""Exposed pictures, counted one by one."""

import pytest

from leakmap.scoring.exposure import clients_exposed, exposed
from leakmap.scoring.verdict import Client


def client(ranks, psnr, ssim, swapped=None, psnr_floor=12.0):
    """A floor of 12 dB and .2 SSIM, and a swapped one that came to nothing unless given."""
    floors = {
        "psnr": {"prior_only": (psnr_floor,) * len(ranks), "swapped": swapped},
        "ssim": {"prior_only": (0.2,) * len(ranks), "swapped": None},
    }
    return Client(tuple(ranks), (100,) * len(ranks), {"psnr": tuple(psnr), "ssim": tuple(ssim)}, floors)


NOTHING = client([40.0, 7.0], [11.0, 12.5], [0.1, 0.3])


def test_one_picture_of_one_client_is_found_and_the_worst_comes_first():
    audit = [
        NOTHING,
        client([1.0, 1.0], [35.0, 20.0], [0.9, 0.6]),
        client([3.0, 1.0], [10.0, 60.0], [0.1, 1.0]),
        client([1.0, 1.0], [22.0, 10.0], [0.8, 0.4]),
    ]
    found = [(one.client, one.picture, one.level, one.psnr) for one in exposed(audit)]
    assert found == [(2, 1, "exact", 60), (1, 0, "exact", 35), (3, 0, "visual", 22), (1, 1, "visual", 20)]


@pytest.mark.parametrize(
    ("case", "levels"),
    [
        (client([1.5], [60.0], [1.0]), []),
        (client([1.0], [30.0], [0.5]), []),
        (client([1.0], [35.0], [0.9], psnr_floor=36.0), ["visual"]),
        (client([1.0], [35.0], [0.1], swapped=(35.0,)), []),
        (client([1.0], [35.0], [0.1], swapped=(None,)), ["exact"]),
        (client([1.0], [35.0], [0.1], swapped=(20.0,)), ["exact"]),
    ],
)
def test_a_picture_is_exposed_if_it_is_first_without_a_tie_and_above_threshold_and_each_own_floor(case, levels):
    assert [one.level for one in exposed([case])] == levels


def test_clients_and_pictures_are_counted_with_their_intervals():
    audit = [NOTHING] * 10 + [client([1.0, 1.0], [35.0, 20.0], [0.9, 0.6]), client([1.0, 50.0], [22.0, 9.0], [0.8, 0])]
    found, worst = clients_exposed(audit), clients_exposed(audit, "exact")
    assert (found.clients, found.of_clients, found.pictures, found.of_pictures) == (2, 12, 3, 24)
    assert (found.client_share.low, found.client_share.high) == pytest.approx((0.0209, 0.4841), abs=1e-4)
    assert found.picture_share.low < 3 / 24 < found.picture_share.high
    assert (worst.clients, worst.pictures) == (1, 1)
    assert clients_exposed([NOTHING] * 36).client_share.high == pytest.approx(0.0974, abs=1e-4)
