"""A plan as single values: what options, study files and the printed command write."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, reduce
from typing import Any, get_origin

from leakmap.errors import BadSetting
from leakmap.plan.plan import CLIENT, Plan, usual_victims
from leakmap.registry.declared import Declared, Entry, built, leaves
from leakmap.registry.spec import Spec

LOCAL_STEPS = Entry("rule.local_steps", int, 1, Declared("Mini-batches in an epoch.", CLIENT, table="client"))
"""What people write in place of ``rule.batch_size``; no field."""
_SIZE = "rule.batch_size"
CAPTURED = ("data", "weights", "client")
"""Tables of what a captured update tells itself."""


@cache
def settings(of: type = Plan) -> tuple[Entry, ...]:
    """All that is written of a plan, in the order of its declaration: every field, and the local steps."""
    found: list[Entry] = []
    for entry in leaves(of):
        found += [entry, LOCAL_STEPS] if entry.path == _SIZE else [entry]
    return tuple(found)


def plan_of(values: Mapping[str, Any]) -> Plan:
    """A plan of the values of its :func:`settings`, by path; those that are left out are as :func:`usual`.

    Raises:
        UsageError: a value is impossible, or the values do not go together.
    """
    held = {entry.path: _read(entry.hint, values[entry.path]) for entry in settings() if entry.path in values}
    steps = held.pop(LOCAL_STEPS.path, 1)
    if held.get(_SIZE) is None:
        held[_SIZE] = local_batch(held.get("batch_size", Plan.batch_size), steps)
    elif steps != 1:
        raise BadSetting("The local steps follow from the pictures of one step; give one of the two.")
    plan = built(Plan, held)
    return plan if "victims" in held else replace(plan, victims=usual_victims(plan.attack))


def usual(entry: Entry, attack: Spec) -> Any:
    """What a setting of a plan is where it is not written, beside this attack."""
    return usual_victims(attack) if entry.declared.follows else entry.default


def values_of(plan: Plan) -> dict[str, Any]:
    """The values of :func:`settings`, by path: :func:`plan_of` makes the same plan of them."""
    found = {entry.path: reduce(getattr, entry.path.split("."), plan) for entry in leaves(Plan)}
    size = plan.rule.batch_size
    steps = 1 if size is None else -(-plan.batch_size // size)
    if local_batch(plan.batch_size, steps) == size:
        return {**found, _SIZE: None, LOCAL_STEPS.path: steps}
    return {**found, LOCAL_STEPS.path: 1}


def local_batch(batch_size: int, local_steps: int) -> int | None:
    """Pictures of one local step, when a client's pictures are split into ``local_steps`` mini-batches.

    Raises:
        BadSetting: they cannot be split so.
    """
    if local_steps == 1:
        return None
    part = -(-batch_size // max(local_steps, 1))
    if local_steps < 1 or -(-batch_size // part) != local_steps:
        raise BadSetting(
            f"{batch_size} pictures cannot be split into {local_steps} mini-batches; "
            "raise --batch-size, or repeat all pictures with --epochs."
        )
    return part


def _read(hint: Any, value: Any) -> Any:
    if hint is Spec:
        return Spec.parse(value)
    if get_origin(hint) is tuple:
        return tuple(value)
    return str(value) if isinstance(value, Spec) else value
