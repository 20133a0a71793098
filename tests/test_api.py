"""The public names: all of them, none besides, each with its documentation."""

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import leakmap
from tests.conftest import observed
from tests.result.made_up import finished, made_up, verdict

DOCUMENTED = [name for name in leakmap.__all__ if name != "__version__"]


def test_what_a_program_sees_is_what_is_listed():
    names = {name for name, value in vars(leakmap).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert names | {"__version__"} <= set(leakmap.__all__)
    stub = ast.parse(Path(leakmap.__file__).with_suffix(".pyi").read_text())
    for_type_checkers = next(ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert for_type_checkers == leakmap.__all__ == sorted(leakmap.__all__)


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


PICTURES = torch.randint(256, (60, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
LABELS = torch.arange(60) % 2
WRONG = {
    "labels of a billion classes": ({"labels": LABELS * 10**9}, "from 0 to at most 99999"),
    "labels that name classes without bound": ({"labels": LABELS + 10**9}, "classes from 0 to at most"),
    "labels that are words": ({"labels": ["a"] * 60}, "labels cannot be read as a tensor"),
    "no images": ({"images": None}, "images cannot be read as a tensor"),
    "sparse images": ({"images": PICTURES.float().to_sparse()}, "sparse"),
    "victims": ({"victims": "4"}, "victims must be at least 1; got '4'"),
    "a seed": ({"seed": 1.5}, "seed must be a whole number"),
    "a client": ({"client": {"mode": "eval"}}, "rule must be LocalRule"),
    "a threat": ({"threat": "known"}, "threat must be ThreatModel"),
    "an attack": ({"attack": None}, "A specification is of type NoneType"),
    "a loss": ({"loss": "cross_entropy"}, "The loss is of type str"),
    "a model": ({"model": 3}, "The model is of type int"),
    "progress": ({"progress": 3}, "progress is of type int"),
    "a wrapped model": ({"model": nn.DataParallel(nn.Linear(3, 2))}, "pass what is inside, model.module"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_value_of_another_type_is_one_sentence(case):
    change, words = WRONG[case]
    with pytest.raises(leakmap.LeakmapError, match=re.escape(words)):
        leakmap.audit(
            **{"model": "mlp", "images": PICTURES, "labels": LABELS, "attack": "linear", "victims": 2} | change
        )


@pytest.mark.parametrize(
    "call",
    [
        lambda: leakmap.attack("client.safetensors"),
        lambda: leakmap.simulate(None, leakmap.LocalRule(), None),
        lambda: leakmap.observe(None, leakmap.ThreatModel()),
        lambda: leakmap.build_network(None, "mlp"),
        lambda: leakmap.Observation.from_file(3),
        lambda: leakmap.read_result(3),
        lambda: leakmap.LocalRule(lr="0.1"),
        lambda: leakmap.LocalRule(share="delta", epochs=1.5),
    ],
)
def test_every_verb_says_what_it_takes(call):
    with pytest.raises(leakmap.LeakmapError, match="expected|must be"):
        call()


def test_a_notebook_shows_what_was_found_short_small_and_escaped(task):
    _, seen = observed(
        "mlp,hidden=16", task, rule=leakmap.LocalRule(mode="eval"), threat=leakmap.ThreatModel(public=4), count=1
    )
    found = leakmap.attack(seen, "linear")
    picture = torch.rand(1, 3, 16, 16)
    told = verdict("exact", "exposure", statement="<script>1 of 1 clients</script>")
    result = made_up(finished(0, (1.0,), (20,), {"psnr": (40.0,), "ssim": (1.0,)}), verdict=told, command="leakmap <b>")
    audit = leakmap.Audit(result, [{"original": picture, "reconstruction": picture}])
    for value, words in [
        (seen, ("gradient of 4 tensors with 12,372 values", "model mlp,hidden=16", "withheld labels, label_counts")),
        (found, ("pictures 1 of 3 x 16 x 16", "rests on the update")),
        (result, ("exact. <script>1 of 1 clients",)),
        (audit, ("exact. <script>1 of 1 clients",)),
    ]:
        assert all(word in repr(value) for word in words), repr(value)
        assert len(repr(value)) < 300
        page = value._repr_html_()
        assert len(page) < 20_000
        assert "<script" not in page
        ElementTree.fromstring(f"<body>{page}</body>")
    assert "leakmap &lt;b&gt;" in result._repr_html_()
    assert [value._repr_html_().count("<img") for value in (seen, found, result, audit)] == [4, 1, 0, 2]
