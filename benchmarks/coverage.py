"""How often do the printed intervals hold the true value? Shares exactly, means by simulation.

    python -m benchmarks.coverage

Takes a minute on one core and writes docs/results/coverage.md. With --draws N means are simulated N times instead of
2,000 times, and nothing is written.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.markdown import publish, table
from leakmap.scoring.statistics import clopper_pearson, mean_interval, share_interval

PAGE = Path("docs/results/coverage.md")
CLIENTS = (8, 12, 36, 200)
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
BATCHES = (1, 4, 8)
ALIKE = {0.0: "independent", 0.3: "alike (0.3)", 1.0: "all or none"}
"""Correlation of two pictures of a client -> what the table calls it."""
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
    """A distribution of the values of clients.

    Args:
        name: What the table calls it.
        draw: Random numbers and ``(audits, clients)`` -> values.
        mean: The true one.
        rare: Share of the clients without which a sample says nothing of the mean; 0 where there are none such.
    """

    name: str
    draw: Callable[[np.random.Generator, tuple[int, int]], Values]
    mean: float
    rare: float = 0.0


def with_open_clients(share: float) -> Kind:
    """Gains in PSNR where a share of the clients is recovered, 50 dB above the others."""
    return Kind(
        f"PSNR gain, {share:.0%} of clients at +50 dB",
        lambda rng, shape: rng.normal(0, 1.5, shape) + 50 * (rng.random(shape) < share),
        50 * share,
        share,
    )


KINDS = (
    Kind("PSNR gain, normal", lambda rng, shape: rng.normal(0.5, 1, shape), 0.5),
    Kind("PSNR gain, skewed (log-normal)", lambda rng, shape: rng.lognormal(0, 0.6, shape), math.exp(0.18)),
    Kind("PSNR gain, skewed (exponential)", lambda rng, shape: rng.exponential(1, shape), 1),
    Kind("PSNR gain, heavy tails (t, 4)", lambda rng, shape: rng.standard_t(4, shape), 0),
    Kind("SSIM, low (beta 2, 8)", lambda rng, shape: rng.beta(2, 8, shape), 0.2),
    Kind("SSIM, near 1 (beta 20, 1)", lambda rng, shape: rng.beta(20, 1, shape), 20 / 21),
    Kind("SSIM, at both ends (beta .4, .6)", lambda rng, shape: rng.beta(0.4, 0.6, shape), 0.4),
    with_open_clients(1 / 2),
    with_open_clients(1 / 4),
    with_open_clients(1 / 12),
)


def hits_of_client(size: int, rate: float, alike: float) -> Values:
    """Probability of 0 to ``size`` hits among the pictures of a client: beta-binomial."""
    if alike == 1:
        return np.array([1 - rate, *[0.0] * (size - 1), rate])
    if alike == 0:
        return stats.binom.pmf(np.arange(size + 1), size, rate)
    odds = 1 / alike - 1
    return stats.betabinom.pmf(np.arange(size + 1), size, rate * odds, (1 - rate) * odds)


def hits_of_all(of_client: Values, n: int) -> Values:
    """The same of ``n`` clients together."""
    found = np.ones(1)
    for _ in range(n):
        found = np.convolve(found, of_client)
    return found


def share_rows() -> list[list[str]]:
    """Lowest exact coverage over all rates of the interval of a share, and of one that takes pictures as the cases."""
    rows = []
    for size in BATCHES:
        for alike, name in ALIKE.items() if size > 1 else [(0.0, "one each")]:
            rows.append([str(size), name, *(_share_cell(n, size, alike) for n in CLIENTS)])
    return rows


def _share_cell(n: int, size: int, alike: float) -> str:
    spread = [[total // n + (place < total % n) for place in range(n)] for total in range(n * size + 1)]
    ours = [share_interval(hits, [size] * n) for hits in spread]
    naive = [clopper_pearson(total, n * size) for total in range(n * size + 1)]
    chances = {rate: hits_of_all(hits_of_client(size, rate, alike), n) for rate in RATES}
    lowest = [
        min(
            sum(p for p, one in zip(of_rate, rule, strict=True) if one.low <= rate <= one.high)
            for rate, of_rate in chances.items()
        )
        for rule in (ours, naive)
    ]
    return f"{lowest[0]:.1%} ({lowest[1]:.0%})" if size > 1 else f"{lowest[0]:.1%}"


def mean_rows(draws: int) -> list[list[str]]:
    """Coverage of the interval of a mean, with that of Student's t and of the BCa bootstrap."""
    rows = []
    for kind in KINDS:
        cells = []
        for n in CLIENTS:
            values = kind.draw(np.random.default_rng(n), (draws, n))
            found = [mean_interval(of_audit) for of_audit in values]
            ours = float(np.mean([one.low <= kind.mean <= one.high for one in found]))
            most = f" of {power(n, kind.rare):.0%}" if kind.rare else ""
            text = f"{ours:.1%}{most} ({student(values, kind.mean):.0%}, {bca(values[: draws // 4], kind.mean):.0%})"
            cells.append(text if 0.93 <= ours <= 0.97 else f"**{text}**")
        rows.append([kind.name, *cells])
    return rows


def student(values: Values, mean: float) -> float:
    """Coverage of Student's t."""
    half = stats.t.ppf(0.975, values.shape[1] - 1) * values.std(1, ddof=1) / math.sqrt(values.shape[1])
    return float((np.abs(values.mean(1) - mean) <= half).mean())


def bca(values: Values, mean: float) -> float:
    """Coverage of the bias-corrected and accelerated bootstrap."""
    found = stats.bootstrap((values,), np.mean, axis=1, n_resamples=999, batch=50, rng=np.random.default_rng(0))
    return float(((found.confidence_interval.low <= mean) & (mean <= found.confidence_interval.high)).mean())


def page(draws: int) -> str:
    """The whole page."""
    bounds = [
        [n, f"{clopper_pearson(0, n).high:.1%}", *(f"{power(n, rate):.0%}" for rate in RATES[:6])] for n in CLIENTS
    ]
    lines = [
        "# Do the intervals hold what they say?",
        "",
        "    python -m benchmarks.coverage     # 1 min",
        "",
        "Every interval is one of 95 %. Columns are numbers of clients.",
        "",
        "## Shares",
        "",
        f"The lowest coverage over true shares of {', '.join(map(str, RATES))}, computed exactly from the distribution "
        "of hits. In brackets: the interval that takes every picture for a case of its own. Pictures of a client are "
        "independent, alike (correlation 0.3, beta-binomial), or hit all or none.",
        "",
        *table(["pictures each", "within a client", *CLIENTS], share_rows()),
        "The interval counts clients as cases, because nobody knows how alike the pictures of a client are. It is "
        "exact for one picture each and for all or none, and wider than needed in between.",
        "",
        "## Means",
        "",
        f"{draws:,} simulated audits each. In brackets: Student's t, and the BCa bootstrap on a quarter of the audits. "
        'Bold: outside 93 to 97 %. "Of": the share of audits in which a client at +50 dB was drawn, which no interval '
        "of a mean can exceed by far.",
        "",
        *table(["values", *CLIENTS], mean_rows(draws)),
        "Where exposed clients are so rare that an audit shows none, the mean does not know of them; that is what the "
        "bound on the share is for. Above 97 % lie values at both ends of a scale, and below 93 % heavy tails.",
        "",
        "## What an audit can miss",
        "",
        "The largest share of exposed clients that none found leaves possible (upper end of the exact two-sided "
        "interval), and the probability that an audit shows at least one exposed client, by the true share.",
        "",
        *table(["clients", "none found: at most", *(f"{rate:.0%}" for rate in RATES[:6])], bounds),
    ]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draws", type=int, default=2000, help="Simulated audits for each mean.")
    options = parser.parse_args()
    publish(page(options.draws), *([PAGE] if options.draws == parser.get_default("draws") else []))


def power(n: int, rate: float) -> float:
    """Probability that an audit of ``n`` clients shows at least one exposed client.

    Args:
        n: Clients, drawn independently.
        rate: Share of all clients that the attack exposes, in [0, 1].
    """
    return -math.expm1(n * math.log1p(-rate)) if rate < 1 else float(n > 0)


if __name__ == "__main__":
    main()
