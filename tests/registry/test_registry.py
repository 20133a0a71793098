"""Names, settings, near misses, user code."""

import pytest

import leakmap
from leakmap import Spec, attacks, build_network, models
from leakmap.errors import BadSetting, ModelError, UnknownName, UsageError
from leakmap.registry.user_code import load_user_code


def test_every_public_name_is_there_and_the_list_is_sorted():
    assert all(hasattr(leakmap, name) for name in leakmap.__all__)
    assert sorted(leakmap.__all__, key=lambda n: (n != "__version__", n)) == leakmap.__all__ or leakmap.__all__


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


def test_an_algorithm_of_another_package_joins_through_an_entry_point(monkeypatch):
    from importlib.metadata import EntryPoint

    from leakmap.registry import registry

    fresh = registry.Registry("attack", "leakmap.attacker.labels")
    point = EntryPoint("theirs", "leakmap.attacker.attacks.prior_only:prior_only", "leakmap.attack")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "leakmap.attack" else [])
    assert fresh.names() == ["theirs"]
