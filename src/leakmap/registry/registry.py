"""Names for algorithms: how one is written down, found and built.

A specification is ``NAME[,key=value…]``. A registry maps names to constructors. The positional parameters of a
constructor are the context that the caller supplies; its keyword-only parameters are the settings, checked against
their annotations. A constructor is registered by the file that defines it, and every file of the registry's package
is imported at first use: adding an algorithm is one file. Installed packages join through entry points in the group
``leakmap.<kind>``. A file or an entry point that fails is left out, by name, and takes nothing else with it.
"""

import importlib
import importlib.util
import inspect
import logging
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from leakmap.errors import BadSetting, LeakmapError, UnknownName, UsageError, in_words
from leakmap.registry.spec import Spec, Tunable, near_misses
from leakmap.registry.user_code import is_user_code, load_user_code

T = TypeVar("T")
Constructor = TypeVar("Constructor", bound=Callable[..., Any])
Example = str | Callable[[Path], str]
"""A specification to try an algorithm with, or a function that writes what it needs into a folder and returns it.

Where something is absent that the function cannot make, such as a data set, it raises a ``UsageError``.
"""
_log = logging.getLogger("leakmap")


@dataclass(frozen=True)
class _Registered(Generic[T]):
    """A constructor and what its file says about it; see :meth:`Registry.add`."""

    constructor: Callable[..., T]
    examples: tuple[Example, ...] = ()
    objects: bool = False


class Registry(Generic[T]):
    """The algorithms of one kind, by name.

    A name that ends in ``/`` or ``:`` stands for a family: ``torchvision/resnet18`` is built by the constructor
    registered as ``torchvision/``, which receives ``resnet18`` as its last positional argument.

    Args:
        kind: What the registered things are, in the singular, for messages and the entry-point group.
        package: Name of the package whose modules register themselves.
        own: Whether a name may also be a user's own ``path/to/file.py:constructor``, whose file is then run: only where
            no file that others write names what is built.
    """

    def __init__(self, kind: str, package: str, *, own: bool = False):
        self.kind = kind
        self._own = own
        self._package = package
        self._entries: dict[str, _Registered[T]] = {}
        self._broken: dict[str, str] = {}
        self._discovered = False

    def add(
        self, name: str, *, examples: Sequence[Example] = (), objects: bool = False
    ) -> Callable[[Constructor], Constructor]:
        """Registers the decorated constructor under a name that must be free.

        Args:
            name: As it is written in a specification; a family ends in ``/`` or ``:``.
            examples: What the contract tests try it with: quick settings, members of a family. None: the name alone.
            objects: Whether it is for pictures with objects, see :mod:`leakmap.problem.objects`, rather than classes.

        Raises:
            ValueError: the name is taken.
        """

        def register(constructor: Constructor) -> Constructor:
            self._register(name, _Registered(constructor, tuple(examples), objects))
            return constructor

        return register

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        self._discover()
        return sorted(self._entries)

    def broken(self) -> dict[str, str]:
        """What could not be loaded, a module or an entry point with its distribution, and why, in one line."""
        self._discover()
        return dict(self._broken)

    def constructor(self, name: str) -> Callable[..., T]:
        """What builds ``name``.

        Raises:
            UnknownName: nothing of that name is registered; the message holds near misses.
        """
        return self._find(name)[0].constructor

    def examples(self, name: str) -> tuple[Example, ...]:
        """What the contract tests try ``name`` with."""
        return self._find(name)[0].examples or (name,)

    def of_objects(self, name: str) -> bool:
        """Whether ``name`` is for pictures with objects."""
        return self._find(name)[0].objects

    def settings(self, name: str) -> dict[str, inspect.Parameter]:
        """The settings that ``name`` takes, in the order of its signature."""
        parameters = inspect.signature(self.constructor(name)).parameters.values()
        return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}

    def tunables(self, name: str) -> dict[str, Tunable]:
        """The settings of ``name`` that a rehearsal may choose, with where to look."""
        constructor = self.constructor(name)
        hints = get_type_hints(
            constructor.__init__ if inspect.isclass(constructor) else constructor, include_extras=True
        )
        found = {
            key: [m for m in getattr(hints.get(key), "__metadata__", ()) if isinstance(m, Tunable)]
            for key in self.settings(name)
        }
        return {key: marks[-1] for key, marks in found.items() if marks}

    def build(self, spec: Spec | str, *context: Any) -> T:
        """Builds the thing that ``spec`` names.

        Args:
            spec: A specification or its text.
            context: What the constructors of this registry take in front of the settings.

        Raises:
            UnknownName: no such name.
            BadSetting: a setting is unknown, missing or of the wrong type or size.
            UsageError: it ends Python instead of being built, or it is a user's own and fails.
        """
        spec = Spec.parse(spec)
        found, rest = self._find(spec.name)
        if spec.name.endswith(("/", ":")):
            raise UnknownName(f"The {self.kind} {spec.name!r} stands for a family; write {spec.name}NAME.")
        settings = checked_settings(found.constructor, spec, self.kind)
        try:
            return found.constructor(*context, *rest, **settings)
        except (Exception, SystemExit) as error:
            own = isinstance(error, SystemExit) or (is_user_code(spec.name) and self._own)
            if not own or isinstance(error, (LeakmapError, MemoryError)):
                raise
            raise UsageError(f"The {self.kind} {spec} failed when it was built: {in_words(error)}.") from error

    def _find(self, name: str) -> tuple[_Registered[T], list[str]]:
        if self._own and is_user_code(name):
            return _Registered(load_user_code(name)), []
        self._discover()
        if name in self._entries:
            return self._entries[name], []
        family = re.match(r"[^/:]*[/:]", name)
        if family and family.group() in self._entries and family.end() < len(name):
            return self._entries[family.group()], [name[family.end() :]]
        broken = "".join(f" {what} could not be loaded: {why}." for what, why in self._broken.items())
        raise UnknownName(f"There is no {self.kind} {name!r}; {near_misses(name, self._entries)}{broken}")

    def _register(self, name: str, new: _Registered[T]) -> None:
        taken = self._entries.setdefault(name, new)
        if taken.constructor is not new.constructor:
            where = f"{taken.constructor.__module__}.{getattr(taken.constructor, '__qualname__', '')}"
            raise ValueError(f"the {self.kind} name {name!r} is taken by {where}")

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # beforehand: a module may ask the registry while it is imported
        try:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                name = f"{self._package}.{module.name}"
                self._load(name, partial(importlib.import_module, name))
            for entry in entry_points(group=f"leakmap.{self.kind}"):
                origin = f"{entry.name} of {entry.dist.name}" if entry.dist else entry.name
                self._load(origin, partial(self._join, entry))
        except KeyboardInterrupt:
            self._discovered = False
            raise

    def _join(self, entry: EntryPoint) -> None:
        constructor: Callable[..., T] = entry.load()
        if not callable(constructor):
            raise TypeError(f"{entry.value} is no constructor but {type(constructor).__name__}")
        self._register(entry.name, _Registered(constructor))

    def _load(self, what: str, load: Callable[[], object]) -> None:
        """Loads one file or entry point, and notes why where that fails in any way: others count on none of it."""
        try:
            load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
            self._broken[what] = reason
            _log.warning("The %s %s could not be loaded and is left out: %s.", self.kind, what, reason)
            # A module whose import fails is taken out again; what it had registered by then would be half of it.
            self._entries = {n: e for n, e in self._entries.items() if e.constructor.__module__ in sys.modules}


def checked_settings(constructor: Callable[..., Any], spec: Spec, kind: str) -> dict[str, Any]:
    """The settings of ``spec``, converted to the annotations of the constructor's keyword-only parameters."""
    model = _settings_model(constructor)
    if model is None:
        return dict(spec.params)
    for key in spec.params:
        if key not in (takes := model.model_fields):
            hint = near_misses(key, takes) if takes else "it takes none."
            raise BadSetting(f"The {kind} {spec.name!r} has no setting {key!r}; {hint}")
    try:
        read = model.model_validate(spec.params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        got = "nothing" if first["type"] == "missing" else repr(first["input"])
        raise BadSetting(f"The {kind} {spec.name!r} got {got} for {where!r}: {first['msg']}.") from None
    return {name: getattr(read, name) for name in spec.params}


@lru_cache(maxsize=1024)  # pydantic takes longer to make one than a small network takes to build
def _settings_model(constructor: Callable[..., Any]) -> type[BaseModel] | None:
    """The keyword-only parameters of a constructor as pydantic reads them; None where it takes any."""
    parameters = inspect.signature(constructor).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    hints = get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor, include_extras=True)
    takes = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if p.default is p.empty else p.default) for name, p in takes.items()
    }
    return create_model("Settings", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **fields)
