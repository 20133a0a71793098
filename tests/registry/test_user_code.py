"""A user's own code is all that its file imports from beside it."""

import pytest

from leakmap import Spec
from leakmap.registry.user_code import load_user_code, local_files, user_code_digest

FILES = {
    "mine.py": "import torch, helper\nfrom package import part\nfrom package.deep import mod\ndef f(): import late\n",
    "helper.py": "import mine\nfrom other import *\n",
    "other.py": "",
    "late.py": "",
    "unused.py": "",
    "package/__init__.py": "",
    "package/part.py": "from . import sibling\nfrom .. import above\n",
    "package/sibling.py": "from .deep.more import value\n",
    "package/unused.py": "",
    "package/deep/mod.py": "from ..part import x\n",
    "package/deep/more.py": "this is no Python",
    "above.py": "",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_local_module_is_found_through_packages_and_circles(folder):
    found = {file.relative_to(folder).as_posix() for file in local_files(folder / "mine.py")}
    assert found == FILES.keys() - {"unused.py", "package/unused.py"}


def test_the_digest_follows_what_is_imported_and_nothing_else(folder, tmp_path_factory):
    spec = Spec("generator", {"build": f"{folder / 'mine.py'}:f"})
    before = user_code_digest(spec)
    (folder / "unused.py").write_text("changed = True")
    assert user_code_digest(spec) == before
    for name in ("package/deep/more.py", "other.py", "mine.py"):
        (folder / name).write_text(f"{FILES[name]}\n# changed\n")
        assert user_code_digest(spec) != before
        (folder / name).write_text(FILES[name])
        assert user_code_digest(spec) == before
    (folder / "torch.py").write_text("")
    assert user_code_digest(spec) != before


def test_code_is_loaded_as_it_stands_now(tmp_path):
    for folder, value in (("a", 1), ("b", 22)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "leakmap_test_helper.py").write_text(f"VALUE = {value}\n")
        for file in ("model.py", "loss.py"):
            (tmp_path / folder / file).write_text("import leakmap_test_helper as h\ndef f():\n    return h\n")

    def module(name):
        return load_user_code(f"{tmp_path / name}:f")()

    assert [module("a/model.py").VALUE, module("b/model.py").VALUE, module("a/model.py").VALUE] == [1, 22, 1]
    assert module("b/loss.py") is not module("a/loss.py")
    (tmp_path / "a" / "leakmap_test_helper.py").write_text("VALUE = 333\n")
    assert module("a/model.py").VALUE == 333
    assert module("a/loss.py") is module("a/model.py")
