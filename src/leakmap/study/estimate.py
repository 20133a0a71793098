"""How long a study will take, before it runs."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from leakmap.attacker.attacks import attacks
from leakmap.auditing.estimate import Pace, fits_missing, step_seconds
from leakmap.auditing.prepare import gather
from leakmap.auditing.recipe import ROLES
from leakmap.errors import LeakmapError
from leakmap.models.network import build_network
from leakmap.plan.plan import Plan, Progress
from leakmap.runs.fitting import FOLDER, path_of, recipe
from leakmap.runs.setup import Setup
from leakmap.study.file import Study
from leakmap.study.index import Prices, Status
from leakmap.study.planning import Planned, only, pictures_of
from leakmap.study.standing import Standing, groups_of, standing, status_of

TIMED = 24
"""Networks that are timed; the others are taken to cost their mean."""


def study_status(
    study: Study,
    folder: Path,
    *,
    filters: Sequence[str] = (),
    progress: Progress = lambda what, fraction: None,
) -> Status:
    """Says where a study stands and estimates how long the rest takes; runs nothing.

    Args:
        study: The study.
        folder: Where its results lie.
        filters: ``AXIS=VALUE``: only cells that stand there.
        progress: Called with what is being done and the finished fraction.

    Raises:
        UsageError: a cell cannot be run as it is written, or there is no such axis or value.
        StoreError: the folder holds results of another schema.
    """
    whole = standing(study, folder, progress)
    found = replace(whole, planned=tuple(only(whole.planned, filters)))
    return status_of(study, found, seconds_left(found, prices(found, folder, progress)))


def prices(standing: Standing, folder: Path, progress: Progress = lambda what, fraction: None) -> Prices:
    """What the missing runs, and what attacks are fitted to before, will take.

    By the runs of the same cell that are finished; for cells without, by timing one client step of the network and
    counting the evaluations of the attack. What an attack stops early is not foreseen.

    Args:
        standing: What is finished and missing.
        folder: Where the results of the study lie.
        progress: Called with what is being done and the finished fraction.
    """
    missing = set(standing.missing)
    open_cells = {
        place: one for place, one in enumerate(standing.planned) if any(trial.key in missing for trial in one.all())
    }
    timed: dict[tuple[object, ...], tuple[float, float] | None] = {}
    for number, one in enumerate(open_cells.values()):
        key = _timed_as(one.cell.plan)
        if key not in timed:
            progress("timing networks", number / len(open_cells))
            timed[key] = _seconds_of(one) if len(timed) < TIMED else None
    known = [seconds for seconds in timed.values() if seconds is not None] or [(0.0, 0.0)]
    usual = (statistics.fmean(step for step, _ in known), statistics.fmean(fit for _, fit in known))
    each, fits = np.full((len(standing.planned), len(ROLES)), np.nan), {}
    for place, one in open_cells.items():
        step, fit = timed[_timed_as(one.cell.plan)] or usual
        for role, trials in enumerate(one.trials.values()):
            own = [trial for trial in trials if trial.key in missing]
            missing.difference_update(trial.key for trial in own)
            if not own:
                continue
            spent = [standing.seconds[t.key] for t in trials if t.key in standing.seconds]
            each[place, role] = statistics.fmean(spent) if spent else Pace(step).seconds(trials[0])
            if (how := attacks.build(own[0].attack)).fits:
                names = {path_of(Path(FOLDER), recipe(trial, how)) for trial in own}
                fits |= {str(name): fit for name in names if not (folder / name).is_file()}
    return Prices(each.reshape(-1), fits)


def seconds_left(standing: Standing, found: Prices) -> float:
    """Seconds that the missing runs, and what attacks are fitted to before, will take one after the other.

    Args:
        standing: What is finished and missing.
        found: Their prices.
    """
    missing, groups = set(standing.missing), groups_of(standing.planned)
    return sum(float(found.seconds[groups[key]]) for key in missing) + sum(found.fits.values())


def _timed_as(plan: Plan) -> tuple[object, ...]:
    fits = attacks.build(plan.attack).fits and (str(plan.attack), plan.threat)
    return plan.model, plan.data, plan.image_size, plan.batch_size, plan.rule, fits


def _seconds_of(one: Planned) -> tuple[float, float] | None:
    """Seconds of one client's local training, and of fitting its attack; None where it cannot be run."""
    plan = one.cell.plan
    try:
        groups, task = gather(plan, pictures_of(plan))
        setup = Setup(build_network(task, plan.model, seed=plan.seed), groups, one.names.main)
        trial = one.trials["attack"][0]
        step = step_seconds(trial, setup)
        return step, sum(Pace(step).fitting(cost) for _, cost in fits_missing([trial], {setup.digest: setup}, None))
    except LeakmapError:
        return None
