"""The options that every command about a simulated client takes, as a plan."""

import hashlib
import inspect
import json
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer

from leakmap.plan.plan import ATTACK, RUN, Plan
from leakmap.plan.written import plan_of, settings
from leakmap.registry.declared import Entry
from leakmap.registry.spec import Spec

TUNING = "Tuning"
REAL = "Real updates in place of simulated clients"

Out = Annotated[Path | None, typer.Option(help="Folder for results; the same one resumes.", rich_help_panel=RUN)]
Model = Annotated[str | None, typer.Option(help="Your own file.py:function, where the file names one.")]
OwnLoss = Annotated[str | None, typer.Option("--loss", help="Your own file.py:function, where the file names one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_OF_ATTACK = {
    "steps": Annotated[int | None, typer.Option(help="Iterations.", rich_help_panel=ATTACK)],
    "restarts": Annotated[int | None, typer.Option(help="Independent starts.", rich_help_panel=ATTACK)],
    "budget": Annotated[
        float | None,
        typer.Option(
            help="Seconds of a core for the search on each client, in place of steps.", rich_help_panel=ATTACK
        ),
    ],
}
"""Settings of attacks that have an option besides ``--attack``; those of the plan's fields are declared with them."""


def options(of: type = Plan, without: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    """The options of a plan as parameters of a command, by the path of the setting, and those of the attack.

    Args:
        of: A dataclass whose fields are declared.
        without: Paths of settings that the command does not take.
    """
    found: dict[str, inspect.Parameter] = {}
    for entry in settings(of):
        if entry.declared.help and entry.path not in without:
            found[entry.path] = _parameter(entry)
        if entry.path == "attack":
            own = {name: annotation for name, annotation in _OF_ATTACK.items() if name not in without}
            found |= {name: _keyword(name, None, annotation) for name, annotation in own.items()}
    return found


def _parameter(entry: Entry) -> inspect.Parameter:
    said, hint, default = entry.declared, entry.hint, entry.default
    flag = [entry.flag] if hint is bool and not default else []
    if hint is Spec:
        hint, default = str, str(default)
    elif get_origin(hint) is tuple:
        hint, default = list[str] | None, None
    elif entry.required or entry.declared.follows:
        hint, default = hint | None, None
    how = typer.Option(*flag, help=said.help, rich_help_panel=said.panel, hidden=said.hidden)
    if entry.words:  # Typer takes no union, so the text is read here and held to the declaration like any value
        hint, how.parser, how.metavar = str, _number_or_word, "|".join([*entry.words, "INTEGER"])
    return _keyword(entry.option, default, Annotated[hint, how])


def _number_or_word(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def typed_plan(typed: dict[str, Any], without: Collection[str] = ()) -> Plan:
    """The plan that typed options make.

    Args:
        typed: By name; the options of a plan are taken out, others are left.
        without: Those of a plan that the command does not take.
    """
    values = {path: typed.pop(p.name) for path, p in options(without=without).items() if p.name in typed}
    spec = Spec.parse(values["attack"])
    chosen = {name: value for name in _OF_ATTACK if (value := values.pop(name, None)) is not None}
    given = {path: value for path, value in values.items() if value is not None}
    return plan_of({"model": "", **given, "attack": Spec(spec.name, spec.params | chosen)})


def with_plan(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the :func:`options` of a plan in front of its own, and hands it the plan they make.

    Args:
        without: Paths of settings that the command does not take, and names of options of attacks.
    """

    def decorated(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for name, p in inspect.signature(function).parameters.items() if name != "plan"]

        @wraps(function)
        def called(**typed: Any) -> None:
            function(typed_plan(typed, without), **typed)

        parameters = [*options(without=without).values(), *(p.replace(kind=p.KEYWORD_ONLY) for p in own)]
        called.__dict__["__signature__"] = inspect.Signature(parameters)
        return called

    return decorated


def default_folder(command: str, plan: Plan) -> Path:
    """Where a command writes that was given no ``--out``: the same plan finds it again."""
    digest = hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()
    return Path("runs") / f"{command}-{digest[:8]}"
