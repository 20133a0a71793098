"""What can be told of a network's leakage before it is attacked?

    python -m benchmarks.predictors --data DIR [--map FOLDER] [--only CELL ...] [--out FOLDER] [--page]

DIR is that of ``benchmarks.atlas``, which measured what is to be told. A configuration takes about half a
minute of one core, all of them 50 minutes. Each is stored when it is finished, and the same command continues.
With ``--page`` what is measured so far is compared with the map, and written to docs/results/predictors.md and to
src/leakmap/inspection/predictors.json, which ``leakmap inspect --measure`` reads.

Configurations are the cells of the map in which a client sends the gradient of one picture without a defence and keeps
its buffers: networks drawn at random, briefly and fully trained, in inference and in training mode. Predictors see
public pictures that no attack of the map was judged by; the outcome is the mean relative rank of the true pictures by
the attack that speaks for the cell. One family of architectures is left out at a time: a line from the predictor's rank
to the outcome is fitted to the others and read for the one left out, without its level. With it, readings of one
that says nothing would be turned against the outcomes, as the mean of the others is higher where a family of low ranks
is left out. The correlation is that of all such readings with the outcomes, Spearman's; intervals are a bootstrap over
configurations.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy import stats

from benchmarks.atlas import sides_of
from benchmarks.atlas_cells import CELLS, Cell
from benchmarks.cases import RECORDS, Entry, run_cases
from benchmarks.markdown import ranged, table, versions
from leakmap.files import read_json, write_json
from leakmap.inspection.predicted import FILE, Judged, Predicted
from leakmap.inspection.predictors import NULL, PREDICTORS, Known
from leakmap.inspection.reading import read_traits
from leakmap.observation.contents import Public
from leakmap.plan.plan import Progress

PAGE = Path("docs/results/predictors.md")
COMMAND = "python -m benchmarks.predictors --data DIR --page"
DRAWS, CHANCE = 2000, 500
"""Of the bootstrap, and of random numbers as a predictor."""
Values = NDArray[np.float64]


def chosen(cell: Cell) -> bool:
    """Whether a cell is a configuration."""
    return cell.count == 1 and cell.rule.share == "gradient" and cell.rule.defence == "none" and not cell.buffers


CONFIGURATIONS = {key: cell for key, cell in CELLS.items() if chosen(cell)}


FAMILIES = {
    "resnet": ("resnet",),
    "transformer": ("vit", "deit", "xcit", "pvt"),
    "mobile": ("mobilenet", "efficientnet", "lcnet", "ghostnet", "tinynet", "hardcorenas", "semnasnet", "shufflenet"),
    "modern": ("convnext", "edgenext", "poolformer", "mobilevit"),
}
"""Family -> how names of its networks begin; any other network is its own."""


def family(cell: Cell) -> str:
    """What is left out together."""
    if cell.weights == "full":
        return "resnet"
    name = cell.model.partition(",")[0].rpartition("/")[2]
    return next((one for one, names in FAMILIES.items() if name.startswith(names)), name.partition("_")[0])


def measured(key: str, data: Path, told: Progress) -> Entry:
    """Every predictor of a configuration, with the seconds that it took."""
    cell = CONFIGURATIONS[key]
    sides = sides_of(cell, data)
    traits = read_traits(sides.network)
    public = Public(sides.pool.public, sides.pool.public_y)
    known = Known(sides.network, traits, cell.rule, public)
    values, seconds = {}, {}
    for place, (name, predictor) in enumerate(PREDICTORS.items()):
        began = time.process_time()
        values[name] = predictor.measure(known)
        seconds[name] = time.process_time() - began
        told(key, (place + 1) / len(PREDICTORS))
    return {"values": values, "seconds": seconds, "versions": versions()}


def read_out(values: Values, outcomes: Values, families: Sequence[str], *, level: bool = False) -> Values:
    """What is told of each configuration by a line that was fitted to all other families.

    Args:
        values: Of the predictor.
        outcomes: What is to be told.
        families: Of each configuration.
        level: Whether the mean outcome of the others is added, which the family left out pulls the other way.
    """
    told = np.empty(len(values))
    names = np.asarray(families)
    for one in sorted(set(families)):
        own, rest = names == one, names != one
        ordered = np.sort(values[rest])
        places = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
        slope = np.polyfit(places[rest], outcomes[rest], 1)[0] if np.ptp(ordered) else 0.0
        told[own] = level * outcomes[rest].mean() + slope * (places[own] - places[rest].mean())
    return told


def spearman(one: Values, other: Values) -> float:
    """Spearman's correlation; 0 where one does not vary."""
    if not np.ptp(one) or not np.ptp(other):
        return 0.0
    return float(stats.spearmanr(one, other).statistic)


def area(told: Values, leaks: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often of a pair the one that leaks is told to leak more; .5 by chance."""
    if leaks.all() or not leaks.any():
        return 0.5
    ranks = stats.rankdata(-told)
    count = int(leaks.sum())
    return float((ranks[leaks].sum() - count * (count + 1) / 2) / (count * (len(leaks) - count)))


def judged(values: Values, outcomes: Values, leaks: NDArray[np.bool_], families: Sequence[str]) -> Judged:
    """A predictor beside the outcomes, with intervals; whether it is accepted is not decided yet."""
    told = read_out(values, outcomes, families)
    source = np.random.default_rng(3)
    draws = [source.integers(len(told), size=len(told)) for _ in range(DRAWS)]

    def interval(of: Sequence[float]) -> tuple[float, float]:
        low, high = np.percentile(of, (2.5, 97.5))
        return float(low), float(high)

    plain = spearman(values, outcomes)
    return Judged(
        plain,
        (spearman(told, outcomes), *interval([spearman(told[d], outcomes[d]) for d in draws])),
        (area(told, leaks), *interval([area(told[d], leaks[d]) for d in draws])),
        False,
        tuple(sorted(zip(map(float, values), map(float, outcomes), strict=True))),
    )


def compared(found: Mapping[str, Entry], outcomes: Mapping[str, Entry]) -> dict[str, Judged]:
    """Every predictor beside what attacks reached; accepted is what surely tells something, more than the null ones.

    Args:
        found: Configurations with their values.
        outcomes: Cells of the map.
    """
    keys = [key for key in found if key in outcomes]
    ranks = [outcomes[key]["attacks"][outcomes[key]["speaks"]]["whole"]["relative"] for key in keys]
    outcome = np.array([value for value, _, _ in ranks])
    leaks = np.array([high < 0.5 for _, _, high in ranks])
    families = [family(CELLS[key]) for key in keys]
    answers = {
        name: judged(np.array([found[key]["values"][name] for key in keys]), outcome, leaks, families)
        for name in PREDICTORS
    }
    bar = max(answers[name].spearman[0] for name in NULL)
    return {
        name: Judged(
            one.plain,
            one.spearman,
            one.area,
            name not in NULL and one.spearman[1] > 0 and one.spearman[0] > bar,
            one.points,
        )
        for name, one in answers.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--map", type=Path, default=RECORDS / "atlas", help="Where the map was measured.")
    given, _ = parser.parse_known_args()
    run_cases(
        parser,
        list(CONFIGURATIONS),
        PAGE,
        lambda key, own, told: measured(key, own.data, told),
        lambda found: page(found, predicted(given.map, found), _outcomes(given.map, found)),
        lambda found: write_json(FILE, json.loads(TypeAdapter(Predicted).dump_json(predicted(given.map, found)))),
    )


def _outcomes(folder: Path, found: Mapping[str, Entry]) -> dict[str, Entry]:
    """The cells of the map that belong to configurations."""
    return {key: entry for key in found if isinstance(entry := read_json(folder / f"{key}.json"), dict)}


def by_chance(outcomes: Mapping[str, Entry], *, level: bool) -> tuple[float, float, float]:
    """What random numbers come to as a predictor: the mean correlation, and where 95 % of them lie."""
    source = np.random.default_rng(5)
    outcome, families = (
        np.array([_rank(entry) for entry in outcomes.values()]),
        [family(CELLS[key]) for key in outcomes],
    )
    found = [
        spearman(read_out(source.standard_normal(len(outcome)), outcome, families, level=level), outcome)
        for _ in range(CHANCE)
    ]
    return float(np.mean(found)), *map(float, np.percentile(found, (2.5, 97.5)))


def _rank(entry: Entry) -> float:
    """The mean relative rank by the attack that speaks."""
    return entry["attacks"][entry["speaks"]]["whole"]["relative"][0]


def predicted(folder: Path, found: Mapping[str, Entry]) -> Predicted:
    """What ``leakmap inspect --measure`` reads."""
    outcomes = _outcomes(folder, found)
    families = {family(CELLS[key]) for key in outcomes}
    some = next(iter(found.values()))
    return Predicted(COMMAND, some["versions"], len(outcomes), len(families), compared(found, outcomes))


def page(found: Mapping[str, Entry], told: Predicted, outcomes: Mapping[str, Entry]) -> str:
    """The page."""
    chance, with_level = (ranged(by_chance(outcomes, level=level), ".2f") for level in (False, True))
    answers = told.predictors
    accepted = [name for name, one in answers.items() if one.accepted]
    seconds = {name: np.mean([entry["seconds"][name] for entry in found.values()]) for name in PREDICTORS}
    verdict = (
        f"**Accepted: {', '.join(f'`{name}`' for name in accepted)}.** `leakmap inspect MODEL --measure` takes them."
        if accepted
        else "**None is accepted:** `leakmap inspect MODEL --measure` says so."
    )
    lines = [
        "# What tells leakage beforehand",
        "",
        f"    {COMMAND}     # 50 minutes of one core",
        "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().split("\n"),
        "",
        verdict,
        "Accepted is a predictor whose interval leaves out 0 and whose correlation is above those of the number of "
        "parameters and of the rules of traits.",
        "",
        f"Random numbers come to a correlation of {chance}; with the level of the line, to {with_level}.",
        "",
        f"{told.configurations} configurations of {told.families} families. {told.versions}.",
        "",
    ]
    rows = [
        (
            f"`{name}`",
            PREDICTORS[name].words,
            f"{one.plain:+.2f}",
            ranged(one.spearman, ".2f"),
            ranged(one.area, ".2f"),
            f"{seconds[name]:.1f}",
            "yes" if one.accepted else "null" if name in NULL else "no",
        )
        for name, one in sorted(answers.items(), key=lambda item: -item[1].spearman[0])
    ]
    head = ("predictor", "", "with the relative rank", "family left out", "AUC, above chance", "seconds", "accepted")
    lines += table(head, rows)
    lines += [
        "*With the relative rank* is the plain correlation over all configurations; a high relative rank is little "
        "leakage. *Seconds* are of one core and a network; what several predictors share is counted where it is first "
        "needed. Sources: " + "; ".join(f"`{name}`: {p.source}" for name, p in PREDICTORS.items()) + ".",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
