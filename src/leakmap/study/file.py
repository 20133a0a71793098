"""Study files: what is varied, written down in TOML.

A study is a table for each side of an audit: ``[data]``, ``[model]``, ``[weights]``, ``[client]``, ``[threat]`` and
``[attack]``. A list is an axis. A text in place of a table names a preset or is a specification; a list of texts or of
tables is an axis of alternatives, each with axes of its own. The cells of the study are the product of all axes: each
is one :class:`leakmap.plan.plan.Plan`.
"""

import itertools
import json
import math
import reprlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, get_origin

from pydantic import ConfigDict, Field, ValidationError, create_model

from leakmap.attacker.attacks import DEFAULT
from leakmap.capturing.facts import parse_toml
from leakmap.errors import BadSetting, LeakmapError, StoreError
from leakmap.files import read_limited
from leakmap.plan.plan import Plan
from leakmap.plan.written import plan_of, settings
from leakmap.registry.declared import Entry
from leakmap.registry.spec import Spec, near_misses
from leakmap.study.index import Value, digest_of, shown
from leakmap.study.shipped import file_of

FILE_LIMIT, CELL_LIMIT = 2**20, 100_000
Axes = dict[str, Value]
Table = dict[str, Any]
_Choice = tuple[Axes, Table]
"""Where a table stands on its axes, and its settings there."""


@dataclass(frozen=True)
class Cell:
    """One audit of a study.

    Args:
        axes: Where it stands: name of each axis that applies to it -> value.
        plan: The audit.
    """

    axes: Axes
    plan: Plan

    def __str__(self) -> str:
        return ", ".join(f"{axis}={shown(value)}" for axis, value in self.axes.items()) or "the only cell"


@dataclass(frozen=True)
class Study:
    """A study as it was written down.

    Args:
        title: What it asks.
        cells: Every audit, in the order of the file's axes.
        text: The file as it was written.
        claim: What it should show; see :mod:`leakmap.study.claims`.
        digest: Of the file that it was read from; empty where it was made or changed in memory.
    """

    title: str
    cells: tuple[Cell, ...]
    text: str = ""
    claim: Mapping[str, Any] = field(default_factory=dict)
    digest: str = field(default="", init=False, compare=False)  # so that dataclasses.replace forgets it

    @property
    def axes(self) -> dict[str, list[Value]]:
        """Every axis with its values, in their order."""
        found: dict[str, list[Value]] = {}
        for cell in self.cells:
            for axis, value in cell.axes.items():
                values = found.setdefault(axis, [])
                if value not in values:
                    values.append(value)
        return found

    def resolved(self) -> str:
        """The file, and in comments every setting of its first cell, those that were left out too."""
        lines = [self.text.rstrip(), "", f"# The first cell, {self.cells[0]}, with every setting:", ""]
        for name, value in asdict(self.cells[0].plan).items():
            for key, one in value.items() if isinstance(value, dict) else ((None, value),):
                lines.append(f"# {name if key is None else f'{name}.{key}'} = {json.dumps(one)}")
        return "\n".join(lines) + "\n"


def read_study(path: Path | str, scale: str | None = None) -> Study:
    """Reads a study file.

    Args:
        path: The file, or the name of a study that comes with leakmap (:func:`leakmap.studies`).
        scale: One of its ``[scale.NAME]`` tables, which replace settings of the others.

    Raises:
        BadSetting: the file cannot be read, or something in it is unknown, missing or of the wrong type.
    """
    path = file_of(path)
    try:
        data = read_limited(path, "a study file, a page of TOML", FILE_LIMIT)
        content = parse_toml(data)
    except StoreError as error:
        raise BadSetting(str(error)) from None
    except ValueError as error:
        raise BadSetting(f"The study file {path} is not TOML: {error}.") from None
    try:
        study = parse_study(_scaled(content, scale), data.decode("utf-8"))
    except LeakmapError as error:
        raise BadSetting(f"{path}: {error}") from None
    object.__setattr__(study, "digest", digest_of(data, scale))
    return study


def parse_study(content: Mapping[str, Any], text: str = "") -> Study:
    """A study from the content of its file.

    Args:
        content: As TOML gives it.
        text: As it was written.

    Raises:
        BadSetting: something in it is unknown, missing or of the wrong type.
    """
    top = _checked("study", _TOP, {key: value for key, value in content.items() if key not in _TABLES})
    own = top["presets"]
    for kind in own:
        if kind not in _TABLES:
            raise BadSetting(f"There is no table {kind!r} to have presets of; {near_misses(kind, _TABLES)}")
    sides = []
    for kind in _TABLES:
        default: Any = {"model": None, "attack": DEFAULT}.get(kind, {})
        given = content.get(kind, default)
        if given is None:
            raise BadSetting('A study needs a model: [model] with a name, or model = "NAME[,key=value…]".')
        sides.append(list(_alternatives(kind, given, own.get(kind, {}))))
    rest = {key: top[key] for key in _paths("study") if top[key] is not None}
    sides.append(list(_product({**rest, "metrics": tuple(rest.get("metrics", ()))}, "")))
    if math.prod(map(len, sides)) > CELL_LIMIT:
        raise BadSetting(f"The study has more than {CELL_LIMIT} cells; take values out of its lists.")
    cells: list[Cell] = []
    for choice in itertools.product(*sides):
        axes = {name: value for of_side, _ in choice for name, value in of_side.items()}
        if not any(_matches(axes, rule) for rule in top["exclude"]):
            cells.append(Cell(axes, _plan(choice)))
    if not cells:
        raise BadSetting("Every cell of the study is excluded; loosen its [[exclude]] tables.")
    known = {name for side in sides for axes, _ in side for name in axes}
    if strange := [name for rule in top["exclude"] for name in rule if name not in known]:
        raise BadSetting(f"[[exclude]] names {strange[0]!r}, which is no axis; {near_misses(strange[0], known)}")
    return Study(top["title"], tuple(cells), text, top["claim"])


def _scaled(content: Table, scale: str | None) -> Table:
    scales = content.get("scale", {})
    if scale is None:
        return content
    if not isinstance(scales, dict) or not isinstance(scales.get(scale, {}), dict):
        raise BadSetting("[scale] holds tables such as [scale.cpu.data].")
    if scale not in scales:
        raise BadSetting(f"There is no [scale.{scale}]; {near_misses(scale, scales)}")
    return _merged(content, scales[scale])


def _merged(below: Table, above: Table) -> Table:
    """``above`` over ``below``: tables are merged, everything else is replaced."""
    both = {name: _merged(below[name], value) for name, value in above.items() if _tables(below.get(name), value)}
    return {**below, **above, **both}


def _tables(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def tables(of: type = Plan) -> dict[str, dict[str, Any]]:
    """Table -> its settings, as pydantic takes fields; ``study`` is the top of the file.

    A model and an attack also take settings of their own, which are checked when they are built.

    Args:
        of: A dataclass whose fields are declared.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in settings(of):
        if entry.declared.table:
            found.setdefault(entry.declared.table, {})[entry.key] = _field(entry)
    return found


def _field(entry: Entry) -> tuple[Any, Any]:
    if get_origin(entry.hint) is tuple:
        return list[str] | None, None
    kind = str if entry.hint is Spec else entry.hint
    return (kind | list[kind], ...) if entry.key == "name" else (kind | list[kind] | None, None)


_FIELDS = tables()
_TABLES = {kind: _FIELDS[kind] for kind in ("data", "model", "weights", "client", "threat", "attack")}
"""The sides of an audit, in the order of the cells."""
_OPEN = ("model", "attack")
_LABEL = {"label": (str | None, None)}
_TOP: dict[str, Any] = {
    "title": (str, "Study"),
    **_FIELDS["study"],
    "exclude": (Annotated[list[dict[str, Any]], Field(max_length=1000)], []),
    "presets": (dict[str, dict[str, dict[str, Any]]], {}),
    "claim": (dict[str, Any], {}),
    "scale": (dict[str, dict[str, Any]], {}),
}


@cache
def _model_of(kind: str) -> Any:
    fields = {**_TABLES[kind], **_LABEL} if kind in _TABLES else _TOP
    extra: Any = "allow" if kind in _OPEN else "forbid"
    return create_model(kind, __config__=ConfigDict(extra=extra, strict=True), **fields)


def _checked(kind: str, fields: Mapping[str, Any], given: Any) -> Table:
    try:
        read = _model_of(kind).model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        where = f"[{kind}]" if kind in _TABLES else "The study"
        if first["type"] == "extra_forbidden":
            known = [*fields, *(_TABLES if kind not in _TABLES else ())]
            raise BadSetting(f"{where} has no setting {name!r}; {near_misses(name, known)}") from None
        if first["type"] == "missing":
            raise BadSetting(f"{where} lacks {name!r}.") from None
        raise BadSetting(f"{where} got {reprlib.repr(first['input'])} for {name!r}: {first['msg']}.") from None
    given = {name: getattr(read, name) for name in {**fields, **(read.model_extra or {})}}
    return {**given, "label": read.label} if kind in _TABLES else given


def _alternatives(kind: str, given: Any, own: Mapping[str, Table]) -> Iterator[_Choice]:
    """Every choice of one side, with its place on the axes."""
    if not isinstance(given, list):
        yield from _product(_table(kind, given, own), kind)
        return
    if not given:
        raise BadSetting(f"{kind} is an empty list; give at least one alternative.")
    seen: set[Value] = set()
    for one in given:
        table = _table(kind, one, own)
        if isinstance(table.get("name"), list) and not table.get("label"):
            raise BadSetting(f"An alternative of {kind} has several names; give it a label, or write several.")
        label = table.get("label") or (one if isinstance(one, str) else table.get("name") or f"{kind} {len(seen) + 1}")
        if label in seen:
            raise BadSetting(f"Two alternatives of {kind} are called {label!r}; give each a label of its own.")
        seen.add(label)
        for axes, chosen in _product(table, kind):
            yield {kind: label, **axes}, chosen


def _table(kind: str, given: Any, own: Mapping[str, Table]) -> Table:
    """One alternative as a table: a preset, a specification, or the table itself."""
    if isinstance(given, str):
        given = _named(kind, given, own)
    if not isinstance(given, dict):
        raise BadSetting(f"{kind} is a table, the name of a preset, or a list of such; got {reprlib.repr(given)}.")
    table = {name: value for name, value in _checked(kind, _TABLES[kind], given).items() if value is not None}
    for name, value in table.items():
        if not all(isinstance(one, Value) for one in (value if isinstance(value, list) else [value])):
            got = reprlib.repr(value)
            raise BadSetting(
                f"[{kind}] got {got} for {name!r}; expected text, a number, true or false, or a list of them."
            )
    return table


def _named(kind: str, text: str, own: Mapping[str, Table]) -> Table:
    presets = {**_shipped().get(kind, {}), **own}
    if text in presets:
        return presets[text]
    if kind == "data":
        return {"source": text}
    if kind == "weights":
        return {"file": text}
    if kind in _OPEN:
        spec = Spec.parse(text)
        return {"name": spec.name, **spec.params}
    raise BadSetting(f"There is no preset {text!r} of {kind}; {near_misses(text, presets)}")


@cache
def _shipped() -> dict[str, dict[str, Table]]:
    return tomllib.loads(files("leakmap.study").joinpath("presets.toml").read_text(encoding="utf-8"))


def _product(table: Table, kind: str) -> Iterator[_Choice]:
    """Every combination of the values of a table's lists."""
    table = {name: value for name, value in table.items() if name != "label"}
    varied = {name: value for name, value in table.items() if isinstance(value, list)}
    for name, values in varied.items():
        if not values:
            raise BadSetting(f"{name!r} is an empty list; give at least one value.")
        if len({shown(value) for value in values}) < len(values):
            raise BadSetting(f"{name!r} lists a value twice: {reprlib.repr(values)}.")
    if math.prod(map(len, varied.values())) > CELL_LIMIT:
        raise BadSetting(f"The study has more than {CELL_LIMIT} cells; take values out of its lists.")
    for values in itertools.product(*varied.values()):
        chosen = dict(zip(varied, values, strict=True))
        axes = {f"{kind}.{name}" if kind else name: value for name, value in chosen.items()}
        yield axes, table | chosen


def _matches(axes: Axes, rule: Mapping[str, Any]) -> bool:
    return all(axes.get(name) in (wanted if isinstance(wanted, list) else [wanted]) for name, wanted in rule.items())


@cache
def _paths(kind: str) -> dict[str, str]:
    """Key in a table -> path of what it sets in a plan."""
    return {entry.key: entry.path for entry in settings() if entry.declared.table == kind}


def _plan(choice: Sequence[_Choice]) -> Plan:
    values: dict[str, Any] = {}
    for kind, (_, own) in zip((*_TABLES, "study"), choice, strict=True):
        paths = _paths(kind)
        values |= {paths[key]: value for key, value in own.items() if key in paths}
        if kind in _OPEN:
            spec = Spec.parse(own["name"])
            knobs = {key: value for key, value in own.items() if key not in paths}
            values[paths["name"]] = Spec(spec.name, spec.params | knobs)
    return plan_of(values)
