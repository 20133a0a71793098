"""Names for algorithms: how one is written down, found and built.

A specification is ``NAME[,key=value…]``. A registry maps names to constructors. The positional parameters of a
constructor are the context that the caller supplies; its keyword-only parameters are the settings, checked against
their annotations. A constructor is registered by the file that defines it, and every file of the registry's package
is imported at first use: adding an algorithm is one file. Installed packages join through entry points in the group
``leakmap.<kind>``.
"""

import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from leakmap.errors import BadSetting, UnknownName
from leakmap.registry.spec import Spec, Tunable, near_misses

T = TypeVar("T")
Constructor = TypeVar("Constructor", bound=Callable[..., Any])


class Registry(Generic[T]):
    """The algorithms of one kind, by name.

    A name that ends in ``/`` or ``:`` stands for a family: ``torchvision/resnet18`` is built by the constructor
    registered as ``torchvision/``, which receives ``resnet18`` as its last positional argument.

    Args:
        kind: What the registered things are, in the singular, for messages and the entry-point group.
        package: Name of the package whose modules register themselves.
    """

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self._package = package
        self._entries: dict[str, Callable[..., T]] = {}
        self._discovered = False

    def add(self, name: str) -> Callable[[Constructor], Constructor]:
        """Registers the decorated constructor under a name that must be free."""

        def register(constructor: Constructor) -> Constructor:
            if name in self._entries:
                raise ValueError(f"the {self.kind} name {name!r} is taken by {self._entries[name]!r}")
            self._entries[name] = constructor
            return constructor

        return register

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        self._discover()
        return sorted(self._entries)

    def constructor(self, name: str) -> Callable[..., T]:
        """What builds ``name``.

        Raises:
            UnknownName: nothing of that name is registered; the message holds near misses.
        """
        return self._find(name)[0]

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
        """
        spec = Spec.parse(spec)
        constructor, rest = self._find(spec.name)
        return constructor(*context, *rest, **checked_settings(constructor, spec, self.kind))

    def _find(self, name: str) -> tuple[Callable[..., T], list[str]]:
        self._discover()
        if name in self._entries:
            return self._entries[name], []
        family = re.match(r"[^/:]*[/:]", name)
        if family and family.group() in self._entries and family.end() < len(name):
            return self._entries[family.group()], [name[family.end() :]]
        raise UnknownName(f"There is no {self.kind} {name!r}; {near_misses(name, self._entries)}")

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        for entry in entry_points(group=f"leakmap.{self.kind}"):
            if entry.name not in self._entries:
                self._entries[entry.name] = entry.load()


def checked_settings(constructor: Callable[..., Any], spec: Spec, kind: str) -> dict[str, Any]:
    """The settings of ``spec``, converted to the annotations of the constructor's keyword-only parameters."""
    signature = inspect.signature(constructor)
    parameters = signature.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(spec.params)
    takes = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    for key in spec.params:
        if key not in takes:
            hint = near_misses(key, takes) if takes else "it takes none."
            raise BadSetting(f"The {kind} {spec.name!r} has no setting {key!r}; {hint}")
    target = constructor.__init__ if inspect.isclass(constructor) else constructor
    hints = get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if p.default is p.empty else p.default) for name, p in takes.items()
    }
    model = create_model("Settings", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **fields)
    try:
        read = model.model_validate(spec.params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        got = "nothing" if first["type"] == "missing" else repr(first["input"])
        raise BadSetting(f"The {kind} {spec.name!r} got {got} for {where!r}: {first['msg']}.") from None
    return {name: getattr(read, name) for name in spec.params}
