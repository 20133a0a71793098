"""The studies that come with leakmap: the folder studies/ of the repository, which a wheel carries along."""

import tomllib
from importlib.resources import files
from pathlib import Path

from leakmap.errors import BadSetting
from leakmap.registry.spec import near_misses


def folder() -> Path:
    """Where the studies lie: inside the installed package, or in the repository beside it."""
    packaged = Path(str(files("leakmap.study"))) / "studies"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "studies"


def paths() -> dict[str, Path]:
    """Name -> file of each, such as ``first-look`` and ``paper/c01-inference-mode``, in alphabetical order."""
    found = {path.relative_to(folder()).with_suffix("").as_posix(): path for path in folder().rglob("*.toml")}
    return dict(sorted(found.items()))


def file_of(path: Path | str) -> Path:
    """The file of that path, else that of the study by that name which comes with leakmap.

    Raises:
        BadSetting: there is neither.
    """
    file, known = Path(path), paths()
    if file.is_file() or file.suffix:
        return file
    if (name := file.as_posix()) not in known:
        raise BadSetting(f"There is neither a file nor a study {name!r}; {near_misses(name, known)}")
    return known[name]


def studies() -> dict[str, str]:
    """The studies that come with leakmap.

    Returns:
        Name, as :func:`leakmap.read_study` and ``leakmap study run`` take it -> what the study asks.
    """
    return {name: tomllib.loads(path.read_text(encoding="utf-8"))["title"] for name, path in paths().items()}
