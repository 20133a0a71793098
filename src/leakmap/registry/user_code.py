"""A user's own Python files: which are named, what they hold, and running them where they were typed."""

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leakmap.errors import UsageError
from leakmap.files import file_digest
from leakmap.registry.spec import Spec, near_misses


def is_user_code(name: str) -> bool:
    """Whether a name points to a function in a Python file: ``path/to/file.py:function``."""
    return re.search(r"\.py:[A-Za-z_]\w*\Z", name) is not None


def user_code_digest(spec: Spec) -> str:
    """SHA-256 of the user's files that a specification names; empty if it names none."""
    named = [spec.name, *(value for value in spec.params.values() if isinstance(value, str))]
    files = [Path(name.rpartition(":")[0]) for name in named if is_user_code(name)]
    return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest() if files else ""


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
