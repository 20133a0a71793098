"""Names for algorithms: how one is written down, found and built.

A specification is ``NAME[,key=value…]``. A registry maps names to constructors. The positional parameters of a
constructor are the context that the caller supplies; its keyword-only parameters are the settings, checked against
their annotations. A constructor is registered by the file that defines it, and every file of the registry's package
is imported at first use: adding an algorithm is one file. Installed packages join through entry points in the group
``leakmap.<kind>``.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from leakmap.errors import BadSetting, UnknownName, UsageError

T = TypeVar("T")
Constructor = TypeVar("Constructor", bound=Callable[..., Any])


@dataclass(frozen=True)
class Spec:
    """How an algorithm is written down: its name and the settings that differ from its defaults."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: "str | Spec") -> "Spec":
        """Reads ``NAME[,key=value…]``; values that look like JSON (numbers, true, false, null) are read as such.

        Raises:
            BadSetting: a part after the name is not ``key=value``, or a key comes twice.
        """
        if isinstance(text, Spec):
            return text
        name, *parts = text.split(",")
        params: dict[str, Any] = {}
        for part in parts:
            key, equals, value = part.partition("=")
            key = key.strip()
            if not equals or not key:
                raise BadSetting(f"In {text!r}, the part {part!r} is not key=value; write NAME[,key=value…].")
            if key in params:
                raise BadSetting(f"In {text!r}, the setting {key!r} is given twice; give it once.")
            params[key] = _literal(value.strip())
        return cls(name.strip(), params)

    def __str__(self) -> str:
        return ",".join([self.name, *(f"{key}={_text(value)}" for key, value in self.params.items())])


def _literal(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "-".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Tunable:
    """Where a rehearsal may look for a setting; stands in the setting's annotation.

    Args:
        low: Lowest value.
        high: Highest value.
        log: Whether orders of magnitude count alike.
        choices: The values of a setting that is no range; low and high are then unused.
    """

    low: float = 0.0
    high: float = 1.0
    log: bool = True
    choices: tuple[Any, ...] = ()


def near_misses(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest known ones if any are close, else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known are: {', '.join(known) or 'none'}."


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


def is_user_code(name: str) -> bool:
    """Whether a name points to a function in a Python file: ``path/to/file.py:function``."""
    return re.search(r"\.py:[A-Za-z_]\w*\Z", name) is not None


def user_code_digest(spec: Spec) -> str:
    """SHA-256 of the user's files that a specification names; empty if it names none."""
    named = [spec.name, *(value for value in spec.params.values() if isinstance(value, str))]
    files = [Path(name.rpartition(":")[0]) for name in named if is_user_code(name)]
    return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest() if files else ""


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UsageError: there is none.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UsageError(f"There is no file {str(path)!r}, which is named as part of what should run.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_user_code(reference: str) -> Callable[..., Any]:
    """Runs ``path/to/file.py`` and returns its ``function``. Only for references that the user typed.

    Raises:
        UsageError: the file or the function in it does not exist, or the file fails when it is run.
    """
    path_text, _, name = reference.rpartition(":")
    path = Path(path_text).expanduser().resolve()
    if not is_user_code(reference):
        raise UsageError(f"{reference!r} is not path/to/file.py:function.")
    if not path.is_file():
        raise UsageError(f"{reference!r} names a function in {path_text!r}, but there is no such file.")
    contents = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()
    module_name = f"leakmap_user_{path.stem}_{contents[:16]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"{path_text!r} is not a Python file that can be imported.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        sys.path.insert(0, str(path.parent))
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise UsageError(f"{path_text!r} failed when it was run: {type(error).__name__}: {error}.") from error
        finally:
            sys.path.remove(str(path.parent))
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(f"{path_text!r} has no function {name!r}; {near_misses(name, functions)}")
    return function
