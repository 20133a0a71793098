"""Do ceilings hold, how near do attackers come, and is a broken mechanism called broken?

    python -m benchmarks.ceiling

Needs ``pip install 'leakmap[dp]'``; writes docs/results/ceiling.md and docs/images/ceiling.svg. Finished audits are
kept in runs/ceiling.json, and the same command continues. Three parts: the best attacker on a Gaussian mechanism,
simulated; clients with noise at five levels, audited; clients whose defence is not what it says, audited.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.signal import fftconvolve

from benchmarks.markdown import publish, table, versions
from leakmap import LocalRule, Plan, Spec, ThreatModel
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.ceiling.releases import Releases
from leakmap.defences import Defence, Gaussian, defences
from leakmap.defences.clip_noise import CLIENT, clipped_with_noise
from leakmap.files import write_json
from leakmap.report import ceiling_chart, charts
from leakmap.result.part import Rate
from leakmap.scoring.statistics import clopper_pearson
from leakmap.scoring.verdict import BROKEN

PAGE, FIGURE, KEPT = Path("docs/results/ceiling.md"), Path("docs/images/ceiling.svg"), Path("runs/ceiling.json")
NOISES = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
GALLERIES = (24, 100, 1000)
ROUNDS = ((1, 1.0), (10, 1.0), (20, 0.1))
"""Releases and sample rate."""
DRAWS = 10_000
NUMBERS, VARIANCE = 3072, 0.06
ERRORS = (0.05, 0.02, 0.01)
"""Noise multipliers of the simulation of the error."""
ERROR_DRAWS = 1000
LEVELS = (0.05, 0.1, 0.3, 1.0, 3.0)
"""Noise multipliers of the audited clients."""
CLIENTS: Mapping[str, Plan] = {
    "clip_noise": Plan(
        "resnet,blocks=1-1-1,width=24,preact=true",
        threat=ThreatModel(buffers=False, public=0),
        attack=Spec("inverting_gradients", {"steps": 20}),
        victims=16,
    ),
    "dp_sgd": Plan(
        "convnet,width=16",
        threat=ThreatModel("known", public=0),
        attack=Spec("inverting_gradients", {"steps": 20}),
        victims=16,
        batch_size=2,
    ),
}
CLIP = 0.1
PLANTED = ("quiet", "unclipped", "correct")
"""Noise of a tenth of what is said; no clipping; as it is said."""
OF_EACH = 50
SMALL = Plan(
    "mlp,hidden=16",
    rule=LocalRule(mode="eval"),
    threat=ThreatModel(public=0),
    attack=Spec("inverting_gradients", {"steps": 2}),
    image_size=16,
    victims=6,
)
Values = NDArray[np.float64]


def evidence(x: Values, noise: float, rate: float) -> Values:
    """Log likelihood ratio, with and without a contribution of norm 1, of releases ``x`` along it in units of noise."""
    mu = 1 / noise
    return np.logaddexp(np.log1p(-rate) if rate < 1 else -np.inf, np.log(rate) + mu * x - mu**2 / 2)


def exact_success(releases: Releases, gallery: int) -> float:
    """Of the best attacker, where contributions have norm 1 and are orthogonal, by integration."""
    if releases.sample_rate == 1:
        mu = releases.distance
        x = np.linspace(-9, 9 + mu, 40_001)
        return float(np.trapezoid(stats.norm.pdf(x - mu) * stats.norm.cdf(x) ** (gallery - 1), x))
    # The evidence of one round on a grid, with and without the contribution; that of all rounds by convolution.
    mu, width = 1 / releases.noise, 2e-3
    x = np.linspace(-9, 9 + mu, 400_001)
    without = stats.norm.pdf(x) / stats.norm.pdf(x).sum()
    with_it = (1 - releases.sample_rate) * without + releases.sample_rate * stats.norm.pdf(x - mu) / stats.norm.pdf(
        x - mu
    ).sum()
    places = np.round(evidence(x, releases.noise, releases.sample_rate) / width).astype(int)
    low = places.min()
    once = [np.bincount(places - low, weights) for weights in (without, with_it)]
    none, some = once
    for _ in range(releases.rounds - 1):
        none, some = (np.maximum(fftconvolve(all_, one), 0) for all_, one in zip((none, some), once, strict=True))
    none, some = none / none.sum(), some / some.sum()
    below = np.cumsum(none) - none / 2  # a tie of grid points is half a win
    return float((some * np.minimum(below, 1) ** (gallery - 1)).sum())


def simulated_hits(releases: Releases, gallery: int, draws: int, source: np.random.Generator) -> int:
    """How often the best attacker names the true one of as many candidates."""
    noise, rate = releases.noise, releases.sample_rate
    hits, chunk = 0, max(1, 4_000_000 // (gallery * releases.rounds))
    for first in range(0, draws, chunk):
        size = min(chunk, draws - first)
        x = source.standard_normal((size, gallery, releases.rounds))
        x[:, 0] += (source.random((size, releases.rounds)) < rate) / noise
        scores = x.sum(2) if rate == 1 else evidence(x, noise, rate).sum(2)
        hits += int((scores.argmax(1) == 0).sum())
    return hits


def mechanism(draws: int) -> list[dict[str, float]]:
    """Every noise, size and kind of rounds: measured, exact and ceiling."""
    source, rows = np.random.default_rng(0), []
    for rounds, rate in ROUNDS:
        for gallery in GALLERIES:
            for noise in NOISES:
                releases = Releases(noise, rounds, rate)
                hits = simulated_hits(releases, gallery, draws, source)
                share = asdict(clopper_pearson(hits, draws))
                own = {"noise": noise, "gallery": gallery, "rounds": rounds, "rate": rate, **share}
                rows.append(own | {"exact": exact_success(releases, gallery), "ceiling": releases.success(gallery)})
    return rows


def errors(draws: int = ERROR_DRAWS) -> list[dict[str, float]]:
    """The best linear attacker on pictures of independent Gaussian pixels, scaled to norm 1 and disturbed."""
    source, rows = np.random.default_rng(1), []
    x = source.standard_normal((draws, NUMBERS))
    x *= (VARIANCE / (x * x).mean()) ** 0.5  # or the draws' own variance would move every error
    sent = x / np.linalg.norm(x, axis=1, keepdims=True)
    for noise in ERRORS:
        seen = sent + noise * source.standard_normal(x.shape)
        factor = (seen * x).sum() / (seen * seen).sum()
        error = float(((factor * seen - x) ** 2).mean())
        rows.append({"noise": noise, "error": error, "bound": Releases(noise).error(NUMBERS, VARIANCE)})
    return rows


def audited(plan: Plan) -> dict[str, Any]:
    """An audit of a plan, as what is kept of it."""
    result = perform(plan, prepare(plan)).result
    found = result.ceiling
    if found is None or found.informed is None or result.line_up.attack is None:
        raise RuntimeError(f"the audit has no ceiling to compare with: {found}")
    return {
        "level": result.verdict.level,
        "broken": BROKEN in result.flags,
        "ceiling": found.share,
        "attack": result.line_up.attack.rank_one.model_dump(),
        "informed_ceiling": found.informed_share,
        "informed": found.informed.rank_one.model_dump(),
    }


@contextmanager
def planted() -> Iterator[None]:
    """Defences that say noise 1 and clip as above, two of which do not keep it, by name while this lasts."""
    said = Gaussian(CLIP, 1.0, CLIENT)

    def quiet() -> Defence:
        """Noise of a tenth."""
        return replace(clipped_with_noise(Gaussian(CLIP, 0.1, CLIENT)), gaussian=said)

    def unclipped() -> Defence:
        """No clipping."""
        return replace(
            clipped_with_noise(said), share=lambda update, source: said.disturbed(update, source), gaussian=said
        )

    def correct() -> Defence:
        """As it says."""
        return clipped_with_noise(said)

    before = dict(defences._entries)
    for name, made in zip(PLANTED, (quiet, unclipped, correct), strict=True):
        defences.add(name)(made)
    try:
        yield
    finally:
        defences._entries = before


def audits(kept: Path) -> dict[str, dict[str, Any]]:
    """Every audit by name; those that are kept are not run again."""
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}

    def once(name: str, plan: Callable[[], Plan]) -> None:
        if name not in found:
            found[name] = audited(plan())
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, found)
            print(name, found[name]["informed"]["value"], found[name]["broken"], flush=True)

    for kind, plan in CLIENTS.items():
        for noise in LEVELS:
            rule = LocalRule(defence=f"{kind},clip={CLIP},noise={noise}")
            once(f"{kind} {noise}", lambda plan=plan, rule=rule: replace(plan, rule=rule))
    with planted():
        for name in PLANTED:
            rule = replace(SMALL.rule, defence=name)
            for seed in range(OF_EACH):
                once(f"{name} {seed}", lambda rule=rule, seed=seed: replace(SMALL, rule=rule, seed=seed))
    return found


Rows = list[dict[str, float]]
Found = Mapping[str, dict[str, Any]]


def page(rows: Rows, of_errors: Rows, found: Found, draws: int) -> str:
    """The page."""
    lines = [
        "# Do ceilings hold?",
        "",
        "    python -m benchmarks.ceiling     # hours",
        "",
        "![Ceilings against noise, with the measured shares](../images/ceiling.svg)",
        "",
        "The curve is [the ceiling](../ceiling.md) of 24 candidates, the points are [clients with noise]"
        "(#clients-with-noise); their line-ups differ in size, and the table holds their own ceilings.",
        "",
        f"{versions()}.",
        "",
        *_of_mechanism(rows, draws),
        *_of_errors(of_errors),
        *_of_clients(found),
        *_of_planted(found),
    ]
    return "\n".join(lines)


def _of_mechanism(rows: Rows, draws: int) -> list[str]:
    inside = sum(row["low"] <= row["exact"] <= row["high"] for row in rows)
    above = sum(row["low"] > row["ceiling"] for row in rows)
    points = sum(row["value"] > row["ceiling"] for row in rows)
    tight = max(row["ceiling"] / row["exact"] for row in rows)
    told = (
        (
            row["rounds"],
            row["rate"],
            row["gallery"],
            row["noise"],
            f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]",
            f"{row['exact']:.4f}",
            f"{row['ceiling']:.4f}",
        )
        for row in rows
    )
    return [
        "## The best attacker on a Gaussian mechanism",
        "",
        "Contributions of norm 1, orthogonal to each other; the attacker knows all candidates and names the likeliest. "
        f"{draws:,} draws for each row; the exact success is integrated, the interval is that of Clopper and Pearson "
        f"(95 %). Of {len(rows)} rows, {inside} hold the exact success in their interval (95 % are expected to), in "
        f"{above} the whole interval lies above the ceiling, and in {points} the measured share does. The ceiling is "
        f"at most {tight:.2f} times the exact success.",
        "",
        *table(("rounds", "sample rate", "candidates", "noise", "measured [95 %]", "exact", "ceiling"), told),
    ]


def _of_errors(rows: Rows) -> list[str]:
    below = sum(row["error"] < row["bound"] for row in rows)
    told = (
        (row["noise"], f"{row['error']:.5f}", f"{row['bound']:.5f}", f"{-10 * np.log10(row['bound']):.2f}")
        for row in rows
    )
    return [
        "## The error of an attacker who knows no pictures",
        "",
        f"Pictures of {NUMBERS:,} independent Gaussian pixels with variance {VARIANCE}, scaled to norm 1 and sent with "
        f"noise; the best linear attacker, {ERROR_DRAWS:,} draws. Below its bound lie {below} of {len(rows)} errors.",
        "",
        *table(("noise", "mean squared error", "bound", "PSNR of the bound, dB"), told),
    ]


def _of_clients(found: Found) -> list[str]:
    told = (
        (
            f"`{kind}`",
            noise,
            _rate(one["attack"]),
            f"{one['ceiling']:.1%}",
            _rate(one["informed"]),
            f"{one['informed_ceiling']:.1%}",
            "yes" if one["broken"] else "no",
        )
        for kind in CLIENTS
        for noise in LEVELS
        for one in (found[f"{kind} {noise}"],)
    )
    head = ("defence", "noise", "attack", "ceiling", "shown the candidates", "ceiling", "`defence_broken`")
    return [
        "## Clients with noise",
        "",
        f"Pictures of `samples`, clipping norm {CLIP}, 16 clients a row, `inverting_gradients,steps=20`; shares of "
        f"first ranks with their 95 % interval. `clip_noise`: the client of the demo that leaks, "
        f"`{CLIENTS['clip_noise'].model}`, one picture, buffers withheld. `dp_sgd`: `{CLIENTS['dp_sgd'].model}`, two "
        "pictures, labels known. *Shown the candidates*: the line-up of each client's first picture by an attacker who "
        "simulates the client on every candidate.",
        "",
        *table(head, told),
    ]


def _of_planted(found: Found) -> list[str]:
    does = {"quiet": "noise of a tenth", "unclipped": "no clipping", "correct": "what it says"}
    told: list[tuple[object, ...]] = []
    for name in PLANTED:
        own = [found[f"{name} {seed}"] for seed in range(OF_EACH)]
        hits = sum(one["broken"] for one in own)
        rate = clopper_pearson(hits, OF_EACH)
        informed = np.mean([one["informed"]["value"] for one in own])
        ceiling = np.mean([one["informed_ceiling"] for one in own])
        told.append(
            (does[name], OF_EACH, hits, f"{rate.low:.0%} to {rate.high:.0%}", f"{informed:.0%}", f"{ceiling:.0%}")
        )
    head = (
        "the client does",
        "audits",
        "`defence_broken`",
        "95 % interval",
        "shown the candidates, mean",
        "mean ceiling",
    )
    return [
        "## Mechanisms that are not what they say",
        "",
        f"`{SMALL.model}`, one picture of 16 x 16 pixels, {SMALL.victims} clients an audit, {OF_EACH} audits a row "
        f"with seeds 0 to {OF_EACH - 1}; each client says clipping norm {CLIP} and noise multiplier 1.",
        "",
        *table(head, told),
    ]


def _rate(rate: Mapping[str, float]) -> str:
    return f"{rate['value']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}]"


def draw(found: Mapping[str, dict[str, Any]]) -> None:
    """The figure of the audited clients."""
    points = [
        ceiling_chart.Measured(noise, Rate(**one[by]), f"{kind}, {label}")
        for kind in CLIENTS
        for by, label in (("attack", "attack"), ("informed", "shown the candidates"))
        for noise in LEVELS
        for one in (found[f"{kind} {noise}"],)
    ]
    charts.write(ceiling_chart.figure([24], Releases(1.0), points), FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=DRAWS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = audits(KEPT)
    draw(found)
    publish(page(mechanism(options.draws), errors(), found, options.draws), PAGE)


if __name__ == "__main__":
    main()
