"""Which optimiser, step size, schedule, sign and total variation should gradient matching have by default?

    python -m benchmarks.descent --data npz:cifar10_subset.npz --weights cifar10_resnet20.th --out runs/descent

A race. Stage 1 runs every setting on the first 2 clients of every network and keeps the best third; stage 2 runs
these on all 8 clients, the first 2 included. On each network settings are ranked by the mean NCC (normalized
cross-correlation) of their reconstructions to the originals; the lowest mean rank over networks is chosen, ties going
to the lower worst rank. Labels are granted. Settings share clients, starts and iterations. The former default and the
published setting are kept in stage 2 whatever their rank. A run that leaves the finite numbers puts its setting last on
its network.

The truth is looked at, so the pictures must be none that a table of docs/results attacks: they are training pictures,
chosen and described in benchmarks/apart.py, and checked again by their digests. Brief training leaves them out; the
trained ResNet-20 saw them. Random weights are drawn from a seed that no table uses.

A client whose loss is below 1e-4 sends mostly rounding and would rank settings by chance: the next one takes its place.
Running statistics of untrained networks in inference mode are those of a fresh network (mean 0, variance 1), as in
audits; ResNet-18 has those of other pictures. Interrupted, the same command continues; what a changed grid shares with
an earlier one is not run again. Writes ``table.md`` there.
"""

import argparse
import itertools
import math
import multiprocessing
import re
import shlex
import signal
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track
from scipy.stats import rankdata

from benchmarks.apart import studied
from benchmarks.descent_runs import (
    CLIENTS,
    FIRST,
    FORMER,
    GRID,
    NETS,
    PUBLISHED,
    SATURATED,
    Net,
    Records,
    Run,
    Setting,
    Target,
    compute,
    read,
    runs_of,
    start,
    target_of,
)
from benchmarks.markdown import interval, publish, table
from leakmap.attacker.matching.engine import Kind
from leakmap.files import read_json


def finish(runs: list[Run], title: str, options: argparse.Namespace) -> bool:
    """Runs what is missing, up to the limit or an interruption; whether nothing is missing any more."""
    missing = [run for run in runs if read_json(run.path) is None]
    started = missing if options.limit is None else missing[: options.limit]
    if options.limit is not None:
        options.limit -= len(started)
    if not started:
        return not missing
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[runs]}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    left = len(missing)
    with (
        Progress(*columns, *times, console=Console(stderr=True), speed_estimate_period=600) as bar,
        ProcessPoolExecutor(options.workers, mp_context=context, initializer=start, initargs=(stop,)) as pool,
    ):
        task = bar.add_task(title, total=sum(map(_cost, started)), runs="")
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers inherit this and never see Ctrl-C
            pending = {pool.submit(compute, run): run for run in started}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    future.result()
                    left -= 1
                    bar.update(task, advance=_cost(pending.pop(future)), runs=f"{len(runs) - left} of {len(runs)} runs")
        except BaseException as error:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if not isinstance(error, KeyboardInterrupt):
                raise
            options.interrupted = True
    return left == 0


def _cost(run: Run) -> int:
    return run.how.steps * run.target.net.cost


@dataclass(frozen=True)
class Ranking:
    """Settings on the clients that every network has finished with each of them.

    Args:
        settings: Best first.
        nets: Titles.
        clients: Indices.
        ranks: Setting -> its rank on each network.
        records: All there are.
    """

    settings: list[Setting]
    nets: list[str]
    clients: list[int]
    ranks: dict[Setting, list[float]]
    records: Records

    def values(self, net: str, setting: Setting, name: str) -> list[float]:
        """Of each client; minus infinity where the run failed."""
        found = [self.records[net, setting, client][name] for client in self.clients]
        return [-math.inf if value is None else value for value in found]


def ranked(runs: list[Run]) -> Ranking | None:
    """Their settings by mean rank, ties to the lower worst rank; None before a client is finished."""
    records = read(runs)
    everyone = sorted({run.client for run in runs})
    settings = list(dict.fromkeys(run.setting for run in runs))
    nets = list(dict.fromkeys(run.target.net.title for run in runs))
    pairs = list(itertools.product(nets, settings))
    clients = [c for c in everyone if all((net, setting, c) in records for net, setting in pairs)]
    if not clients:
        return None
    draft = Ranking(settings, nets, clients, {}, records)
    by_net = [rankdata([-statistics.fmean(draft.values(net, s, "ncc")) for s in settings]) for net in nets]
    ranks = {setting: [float(of[i]) for of in by_net] for i, setting in enumerate(settings)}
    ordered = sorted(settings, key=lambda s: (statistics.fmean(ranks[s]), max(ranks[s])))
    return replace(draft, settings=ordered, ranks=ranks)


def kept(first: Ranking) -> list[Setting]:
    """What stage 2 runs: the best third, and the two references."""
    best = first.settings[: math.ceil(len(first.settings) / 3)]
    return best + [s for s in (FORMER, PUBLISHED) if s in first.settings and s not in best]


def page(runs: dict[str, list[Run]], targets: list[Target], options: argparse.Namespace) -> str:
    """Markdown."""
    rankings = {title: ranked(of) for title, of in runs.items()}
    records = {key: record for of in runs.values() for key, record in read(of).items()}
    lines = [f"    python -m benchmarks.descent {_arguments()}", ""]
    for title, found in rankings.items():
        if found is None:
            lines += [f"{title}: no client is finished with every setting on every network yet.", ""]
            continue
        of = CLIENTS if title == "Stage 2" else FIRST
        lines += [f"## {title}: {len(found.settings)} settings, {len(found.clients)} of {of} clients each", ""]
        rows = []
        for setting in found.settings:
            cells = [_cell(found, net, setting) for net in found.nets]
            ranks = found.ranks[setting]
            rows.append([setting, f"{statistics.fmean(ranks):.1f}", f"{max(ranks):g}", *cells])
        lines += table(["setting", "mean rank", "worst", *found.nets], rows)
        lines += ["NCC, and PSNR in dB: means over clients.", ""]
    if (last := rankings.get("Stage 2")) is not None:
        lines += [*_chosen(last), *_plateaus(last, targets, options)]
    return "\n".join([*lines, *_facts(records, targets, options)]) + "\n"


def _arguments() -> str:
    """The arguments as typed, without folders of this machine."""
    return shlex.join(re.sub(r"(^|[:=])[~/]\S*/", r"\1", argument) for argument in sys.argv[1:])


def _cell(found: Ranking, net: str, setting: Setting) -> str:
    ncc, psnr = (statistics.fmean(found.values(net, setting, name)) for name in ("ncc", "psnr"))
    return f"{ncc:.3f}, {psnr:.1f}" if math.isfinite(ncc) else "failed"


def _chosen(found: Ranking) -> list[str]:
    """The chosen setting against the former default and against the best of each network."""
    chosen = found.settings[0]
    rows = []
    for net in found.nets:
        best = max(found.settings, key=lambda s: statistics.fmean(found.values(net, s, "ncc")))
        cells = [
            _difference(found.values(net, chosen, name), found.values(net, other, name), form)
            for other in (FORMER, best)
            for name, form in (("ncc", "+.3f"), ("psnr", "+.1f"))
        ]
        rows.append([net, *cells[:2], best, *cells[2:]])
    return [
        f"**Chosen: {chosen}.** Below, chosen − other, paired over clients, with 95 % intervals. Chosen on these very "
        "clients, it is flattered by a comparison with the former default, the best of a network still more so.",
        "",
        *table(["network", "− former: NCC", "PSNR", "best here", "− best: NCC", "PSNR"], rows),
    ]


def _difference(left: list[float], right: list[float], form: str) -> str:
    values = [a - b for a, b in zip(left, right, strict=True)]
    return interval(values, form) if all(map(math.isfinite, values)) else "failed runs"


def _plateaus(found: Ranking, targets: list[Target], options: argparse.Namespace) -> list[str]:
    """What stopping on a plateau of the matching term would have saved, and at what price."""
    chosen, former = found.settings[0], FORMER
    rows = []
    settings = {f"{chosen} (chosen)": [chosen], f"{former} (former)": [former], "all of stage 2": found.settings}
    for title, those in settings.items():
        for patience in options.patience:
            cells = []
            for target in targets:
                keys = itertools.product([target.net.title], those, found.clients)
                curves = [curve for key in keys if (curve := found.records[key]["curve"])]
                stops = [stopped(curve, target.net.iterations(options.effort), patience) for curve in curves]
                saved, price = zip(*stops, strict=True) if stops else ([math.nan], [math.nan])
                cells.append(f"{statistics.fmean(saved):.0%} ({statistics.median(price):.2f})")
            rows.append([title, patience, *cells])
    return [
        "Stopping once the best matching term has not fallen by 1 % within the last p iterations: share of iterations "
        "saved, and in brackets the median of best term when stopped / best term of the whole run.",
        "",
        *table(["setting", "p", *found.nets], rows),
    ]


def stopped(curve: Sequence[float | None], steps: int, patience: int) -> tuple[float, float]:
    """``(share of the iterations saved, best term then over best term in the end)``.

    A curve is evenly spaced but may leave iterations out; patience is rounded to its points.
    """
    stride = max(1, round(steps / len(curve)))
    best = list(itertools.accumulate((math.inf if term is None else term for term in curve), min))
    back = max(1, round(patience / stride))
    for i in range(back, len(best)):
        if best[i] > 0.99 * best[i - back]:
            return max(0.0, 1 - (i * stride + 1) / steps), best[i] / max(best[-1], 1e-30)
    return 0.0, 1.0


def _facts(records: Records, targets: list[Target], options: argparse.Namespace) -> list[str]:
    failed = sum(record["failure"] is not None for record in records.values())
    versions = sorted({", ".join(f"{k} {v}" for k, v in record["versions"].items()) for record in records.values()})
    rows = []
    for target in targets:
        net = target.net
        seconds = [record["seconds"] for (title, _, _), record in records.items() if title == net.title]
        usual = f"{statistics.median(seconds):.1f}" if seconds else "–"
        iterations = net.iterations(options.effort)
        rows.append([net.title, f"`{target.model}`", net.mode, net.batch, iterations, target.saturated, usual])
    total = sum(record["seconds"] for record in records.values())
    return [
        *table(["network", "model", "mode", "B", "iterations", "passed over", "core s a run"], rows),
        f"Passed over: clients whose loss is below {SATURATED:g}. {len(records)} runs, {failed} of them failed; "
        f"{total / 60:.0f} minutes of one core in all. {'; '.join(versions) or 'Nothing was run yet'}.",
        *(f"{net.title} left out: no --weights were given." for net in NETS if _lacking(net, options)),
    ]


def _lacking(net: Net, options: argparse.Namespace) -> bool:
    return net.weights and options.weights is None


def race(targets: list[Target], options: argparse.Namespace) -> dict[str, list[Run]]:
    """Both stages, as far as asked for and as far as the limit goes: their runs, done or not."""
    settings = [setting for setting in GRID if setting == FORMER or re.search(options.settings, str(setting))]
    if not targets:
        raise SystemExit("No network is left: see --nets and --weights.")
    runs = {"Stage 1": (first := runs_of(targets, settings, min(FIRST, options.clients), options))}
    whole = len(read(first)) == len(first) if options.stage == "2" else finish(first, "stage 1", options)
    if options.stage == "2" and not whole:
        raise SystemExit("Stage 1 is not finished with these networks, settings and effort: run it first.")
    ranking = ranked(first)
    if options.stage == "1" or not whole or ranking is None:
        return runs
    second = runs_of(targets, kept(ranking), options.clients, options)
    finish(second, "stage 2", options)
    return runs | {"Stage 2": second}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="With a training split.")
    parser.add_argument("--weights", help="Of ResNet-20 on CIFAR-10; without them it is left out.")
    parser.add_argument("--resnet20", default="tests/models/akamaster.py:resnet20", help="Its architecture.")
    parser.add_argument("--out", type=Path, default=Path("runs/descent"))
    parser.add_argument("--stage", choices=("1", "2", "all"), default="all")
    parser.add_argument("--workers", type=int, default=1, help="Processes of one thread each.")
    parser.add_argument("--clients", type=int, choices=range(1, CLIENTS + 1), default=CLIENTS, metavar="N")
    parser.add_argument("--effort", type=float, default=1.0, help="Factor of all iterations.")
    parser.add_argument("--nets", default="", help="Regular expression: only networks whose title matches.")
    parser.add_argument("--settings", default="", help="Regular expression: only the former default and what matches.")
    parser.add_argument("--limit", type=int, help="Do at most so many runs now.")
    parser.add_argument("--patience", type=int, nargs="+", default=[25, 50, 100], help="Iterations, for that table.")
    parser.add_argument("--engine", choices=get_args(Kind), help="Of gradient matching; its own default if not given.")
    parser.set_defaults(interrupted=False)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pictures, used = studied(options.data)
    nets = [net for net in NETS if re.search(options.nets, net.title) and not _lacking(net, options)]
    console = Console(stderr=True)
    targets = [
        target_of(net, pictures, used, options) for net in track(nets, "networks", console=console, transient=True)
    ]
    publish(page(race(targets, options), targets, options), options.out / "table.md")
    if options.interrupted:
        raise SystemExit("Interrupted; the same command continues.")


if __name__ == "__main__":
    main()
