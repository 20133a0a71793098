"""A user's own Python files: which are named, what they hold, and running them where they were typed."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from leakmap.errors import BadSetting, UsageError, in_words
from leakmap.files import file_digest
from leakmap.registry.spec import Spec, near_misses

_brought: dict[str, tuple[Path, str]] = {}
"""Modules that were imported from beside a user's file, by name: the file and its SHA-256."""


def is_user_code(name: str) -> bool:
    """Whether a name points to a function in a Python file: ``path/to/file.py:function``."""
    return re.search(r"\.py:[A-Za-z_]\w*\Z", name) is not None


def user_code_in(value: Any) -> list[str]:
    """Every function in a Python file that a value names: as a text, in a specification, in settings at any depth."""
    found, waiting = [], [value]
    while waiting:  # a loop, as what others wrote may be nested deeper than Python recurses
        one = waiting.pop()
        if isinstance(one, Mapping):
            waiting += [*one, *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, str) and (parts := _parts_of(one)):
            waiting += parts
        elif isinstance(one, str) and is_user_code(one):
            found.append(one)
    return found


def _parts_of(text: str) -> list[Any]:
    """What a text consists of if it is read as a specification; empty if that is the text itself."""
    try:
        spec = Spec.parse(text)
    except BadSetting:
        return text.split(",")
    return [spec.name, spec.params] if spec.name != text else []


def user_code_digest(spec: Spec) -> str:
    """SHA-256 of the user's files that a specification names and of all that they import; empty if it names none.

    Raises:
        UsageError: a file is not there.
    """
    named = [spec.name, *(value for value in spec.params.values() if isinstance(value, str))]
    files = [Path(name.rpartition(":")[0]).expanduser() for name in named if is_user_code(name)]
    return hashlib.sha256("".join(map(_digest, files)).encode()).hexdigest() if files else ""


def local_files(path: Path) -> list[Path]:
    """A file and every module in its folder and below that it imports, directly or not; nothing is run.

    Only import statements are followed, wherever they stand. A file that is no Python imports nothing.
    """
    found, waiting = {path}, [path]
    while waiting:
        file = waiting.pop()
        package = file.parent.relative_to(path.parent).parts
        for level, name in _statements(file.read_bytes()):
            above = package[: max(0, len(package) - level + 1)] if level else ()
            new = set(_files_of(path.parent, [*above, *name])) - found
            found |= new
            waiting += new
    return sorted(found)


def _digest(path: Path) -> str:
    """SHA-256 of a file and the modules beside it that it imports, each with its place relative to the file."""
    file_digest(path)
    parts = [(other.relative_to(path.parent).as_posix(), file_digest(other)) for other in local_files(path)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@lru_cache(maxsize=4096)
def _statements(source: bytes) -> list[tuple[int, list[str]]]:
    """What the import statements of a file name: how many packages up, and the parts of the name."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            found += [(node.level, [*module, alias.name]) for alias in node.names]
    return found


def _files_of(root: Path, parts: list[str]) -> Iterator[Path]:
    """The files that importing a dotted name runs: of every package on the way, and of the module at its end.

    What follows a module may be a name in it; ``*`` may be any module of a package.
    """
    for count, part in enumerate(parts):
        folder = root.joinpath(*parts[:count])
        if part == "*":
            yield from folder.glob("*.py") if count else ()
            return
        for file in (folder / part / "__init__.py", folder / f"{part}.py"):
            if file.is_file():
                yield file
                break


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
    contents = hashlib.sha256(f"{path} {_digest(path)}".encode()).hexdigest()
    module_name = f"leakmap_user_{path.stem}_{contents[:16]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"{path_text!r} is not a Python file that can be imported.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        _forget_changed(path)
        before = set(sys.modules) - set(_brought)
        sys.path.insert(0, str(path.parent))
        try:
            spec.loader.exec_module(module)
        except MemoryError:
            del sys.modules[module_name]
            raise
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise UsageError(f"{path_text!r} failed when it was run: {in_words(error)}.") from error
        finally:
            sys.path.remove(str(path.parent))
            _remember(path, before)
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(f"{path_text!r} has no function {name!r}; {near_misses(name, functions)}")
    return function


def _forget_changed(path: Path) -> None:
    """Has modules beside users' files read anew if one of them changed, or another of its name lies beside this file.

    Otherwise they stay: a model and a loss that share a module share what it holds.
    """
    own = {_module_name(path.parent, file): file for file in local_files(path)}
    if any(
        not file.is_file() or file_digest(file) != digest or own.get(name, file) != file
        for name, (file, digest) in _brought.items()
    ):
        for name in _brought:
            sys.modules.pop(name, None)
        _brought.clear()
        importlib.invalidate_caches()


def _remember(path: Path, before: set[str]) -> None:
    """Notes which modules were imported from beside a file since then."""
    for file in local_files(path):
        name = _module_name(path.parent, file)
        if name in sys.modules and name.partition(".")[0] not in before:
            _brought[name] = file, file_digest(file)


def _module_name(root: Path, file: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
