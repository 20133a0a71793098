"""Defaults of an audit from a file beside the code: ``leakmap.toml``, or ``[tool.leakmap]`` in ``pyproject.toml``.

The command line wins. A file that was found by itself, not typed, is whoever's the folder is: it may not name code to
run, nor have files written outside the folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from leakmap.cli.exits import say
from leakmap.errors import BadSetting
from leakmap.plan.plan import RUN
from leakmap.registry.spec import Spec, near_misses
from leakmap.registry.user_code import is_user_code

OWN, SHARED = "leakmap.toml", "pyproject.toml"
NONE = "none"
_LEFT_OUT = {"config", "help", "json"}
_WRITTEN = ("out", "junit", "sarif", "markdown")


def _read(context: typer.Context, typed: str | None) -> str | None:
    """Puts the defaults of a file beneath the options of a command, before any of them is read."""
    if context.resilient_parsing:  # a shell completes a word
        return typed
    path = _found() if typed is None else None if typed == NONE else Path(typed)
    if path is None:
        return typed
    table = _table(path)
    if table is None:
        if typed is not None:
            raise BadSetting(f"{path} has no table [tool.leakmap]; write the defaults of an audit there.")
        return typed
    context.default_map = _checked(context, path, table, trusted=typed is not None)
    if context.default_map:
        say(f"Defaults of {path}: {', '.join(table)}.")
    return typed


Config = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help=f"Defaults of these options; {OWN} or {SHARED} by itself, {NONE}: no file.",
        callback=_read,
        is_eager=True,
        rich_help_panel=RUN,
    ),
]


def _found() -> Path | None:
    """The file of this folder that holds defaults, if one does."""
    if Path(OWN).is_file():
        return Path(OWN)
    shared = Path(SHARED)
    return shared if shared.is_file() and b"leakmap" in shared.read_bytes() and _table(shared) else None


def _table(path: Path) -> dict[str, Any] | None:
    """The defaults in a file; None where a pyproject.toml has no such table.

    Raises:
        BadSetting: the file is absent, too large or not TOML.
    """
    from leakmap.capturing.facts import LONGEST, parse_toml

    if not path.is_file():
        raise BadSetting(f"There is no file of defaults {path}; give another --config, or none.")
    if (size := path.stat().st_size) > LONGEST:
        raise BadSetting(f"{path} has {size} bytes; a file of defaults has at most {LONGEST}.")
    try:
        content: Any = parse_toml(path.read_bytes())
    except ValueError as error:
        said = str(error).rstrip(".")
        raise BadSetting(f"{path} cannot be read as TOML: {said}; --config {NONE} reads no file.") from None
    if path.name != SHARED:
        return content
    tools = content.get("tool", {})
    found = tools.get("leakmap") if isinstance(tools, dict) else None
    if found is not None and not isinstance(found, dict):
        raise BadSetting(f"{path}: tool.leakmap is a table of defaults; write [tool.leakmap].")
    return found


def _checked(context: click.Context, path: Path, table: Mapping[str, Any], *, trusted: bool) -> dict[str, Any]:
    options = {
        name: one
        for one in context.command.params
        if isinstance(one, click.Option) and (name := _key(one)) not in _LEFT_OUT
    }
    found: dict[str, Any] = {}
    for key, value in table.items():
        if (option := options.get(key.replace("-", "_"))) is None or option.name is None:
            raise BadSetting(
                f"{path}: there is no option {key!r} of {context.command_path}; {near_misses(key, options)}"
            )
        if not _fits(option, value):
            raise BadSetting(f"{path}: {key} = {_shown(value)} is no value of --{key}; expected {_expected(option)}.")
        if not trusted:
            _check_found(path, _key(option), value)
        try:
            option.type_cast_value(context, value)
        except click.UsageError as error:
            raise BadSetting(f"{path}: {key}: {error.message}") from None
        found[option.name] = value
    return found


def _key(option: click.Option) -> str:
    return option.opts[-1].lstrip("-").replace("-", "_")


def _kinds(option: click.Option) -> tuple[type, ...]:
    """The types of TOML that an option takes."""
    if option.is_flag:
        return (bool,)
    if isinstance(option.type, click.types.IntParamType):
        return (int,)
    if isinstance(option.type, click.types.FloatParamType):
        return (int, float)
    return (str, int) if isinstance(option.type, click.types.FuncParamType) else (str,)


def _fits(option: click.Option, value: Any) -> bool:
    kinds = _kinds(option)
    if option.multiple:
        return isinstance(value, list) and all(isinstance(one, kinds) for one in value)
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _expected(option: click.Option) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    told = " or ".join(names[kind] for kind in _kinds(option))
    return f"a list, each {told}" if option.multiple else told


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) < 80 else f"{repr(value)[:77]}..."


def _names_code(value: Any) -> bool:
    """Whether a value names a function in a Python file, by itself or among its settings."""
    if not isinstance(value, str):
        return False
    spec = Spec.parse(value) if "," in value else Spec(value)
    return any(isinstance(one, str) and is_user_code(one) for one in (spec.name, *spec.params.values()))


def _check_found(path: Path, key: str, value: Any) -> None:
    """Refuses, in a file that nobody typed, what would run code or write elsewhere.

    Raises:
        BadSetting: it does.
    """
    for one in value if isinstance(value, list) else [value]:
        if key == "ray" or _names_code(one):
            raise BadSetting(
                f"{path}: {key} = {_shown(one)} may run code, which leakmap does not take from a file that it found by "
                f"itself: type --config {path}, or the option."
            )
        if key in _WRITTEN and (Path(str(one)).is_absolute() or ".." in Path(str(one)).parts):
            raise BadSetting(
                f"{path}: {key} = {_shown(one)} lies outside this folder: type --config {path}, or the option."
            )
