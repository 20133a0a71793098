"""A tuning in one call."""

from collections.abc import Sequence
from pathlib import Path

from leakmap.auditing.estimate import Foretold
from leakmap.auditing.prepare import prepare
from leakmap.auditing.search import search
from leakmap.client import REHEARSED
from leakmap.errors import BadSetting
from leakmap.plan.plan import BUDGET, Plan, Progress
from leakmap.plan.tuned import Objective, Tuned
from leakmap.registry.spec import Spec
from leakmap.runs.runner import HERE, Runner
from leakmap.runs.store import Store


def tune(
    plan: Plan,
    out: Path | str | None = None,
    *,
    rehearsals: int | None = None,
    specs: Sequence[Spec] = (),
    budget: int = BUDGET,
    objective: Objective = "ncc",
    oracle: bool = False,
    runner: Runner = HERE,
    progress: Progress = lambda what, fraction: None,
    foretold: Foretold | None = None,
) -> Tuned:
    """Chooses an attack's settings on public pictures with simulated clients, before any victim is attacked.

    The first choice is the default, with what the user fixed; so the result is never worse on the rehearsals. What an
    attack costs, its steps and restarts, is not searched.

    Args:
        plan: The audit to come.
        out: Folder for ``tuned.json`` and the rehearsals, where the same call goes on; None keeps nothing.
        rehearsals: Simulated public clients; None for :data:`leakmap.client.REHEARSED`.
        specs: Attacks to tune in turn, each with the settings that stay fixed; by default the plan's, or the members of
            the suite that apply.
        budget: Settings to try of each attack. Raised later, the same tuning goes on.
        objective: ``ncc`` (normalized cross-correlation), ``ssim`` or ``psnr``; its mean is maximised.
        oracle: Tune on the victims themselves: an upper bound, and called ``oracle-tuned`` for good.
        runner: Where to run; without a folder, this process.
        progress: Called with what is being done and the finished fraction.
        foretold: Called with what is about to be run and how long that may take, where something is missing.

    Raises:
        UsageError: something of the plan does not fit, there is nothing to tune or to rehearse on, or every rehearsal
            failed.
        StoreError: the folder holds another tuning.
        KeyboardInterrupt: after storing what is finished.
    """
    if oracle and rehearsals is not None:
        raise BadSetting("--oracle tunes on the victims themselves; leave --rehearsals out.")
    public = 0 if oracle else REHEARSED if rehearsals is None else rehearsals
    return search(
        plan,
        prepare(plan, device=runner.here.device, rehearsals=public, progress=progress),
        None if out is None else Store(Path(out)),
        specs=specs,
        budget=budget,
        objective=objective,
        oracle=oracle,
        runner=runner,
        progress=progress,
        foretold=foretold,
    )
