"""Client by client: what was reached, and what failed."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from leakmap.files import finite
from leakmap.result.part import Number, Part
from leakmap.scoring.metrics import ALWAYS

Role = Literal["attack", "swapped", "prior_only", "informed", "control"]
"""What a run is for."""

LARGEST_LINE_UP = 10**9

Notes = Annotated[dict[str, Any], BeforeValidator(finite)]


class FinishedClient(Part):
    """A client all of whose runs finished.

    Args:
        client: Its number, from 0.
        classes: What each picture is labelled with: its class, which objects it holds, its labels or values, or the
            classes of its pixels.
        ranks: In the line-up, of each picture; 1 is first.
        galleries: Candidates in each of these line-ups, the true picture included.
        scores: Metric -> value of each picture.
        floors: Metric -> floor -> value of each picture; null where the floor came to no reconstruction.
        pose_ranks: Ranks with any pose allowed.
        band_ranks: Band -> rank of each picture by that band alone.
        swapped_ranks: Ranks of the same pictures by the attack on a swapped update.
        object_ranks: In the line-up of crops, of each large object.
        object_galleries: Candidates in each of these.
        labels_right: Share of the classes that were right.
        objective: The matching term that the attack reached; of a suite its update residual.
        curve: The matching term along the run.
        seconds: Of the attack.
        used: Facts that the attack used.
        notes: What the attack recorded.
    """

    client: int
    classes: tuple[str, ...]
    ranks: tuple[float, ...]
    galleries: tuple[int, ...]
    scores: Mapping[str, tuple[Number, ...]]
    floors: Mapping[str, Mapping[str, tuple[Number, ...] | None]]
    pose_ranks: tuple[float, ...]
    band_ranks: Mapping[str, tuple[float, ...]]
    swapped_ranks: tuple[float, ...]
    object_ranks: tuple[float, ...]
    object_galleries: tuple[int, ...]
    labels_right: Number
    objective: Number
    curve: tuple[Number, ...]
    seconds: float
    used: tuple[str, ...]
    notes: Notes

    def check(self) -> None:
        """Refuses what no audit comes to.

        Raises:
            ValueError: lists are not of one length, a rank is no place in its line-up, or PSNR or SSIM is missing.
        """
        count = len(self.ranks)
        if not count:
            raise ValueError("a finished client has at least one picture")
        _check_ranks("ranks", self.ranks, self.galleries)
        _check_ranks("object_ranks", self.object_ranks, self.object_galleries)
        others = {"pose_ranks": self.pose_ranks, "swapped_ranks": self.swapped_ranks, **self.band_ranks}
        for name, ranks in others.items():
            _check_ranks(name, ranks, self.galleries if ranks else ())
        for metric in {*ALWAYS, *self.scores}:
            if len(self.scores.get(metric, ())) != count:
                raise ValueError(f"scores holds no {metric[:80]} for each of {count} pictures")
            if metric not in self.floors:
                raise ValueError(f"floors holds nothing about {metric[:80]}")


def _check_ranks(name: str, ranks: Sequence[float], galleries: Sequence[int]) -> None:
    if len(ranks) != len(galleries):
        raise ValueError(f"{name[:80]} holds {len(ranks)} numbers, and there are {len(galleries)} line-ups")
    for rank, size in zip(ranks, galleries, strict=True):
        if not 2 <= size <= LARGEST_LINE_UP:
            raise ValueError(f"a line-up has from 2 to {LARGEST_LINE_UP} candidates; got one of {str(size)[:20]}")
        if not 1 <= rank <= size:
            raise ValueError(f"{name[:80]} holds {rank:g}, which is no place in a line-up of {size}")


class LostClient(Part):
    """A client of which a run failed or is missing: without its floors there is no score.

    Args:
        client: Its number, from 0.
        failure: Why.
    """

    client: int
    failure: str


class FailedRun(Part):
    """A run that failed.

    Args:
        role: What it was for.
        client: The number of its client, from 0.
        kind: Of the failure.
        message: What it said.
    """

    role: Role
    client: int
    kind: str
    message: str
