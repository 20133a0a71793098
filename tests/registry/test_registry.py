"""Names, settings, near misses, user code."""

import importlib
from importlib.metadata import EntryPoint

import pytest

from leakmap import Spec, attacks, build_network, models
from leakmap.errors import BadSetting, ModelError, UnknownName, UsageError
from leakmap.registry import registry
from leakmap.registry.user_code import load_user_code


@pytest.mark.parametrize("text", ["resnet", "resnet,blocks=1-1-1,width=24,preact=true", "a,x=0.5,y=null"])
def test_a_specification_is_read_back_as_it_is_written(text):
    assert str(Spec.parse(text)) == text
    assert Spec.parse(str(Spec.parse(text))) == Spec.parse(text)


@pytest.mark.parametrize("text", ["resnet,width", "resnet,=3", "resnet,width=1,width=2"])
def test_a_malformed_specification_is_refused(text):
    with pytest.raises(BadSetting):
        Spec.parse(text)


def test_unknown_names_answer_with_near_misses():
    with pytest.raises(UnknownName, match="did you mean inverting_gradients"):
        attacks.build("inverting_gradient")
    with pytest.raises(UnknownName, match="resnet"):
        models.build("resnett", None)
    with pytest.raises(UnknownName, match="known are"):
        attacks.build("zzz")


def test_unknown_settings_answer_with_near_misses_and_wrong_values_with_the_reason(task):
    with pytest.raises(BadSetting, match="did you mean preact"):
        models.build("resnet,preactt=true", task)
    with pytest.raises(BadSetting, match=r"'wide' for 'width'"):
        models.build("resnet,width=wide", task)
    with pytest.raises(BadSetting, match="greater than or equal to 1"):
        attacks.build("inverting_gradients,steps=0")
    with pytest.raises(BadSetting, match="blocks"):
        models.build("resnet,blocks=1-x", task)


def test_own_architectures_get_their_settings_and_their_mistakes_are_one_sentence(task, tmp_path):
    source = tmp_path / "nets.py"
    source.write_text(
        "from torch import nn\n"
        "def build(width=8, classes=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(768, width), nn.ReLU(), nn.Linear(width, classes))\n"
        "def broken():\n    raise KeyError('x')\n"
        "def nothing():\n    return 3\n"
    )
    assert build_network(task, f"{source}:build,width=6").weights["1.weight"].shape == (6, 768)
    for name, word in {
        "build,classes=9": r"expected class scores of shape \(2, 4\)",
        "build,depth=2": "depth",
        "broken": "KeyError",
        "nothing": "returned int",
    }.items():
        with pytest.raises(ModelError, match=word):
            build_network(task, f"{source}:{name}")
    with pytest.raises(UsageError, match="did you mean build"):
        load_user_code(f"{source}:built")
    with pytest.raises(UsageError, match="no such file"):
        load_user_code(f"{tmp_path / 'other.py'}:build")


@pytest.fixture
def plugins(monkeypatch, tmp_path):
    """Lays modules by name into a package of a fresh registry, and entry points beside it."""

    def lay(modules, points):
        package = tmp_path / f"package_of_{tmp_path.name}"
        package.mkdir()
        for name, text in ({"__init__": ""} | modules).items():
            (package / f"{name}.py").write_text(text.replace("PACKAGE", package.name))
        monkeypatch.syspath_prepend(tmp_path)
        fresh = registry.Registry("attack", package.name)
        importlib.import_module(package.name).attacks = fresh
        found = [EntryPoint(name, value, "leakmap.attack") for name, value in points]
        monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "leakmap.attack" else [])
        return fresh

    return lay


ADDED = "from PACKAGE import attacks\n@attacks.add('{0}')\ndef {0}():\n    return '{0}'\n"
PRIOR = "leakmap.attacker.attacks.prior_only:prior_only"


def test_what_is_broken_is_named_and_hides_nothing(plugins, caplog):
    modules = {
        "a": ADDED.format("first"),
        "b": ADDED.format("half") + "raise RuntimeError('no\\nlicence')",
        "c": "raise SystemExit(2)",
        "d": ADDED.format("last"),
    }
    points = [("gone", "no_such_module:it"), ("last", PRIOR), ("number", "math:pi"), ("theirs", PRIOR)]
    fresh = plugins(modules, points)
    for _ in range(2):
        assert fresh.names() == ["first", "last", "theirs"]
    assert fresh.build("last") == "last"
    reasons = {name.rpartition(".")[2]: reason for name, reason in fresh.broken().items()}
    assert reasons.keys() == {"b", "c", "gone", "last", "number"}
    assert reasons["b"] == "RuntimeError: no licence"
    assert "is taken by" in reasons["last"]
    with pytest.raises(UnknownName, match=r"no attack 'half'; .*gone could not be loaded: ModuleNotFoundError"):
        fresh.build("half")
    assert len(caplog.records) == 5
    assert all(record.name == "leakmap" and record.levelname == "WARNING" for record in caplog.records)


def test_an_interrupted_discovery_leaves_no_part_of_a_registry(plugins, monkeypatch):
    stopping = "import os\nif 'LEAKMAP_STOP' in os.environ:\n    raise KeyboardInterrupt\n"
    fresh = plugins({"a": ADDED.format("first"), "b": stopping, "c": ADDED.format("last")}, [("theirs", PRIOR)])
    monkeypatch.setenv("LEAKMAP_STOP", "1")
    with pytest.raises(KeyboardInterrupt):
        fresh.names()
    monkeypatch.delenv("LEAKMAP_STOP")
    assert fresh.names() == ["first", "last", "theirs"]


def test_a_family_alone_is_no_name(task):
    with pytest.raises(UnknownName, match="write torchvision/NAME"):
        models.build("torchvision/", task)
