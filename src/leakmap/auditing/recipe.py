"""What an audit runs, by name: every setup and every trial, before any network exists.

A name is the SHA-256 of a recipe: of pictures, specifications, seed, files and all code of the user's own that takes
part, so that what was computed with other code never counts as done.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from leakmap.attacker.attacks import attacks
from leakmap.client.groups import CONTROLS, Groups
from leakmap.defences import defence_of
from leakmap.files import file_digest
from leakmap.local_rule import LocalRule
from leakmap.observation.observation import Observation
from leakmap.plan.plan import Plan
from leakmap.problem.task import Task
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import user_code_digest
from leakmap.result.clients import Role
from leakmap.runs.trial import Trial
from leakmap.scoring.metrics import ALWAYS
from leakmap.seeds import derive

ROLES: tuple[Role, ...] = ("attack", "swapped", "prior_only", "informed", "control")


def trials(plan: Plan, main: str, control: str) -> dict[str, list[Trial]]:
    """Every run of an audit, by role, from the digests of its setups.

    ``attack`` is what is judged; ``swapped`` and ``prior_only`` are its floors; ``control`` is the planted client that
    is known to leak: an architecture that leaks to this attack, in inference mode unless buffers are read, one picture.
    ``informed`` stands beside a ceiling, so it is run where a defence with Gaussian noise has one.
    """
    how = attacks.build(plan.attack)
    # What leaks without public pictures needs none, and then nothing is fitted and rehearsed for the control alone.
    threat = plan.threat if "public" in how.needs else replace(plan.threat, public=0)
    # An attack that is fitted is proved on what it reads of the audited clients: buffers where they move and come back.
    buffers = bool(how.fits) and threat.buffers and threat.public != 0
    rule = LocalRule(mode=plan.rule.mode if buffers else "eval")
    planted = replace(_trial(plan, control, plan.attack), rule=rule, threat=threat, group="controls")
    return {**trials_of_clients(plan, main), "control": [replace(planted, client=k) for k in range(CONTROLS)]}


def trials_of_clients(plan: Plan, main: str) -> dict[str, list[Trial]]:
    """The runs on the audited clients, by role, from the digest of their setup; the attack is not built for it."""
    own = 1 if plan.null else 0
    base = replace(_trial(plan, main, plan.attack), metrics=(*ALWAYS, *plan.metrics))
    prior = plan.attack
    if prior.name != "prior_only":
        prior = Spec("prior_only", {"of": plan.attack.name, **plan.attack.params})
    victims = range(plan.victims)
    gaussian = defence_of(plan.rule.defence).gaussian
    noisy = gaussian is not None and gaussian.noise > 0
    return {
        "attack": [replace(base, client=v, swap=own) for v in victims],
        "swapped": [replace(base, client=v, swap=own + 1, scoring="line-ups") for v in victims],
        "prior_only": [replace(base, client=v, swap=own, attack=prior, scoring="metrics") for v in victims],
        "informed": [replace(base, client=v, swap=own, scoring="informed") for v in (victims if noisy else ())],
    }


def in_order(planned: Mapping[str, Sequence[Trial]]) -> list[Trial]:
    """The runs of an audit client by client, the planted control last: what is interrupted has whole clients."""
    clients = zip(*(planned[role] for role in ROLES[:-1] if planned[role]), strict=True)
    return [trial for of_client in clients for trial in of_client] + list(planned["control"])


def rehearsals(
    plan: Plan, setup: str, attack: Spec, group: Literal["victims", "rehearsals"], clients: int
) -> list[Trial]:
    """The runs of an attack on clients to tune it on, from the digest of their setup.

    Simulated clients have a seed of their own: nothing is tuned to the starts of the audit.
    """
    seed = plan.seed if group == "victims" else derive(plan.seed, "rehearsals")
    return [replace(_trial(plan, setup, attack), group=group, seed=seed, client=client) for client in range(clients)]


def _trial(plan: Plan, setup: str, attack: Spec) -> Trial:
    """The first victim's, with the metrics that every run has."""
    return Trial(
        setup, plan.rule, plan.threat, attack, seed=plan.seed, gallery=plan.gallery, code=user_code_digest(attack)
    )


@dataclass(frozen=True)
class Names:
    """What an audit is run on, by name, before any network exists: enough to name all of its runs.

    Weights that are drawn or trained are not part of a name, as they differ in the last bit between machines. A name is
    empty where code or pictures only live in memory.

    Args:
        network: The audited network.
        main: The setup with the audited network.
        control: The setup with the planted control's.
    """

    network: str = ""
    main: str = ""
    control: str = ""


def names_of(plan: Plan, task: Task, groups: Groups, captured: Sequence[Observation] = ()) -> Names:
    """The names of what an audit is run on.

    Args:
        plan: The audit.
        task: Its task.
        groups: Its pictures.
        captured: What the clients really sent, if they are not simulated.

    Raises:
        UsageError: a file that the plan names is not there.
    """

    def shared(of: Task) -> dict[str, Any]:
        return {"task": asdict(of), "code of loss": user_code_digest(of.loss), "seed": plan.seed}

    own = shared(task) | _of_model(Spec.parse(plan.model))
    if plan.weights is not None:
        own["weights"] = file_digest(Path(plan.weights))
    if plan.train_epochs:
        own |= {"epochs": plan.train_epochs, "training": groups.training_digest}
    if plan.calibrate:
        own |= {"calibrated on": groups.reference_digest}
    pictures = {"pictures": groups.digest}
    network = _named(own)
    main: dict[str, Any] = {"network": network} | pictures
    if captured:
        main["captured"] = [observation.digest() for observation in captured]
    leaky = _of_model(Spec.parse(attacks.build(plan.attack).leaky_model))
    return Names(network, _named(main), _named(shared(task.leaky()) | leaky | pictures))


def _of_model(spec: Spec) -> dict[str, Any]:
    return {"model": asdict(spec), "code of model": user_code_digest(spec)}


def _named(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
