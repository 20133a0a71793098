"""The command line that repeats an audit."""

import shlex
from typing import Any

from leakmap.models.network import IN_MEMORY
from leakmap.plan.plan import Plan
from leakmap.plan.written import CAPTURED, settings, usual, values_of
from leakmap.registry.declared import Entry, entries
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code


def command(plan: Plan) -> str:
    """The command line, or for things in memory the call, that repeats an audit: what differs from the defaults."""
    captured = plan.captured
    if captured is None and IN_MEMORY in (plan.model, plan.data):
        return _call(plan)
    words, values = ["leakmap", "audit"], values_of(plan)
    if captured is not None:
        for file, truth in zip(captured.observations, captured.truths, strict=True):
            words += ["--observation", file, "--truth", truth]
        words += ["--others", captured.others]
    if plan.tuned is not None:
        values["attack"] = Spec(plan.attack.name)
    for entry in settings():
        value = values[entry.path]
        if value != usual(entry, values["attack"]) and not (captured is not None and _in_the_file(entry, value)):
            words += _option(entry, value)
    words += ["--tuned", plan.tuned.file] if plan.tuned is not None else []
    return shlex.join(words)


def _option(entry: Entry, value: Any) -> list[str]:
    """The words of one option; none for a field that has none."""
    if not entry.declared.help:
        return []
    if isinstance(value, bool):
        return [entry.flag if value else entry.flag.replace("--", "--no-", 1)]
    return [word for one in (value if isinstance(value, tuple) else [value]) for word in (entry.flag, str(one))]


def _in_the_file(entry: Entry, value: Any) -> bool:
    """Whether a captured update tells this: the client does, and model and loss unless they are the user's code."""
    table = entry.declared.table
    return table in CAPTURED or (table == "model" and not is_user_code(Spec.parse(value).name))


def _call(plan: Plan) -> str:
    given = {entry.name: (getattr(plan, entry.name), usual(entry, plan.attack)) for entry in entries(Plan)}
    words = [
        f"{'client' if name == 'rule' else name}={(str(value) if isinstance(value, Spec) else value)!r}"
        for name, (value, unsaid) in given.items()
        if name not in ("model", "data", "tuned") and value != unsaid
    ]
    return f"leakmap.audit({', '.join(['model', 'images', 'labels', *words])})"
