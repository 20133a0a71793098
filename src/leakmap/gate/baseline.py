"""Whether an audit is worse than an earlier one: by its level, and by more than noise."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from leakmap.errors import BadSetting
from leakmap.plan.plan import Plan
from leakmap.result.result import Result, read_result
from leakmap.result.values import exposed_any, gain_over_best_floor, rank_score
from leakmap.scoring.statistics import paired_p
from leakmap.scoring.verdict import Level

FALSE_ALARMS = 0.01
"""How often two audits of an unchanged system are told apart at most, by all tests together."""
LEAST = 9
"""Clients below which no difference whatever could be significant: the sign-flip test of n of them has no p below
2 to the power of -n, and each of the tests may err in a quarter of 1 %."""
PSNR, SSIM = "gain in PSNR over the best floor", "gain in SSIM over the best floor"


@dataclass(frozen=True)
class Compared:
    """One measure of both audits, over the clients that both have.

    Args:
        name: Of the measure.
        before: Its mean over clients in the baseline.
        now: Its mean now.
        p: One-sided sign-flip test that it has risen.
    """

    name: str
    before: float
    now: float
    p: float


@dataclass(frozen=True)
class Comparison:
    """An audit beside its baseline.

    Args:
        path: Of the baseline.
        level: Of the baseline.
        clients: That both audits have finished.
        measures: What was compared.
        broken: Whether the baseline's defence was broken already.
    """

    path: str
    level: Level
    clients: int
    measures: tuple[Compared, ...]
    broken: bool = False

    @property
    def risen(self) -> tuple[Compared, ...]:
        """The measures that rose by more than noise."""
        return tuple(one for one in self.measures if one.p < FALSE_ALARMS / len(self.measures))

    @property
    def enough(self) -> bool:
        """Whether there are clients enough for a difference to show."""
        return self.clients >= LEAST


def read_baseline(path: Path) -> Result:
    """Reads the result of an earlier audit that can be a baseline; nothing in it is run.

    Raises:
        StoreError: there is none, or it does not hold a result of this schema.
        BadSetting: it is inconclusive, or has too few clients.
    """
    found = read_result(path)
    if found.verdict.level == "inconclusive":
        raise BadSetting(f"The baseline {path} is inconclusive, so nothing can be worse; give one with a verdict.")
    _enough(len(found.finished), f"The baseline {path}")
    return found


def check_comparable(baseline: Result, path: Path, plan: Plan) -> None:
    """Refuses a baseline that was measured in another way. What is measured may differ: model, data and client.

    Args:
        baseline: The earlier result.
        path: Its file, for messages.
        plan: The audit that is compared with it.

    Raises:
        BadSetting: attack, threat model, candidates of a line-up or kind of audit differ, or the clients are too few.
    """
    _enough(plan.victims, "This audit")
    mine, other = _instrument(plan), _instrument(baseline.plan)
    if differing := [name for name, value in mine.items() if other[name] != value]:
        told = ", ".join(f"{name} {other[name]} there and {mine[name]} here" for name in differing)
        raise BadSetting(f"The baseline {path} is of an audit of another kind ({told}); make a new baseline.")


def compared(baseline: Result, path: Path, result: Result, *, broken: bool = False) -> Comparison:
    """Two audits beside each other, client by client.

    Under the hypothesis that nothing changed, the two values of a client number can be exchanged, whether it is the
    same client (same data and seed) or another one. So the sign-flip test holds for both.

    Args:
        baseline: The earlier result.
        path: Its file.
        result: The later one.
        broken: Whether the baseline's defence was broken already.

    Raises:
        BadSetting: the suite has another version there.
    """
    there, here = (one.suite.version if one.suite else "" for one in (baseline, result))
    if there != here:
        raise BadSetting(
            f"The baseline {path} was attacked with suite {there or 'none'}, this audit with {here or 'none'}; make a "
            "new baseline."
        )
    measures: dict[str, Callable[[Result], dict[Hashable, float]]] = {
        "exposed clients": exposed_any,
        "line-up score": rank_score,
        PSNR: lambda of: gain_over_best_floor(of, "psnr"),
        SSIM: lambda of: gain_over_best_floor(of, "ssim"),
    }
    common = {one.client for one in baseline.finished} & {one.client for one in result.finished}
    found = tuple(_compared(name, values(baseline), values(result)) for name, values in measures.items())
    return Comparison(str(path), baseline.verdict.level, len(common), found, broken)


def _compared(name: str, before: dict[Hashable, float], now: dict[Hashable, float]) -> Compared:
    clients = sorted(before.keys() & now.keys(), key=str)
    if not clients:
        return Compared(name, 0.0, 0.0, 1.0)
    was, became = (fmean(values[client] for client in clients) for values in (before, now))
    return Compared(name, was, became, paired_p([now[client] - before[client] for client in clients]))


def _enough(clients: int, whose: str) -> None:
    if clients < LEAST:
        raise BadSetting(
            f"{whose} has {clients} clients; with fewer than {LEAST} no difference to a baseline can be told from "
            f"noise: audit at least {LEAST}."
        )


def _instrument(plan: Plan) -> dict[str, str]:
    """How an audit measures. How many public pictures are granted follows from the data, which is what is measured."""
    threat = plan.threat
    return {
        "attack": str(plan.attack),
        "settings": plan.column,
        "granted labels": threat.labels,
        "granted count": str(threat.count),
        "granted rule": str(threat.rule),
        "granted buffers": str(threat.buffers),
        "public pictures": "some" if threat.public else "none",
        "known pixels": f"{threat.known_pixels:g}",
        "candidates": str(plan.gallery),
        "null audit": str(plan.null),
    }
