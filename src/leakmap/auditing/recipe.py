"""What an audit runs, by name: every setup and every trial, before any network exists."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from leakmap.attacker.attacks import attacks
from leakmap.client.groups import CONTROLS, Groups
from leakmap.client_step import LocalRule
from leakmap.files import file_digest
from leakmap.plan.plan import Plan
from leakmap.problem.task import Task
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import user_code_digest
from leakmap.result.parts import Role
from leakmap.runs.trial import Trial
from leakmap.scoring.metrics import ALWAYS

ROLES: tuple[Role, ...] = ("attack", "swapped", "prior_only", "control")


def trials(plan: Plan, main: str, control: str) -> dict[str, list[Trial]]:
    """Every run of an audit, by role, from the digests of its setups.

    ``attack`` is what is judged; ``swapped`` and ``prior_only`` are its floors; ``control`` is the planted client that
    is known to leak: an architecture that leaks to this attack, in inference mode, one picture.
    """
    own = 1 if plan.control == "swapped" else 0
    base = Trial(
        main,
        plan.rule,
        plan.threat,
        plan.attack,
        seed=plan.seed,
        gallery=plan.gallery,
        metrics=(*ALWAYS, *plan.metrics),
        code=user_code_digest(plan.attack),
    )
    prior = plan.attack
    if prior.name != "prior_only":
        prior = Spec("prior_only", {"of": plan.attack.name, **plan.attack.params})
    victims = range(plan.victims)
    planted = replace(base, setup=control, rule=LocalRule(mode="eval"), group="controls", metrics=ALWAYS)
    return {
        "attack": [replace(base, client=v, swap=own) for v in victims],
        "swapped": [replace(base, client=v, swap=own + 1) for v in victims],
        "prior_only": [replace(base, client=v, swap=own, attack=prior) for v in victims],
        "control": [replace(planted, client=k) for k in range(CONTROLS)],
    }


@dataclass(frozen=True)
class Names:
    """What an audit is run on, by name, before any network exists: enough to name all of its runs.

    A name is the SHA-256 of a recipe: of pictures, specifications, seed and files, not of weights, which differ in the
    last bit between machines. Empty where code or pictures only live in memory.

    Args:
        network: The audited network.
        main: The setup with the audited network.
        control: The setup with the planted control's.
    """

    network: str = ""
    main: str = ""
    control: str = ""


def names_of(plan: Plan, task: Task, groups: Groups) -> Names:
    """The names of what an audit is run on.

    Args:
        plan: The audit.
        task: Its task.
        groups: Its pictures.

    Raises:
        UsageError: a file that the plan names is not there.
    """
    model = Spec.parse(plan.model)
    facts = {"task": asdict(task), "code": user_code_digest(task.loss), "seed": plan.seed}
    own: dict[str, Any] = {"model": asdict(model), "code of model": user_code_digest(model)}
    if plan.weights is not None:
        own["weights"] = file_digest(Path(plan.weights))
    if plan.train_epochs:
        own |= {"epochs": plan.train_epochs, "training": groups.training_digest}
    if plan.calibrate:
        own |= {"calibrated on": groups.public_digest}
    pictures = groups.digest
    network = _named(facts | own)
    leaky = {"model": asdict(Spec.parse(attacks.build(plan.attack).leaky_model))}
    return Names(
        network, _named({"network": network, "pictures": pictures}), _named(facts | leaky | {"pictures": pictures})
    )


def _named(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
