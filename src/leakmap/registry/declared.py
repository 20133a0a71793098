"""A field of a dataclass, declared once: its option, its places in files, its bounds.

Every field carries a :class:`Declared` in its annotation::

    lr: Annotated[float, Declared("Local learning rate.", above=0)] = 0.01

Command-line options, study tables, the printed command, manifests and files of facts are derived from it, and
:func:`check` holds the value to it. So one more field is one more line.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from leakmap.errors import BadSetting

T = TypeVar("T")


@dataclass(frozen=True)
class Declared:
    """What is said of a field besides its name, type and default.

    Args:
        help: Of its option on the command line; a field without has none.
        panel: Heading under which the option stands; that of a dataclass holds for its fields.
        option: The option's name, if not the field's; dashes are ``_`` here.
        hidden: Whether the option is left out of ``--help``.
        table: Table of a study file that it stands in; that of a dataclass holds for its fields.
        key: Its key there, if not the option's name.
        least: Smallest value.
        above: Value that it must exceed.
        below: Value that it must stay under.
        expected: What a value must be, for messages, if its bounds do not say it.
        limit: Largest number, or longest text.
        later: Whether files without it are read, as they were written before there was such a field.
        note: Word behind it in a file of facts, if not its choices or its help.
        sent: Keys under which a federated server's configuration holds it.
        follows: Whether its default follows from other fields; its option then has none.
        local: Whether it is about local steps, which a client that shares a gradient does not take.
    """

    help: str = ""
    panel: str = ""
    option: str = ""
    hidden: bool = False
    table: str = ""
    key: str = ""
    least: float | None = None
    above: float | None = None
    below: float | None = None
    expected: str = ""
    limit: int | None = None
    later: bool = False
    note: str = ""
    sent: tuple[str, ...] = ()
    follows: bool = False
    local: bool = False


@dataclass(frozen=True)
class Entry:
    """A declared field.

    Args:
        path: Its name, behind that of the field that holds its dataclass: ``lr``, or ``rule.lr`` in a plan.
        hint: Its type.
        default: Its default; ``dataclasses.MISSING``: it must be given.
        declared: What is said of it.
    """

    path: str
    hint: Any
    default: Any
    declared: Declared

    @property
    def name(self) -> str:
        """Of the field."""
        return self.path.rpartition(".")[2]

    @property
    def option(self) -> str:
        """Name of the option, with ``_`` for dashes."""
        return self.declared.option or self.name

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return f"--{self.option.replace('_', '-')}"

    @property
    def key(self) -> str:
        """Key in a study's table."""
        return self.declared.key or self.option

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is MISSING

    @property
    def optional(self) -> bool:
        """Whether it may be None."""
        return NoneType in get_args(self.hint)

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts it may be; empty if it is no choice."""
        return get_args(self.hint) if get_origin(self.hint) is Literal else ()

    @property
    def words(self) -> tuple[str, ...]:
        """The texts that may stand in place of a number; empty if none may."""
        return tuple(word for one in get_args(self.hint) if get_origin(one) is Literal for word in get_args(one))

    @property
    def kinds(self) -> frozenset[type]:
        """The types that it may have, None and texts that are choices left out."""
        union = get_origin(self.hint) in (Union, UnionType)
        found = get_args(self.hint) if union else (self.hint,)
        return frozenset(get_origin(one) or one for one in found if one is not NoneType and get_origin(one) != Literal)

    @property
    def note(self) -> str:
        """A word on it, as a comment."""
        told = self.declared.help.rstrip(".")
        as_sentence = told[:1].lower() + told[1:] if not told[1:2].isupper() else told
        return self.declared.note or _either(self.choices) or as_sentence

    @property
    def expected(self) -> str:
        """What a value must be, after the word "be"."""
        d = self.declared
        if d.expected:
            return d.expected
        if self.choices:
            return _either([repr(choice) for choice in self.choices])
        bounds = f"in [{d.least:g}, {d.below:g})" if d.least is not None and d.below is not None else ""
        bounded = any(bound is not None for bound in (d.least, d.above, d.limit))
        if not bounds and bounded and self.kinds & {int, float}:
            bounds = "positive" if d.above == 0 else f"at least {d.least or 0:g}"
            bounds += "" if d.limit is None else f" and at most {d.limit}"
        bounds = bounds or " or ".join(_KINDS.get(kind, kind.__name__) for kind in self.kinds)
        return f"{bounds}, or None" if self.optional else bounds

    def allows(self, value: Any) -> bool:
        """Whether a value has the right type, and is one of the choices or within the bounds; nan is not."""
        if value is None:
            return self.optional
        if self.choices or (self.words and isinstance(value, str)):
            return isinstance(value, str) and value in (self.choices or self.words)
        kinds = self.kinds | {int} if float in self.kinds else self.kinds
        if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
            return False
        d = self.declared
        if isinstance(value, str):
            return d.limit is None or len(value) <= d.limit
        return (
            (d.limit is None or value <= d.limit)
            and (d.least is None or value >= d.least)
            and (d.above is None or value > d.above)
            and (d.below is None or value < d.below)
        )

    def file_type(self) -> Any:
        """The type with every bound, for pydantic: what a file may claim."""
        if self.choices:
            return self.hint
        union = get_origin(self.hint) in (Union, UnionType)
        (kind,) = [one for one in get_args(self.hint) if one is not NoneType] if union else [self.hint]
        d, bounds = self.declared, dict[str, Any]()
        if kind is str:
            bounds["max_length"] = d.limit
        elif kind in (int, float):
            bounds |= {"ge": d.least, "gt": d.above, "lt": d.below, "le": d.limit}
        if kind is float:
            bounds["allow_inf_nan"] = False
        bounded: Any = Annotated[kind, Field(**bounds)]
        return bounded | None if union else bounded


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", tuple: "a tuple"}


@cache
def entries(of: type) -> tuple[Entry, ...]:
    """The fields of a dataclass, in order.

    Raises:
        TypeError: a field is not declared.
    """
    hints = get_type_hints(of, include_extras=True)
    found: list[Entry] = []
    for field in fields(of):
        hint = hints[field.name]
        marks = [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Declared)]
        if not marks:
            raise TypeError(f"{of.__name__}.{field.name} is not declared; annotate it with Declared(...).")
        default = field.default if field.default_factory is MISSING else field.default_factory()
        found.append(Entry(field.name, get_args(hint)[0], default, marks[-1]))
    return tuple(found)


@cache
def leaves(of: type) -> tuple[Entry, ...]:
    """The fields of a dataclass, in order; in place of one that holds a declared dataclass, that one's."""
    found: list[Entry] = []
    for entry in entries(of):
        if not _is_declared(entry.hint):
            found.append(entry)
            continue
        outer = entry.declared
        for inner in leaves(entry.hint):
            declared = replace(
                inner.declared,
                panel=inner.declared.panel or outer.panel,
                table=inner.declared.table or outer.table,
            )
            found.append(replace(inner, path=f"{entry.path}.{inner.path}", declared=declared))
    return tuple(found)


def built(of: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass of the values of its :func:`leaves`, by path; those that are left out have their defaults."""
    given: dict[str, Any] = {}
    for entry in entries(of):
        if _is_declared(entry.hint):
            start = f"{entry.path}."
            own = {path.removeprefix(start): value for path, value in values.items() if path.startswith(start)}
            given[entry.name] = built(entry.hint, own)
        elif entry.path in values:
            given[entry.name] = values[entry.path]
    return of(**given)


def check(instance: Any, owner: str = "") -> None:
    """Holds every field of a dataclass to its type, its choices and its bounds.

    Args:
        instance: Of a dataclass whose fields are declared.
        owner: What the message calls it, such as ``A local rule's``.

    Raises:
        BadSetting: a value is of another type, none of the choices, or out of bounds.
    """
    for entry in entries(type(instance)):
        value = getattr(instance, entry.name)
        if not entry.allows(value):
            raise BadSetting(f"{owner} {entry.name} must be {entry.expected}; got {reprlib.repr(value)}.".lstrip())


def file_model(of: type, *, strict: bool, without: tuple[str, ...] = ()) -> type[BaseModel]:
    """A typed model of what a file may claim about a dataclass.

    Args:
        of: A dataclass whose fields are declared.
        strict: Nothing is converted, and only fields that are ``later`` may be left out: for files that leakmap
            writes. Else every field that has a default may be left out: for files that people write.
        without: Fields that the file does not hold.
    """
    found: dict[str, Any] = {}
    for entry in entries(of):
        if entry.name not in without:
            needed = entry.required or (strict and not entry.declared.later)
            found[entry.name] = (entry.file_type(), ... if needed else entry.default)
    return create_model(of.__name__, __config__=ConfigDict(extra="forbid", frozen=True, strict=strict), **found)


def _is_declared(hint: Any) -> bool:
    if not (isinstance(hint, type) and is_dataclass(hint)):
        return False
    hints = get_type_hints(hint, include_extras=True).values()
    return any(isinstance(mark, Declared) for one in hints for mark in getattr(one, "__metadata__", ()))


def _either(words: Any) -> str:
    *most, last = words or ("",)
    return f"{', '.join(most)} or {last}" if most else last
