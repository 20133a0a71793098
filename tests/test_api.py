"""The public names: all of them, none besides, each with its documentation."""

import inspect
import pkgutil
import subprocess
import sys

import pytest

import leakmap

DOCUMENTED = [name for name in leakmap.__all__ if name != "__version__"]


def test_what_a_program_sees_is_what_is_listed():
    names = {name for name, value in vars(leakmap).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert names | {"__version__"} == set(leakmap.__all__)
    assert leakmap.__all__ == sorted(leakmap.__all__)


def test_no_public_name_hides_a_module_but_the_registries_of_their_rooms():
    modules = {module.name for module in pkgutil.iter_modules(leakmap.__path__)}
    assert modules & set(leakmap.__all__) == {"defences", "models"}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_name_says_what_it_takes_and_what_it_raises(name):
    value = getattr(leakmap, name)
    text = inspect.getdoc(value) or ""
    assert len(text) > 20
    is_error = inspect.isclass(value) and issubclass(value, Exception)
    if not is_error and callable(value) and inspect.signature(value).parameters:
        assert "\nArgs:" in text or "see :class:" in text, "settings that are another's may point there"
    if inspect.isfunction(value) and inspect.signature(value).parameters:
        assert "\nRaises:" in text


def test_importing_it_warns_of_nothing():
    ran = subprocess.run([sys.executable, "-W", "error", "-c", "import leakmap"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
