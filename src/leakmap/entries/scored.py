"""From attached pictures to figures: everything but the attacks is computed again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from leakmap.attacker.reconstruction import Reconstruction
from leakmap.auditing.conclude import conclude
from leakmap.auditing.perform import probe
from leakmap.auditing.prepare import Prepared
from leakmap.auditing.recipe import in_order, trials
from leakmap.entries.entry import RunOf, expected_names, tensor_name
from leakmap.errors import StoreError
from leakmap.plan.plan import Plan
from leakmap.result.clients import Role
from leakmap.result.result import Result
from leakmap.runs.run import held_by, judged, places_of, run
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Outcome, Trial


@dataclass(frozen=True)
class Named:
    """A run with its role.

    Args:
        role: What it is for.
        trial: The run.
        setup: What it points to.
    """

    role: Role
    trial: Trial
    setup: Setup

    @property
    def tensor(self) -> str:
        """What its pictures are called."""
        return tensor_name(self.role, self.trial.client)


def named_runs(plan: Plan, prepared: Prepared) -> list[Named]:
    """Every run of an audit with its role, in order."""
    planned = trials(plan, *prepared.digests)
    roles: dict[str, Role] = {trial.key: role for role, of_role in planned.items() for trial in of_role}  # type: ignore[misc]
    return [
        Named(role := roles[trial.key], trial, prepared.control if role == "control" else prepared.main)
        for trial in in_order(planned)
    ]


def rescored(plan: Plan, prepared: Prepared, runs: Sequence[RunOf], pictures: Mapping[str, Tensor]) -> Result:
    """What an audit comes to with these reconstructions: scores, floors, line-ups, verdict.

    Args:
        plan: The audit.
        prepared: Its setups.
        runs: What became of each run.
        pictures: Tensor name -> ``(N, C, H, W)`` in [0, 1], matched to the true pictures.

    Raises:
        StoreError: the runs or the pictures are not those of the plan.
    """
    wanted = named_runs(plan, prepared)
    if [(one.role, one.trial.client) for one in wanted] != [(one.role, one.client) for one in runs]:
        raise StoreError(f"The entry lists {len(runs)} runs; its plan has {len(wanted)}, or others. Make it again.")
    if set(pictures) != expected_names(runs):
        raise StoreError("The attached file holds other reconstructions than the entry lists; make the entry again.")
    outcomes = {
        one.trial.key: _outcome(one, told, pictures.get(one.tensor)) for one, told in zip(wanted, runs, strict=True)
    }
    check = probe(plan, prepared)
    return conclude(plan, prepared, check, trials(plan, *prepared.digests), outcomes, 0.0).result


def _outcome(one: Named, told: RunOf, pictures: Tensor | None) -> Outcome:
    if told.failure is not None:
        return Outcome(one.trial, failure=told.failure)
    if pictures is None:
        return run(one.trial, one.setup)  # an informed line-up holds no reconstruction
    places = places_of(told.last, one.trial, one.setup)
    truth = held_by(one.trial, one.setup, places)
    if pictures.shape != truth.pictures.shape:
        raise StoreError(
            f"{one.tensor} has shape {tuple(pictures.shape)}, and its client's pictures {tuple(truth.pictures.shape)}; "
            "make the entry again."
        )
    # The labels that the attack worked with are not attached; no figure of an entry rests on them.
    score, deranged = judged(Reconstruction(pictures, truth.y, float("nan"), last=told.last), one.trial, one.setup)
    return Outcome(one.trial, score, used=frozenset(told.used), deranged=deranged)
