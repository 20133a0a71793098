"""Setups are named by all that they depend on, code of the user's own included."""

from dataclasses import replace
from itertools import pairwise

import pytest

from leakmap import LocalRule, Spec, ThreatModel, build_network, observe, simulate
from leakmap.auditing.prepare import gather
from leakmap.auditing.recipe import in_order, names_of, rehearsals, trials
from leakmap.plan.plan import Plan
from tests.conftest import batch_of

CODE = (
    "from torch import nn\nimport helper\n"
    "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(768, 8))\n"
    "def loss(outputs, y):\n    return helper.SCALE * nn.functional.cross_entropy(outputs, y)\n"
)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize(
    ("own", "changed"),
    [
        ("model", {"network", "main"}),
        ("loss", {"network", "main"}),
        ("attack", set()),
    ],
)
def test_an_edit_of_own_code_or_of_what_it_imports_names_other_runs(own, changed, captured, tmp_path, task):
    file, helper = tmp_path / "mine.py", tmp_path / "helper.py"
    plan = Plan("mlp,hidden=4", "samples", image_size=16, victims=1)
    chosen = {
        "model": {"model": f"{file}:build"},
        "loss": {"loss": f"{file}:loss"},
        "attack": {"attack": Spec("generator", {"build": f"{file}:build"})},
    }
    plan = replace(plan, threat=ThreatModel("known"), **chosen[own])
    sent = [observe(simulate(build_network(task, "mlp"), LocalRule(), batch_of(1, task)), ThreatModel())]
    seen = []
    for scale, comment in ((1, ""), (1, "# edited\n"), (20, "")):
        file.write_text(CODE + comment)
        helper.write_text(f"SCALE = {scale}\n")
        groups, loss = gather(plan)
        names = names_of(plan, loss, groups, sent if captured else ())
        planned = in_order(trials(plan, names.main, names.control))
        tuned = rehearsals(plan, names.main, plan.attack, "rehearsals", 1)
        seen.append((names, {trial.key for trial in planned[:3] + tuned}))
    for (first, before), (second, after) in pairwise(seen):
        differing = {name for name in ("network", "main", "control") if getattr(first, name) != getattr(second, name)}
        assert differing == changed
        assert not before & after


def test_what_was_captured_is_part_of_the_name(task):
    plan = Plan("mlp,hidden=4", "samples", image_size=16, victims=1)
    groups, own = gather(plan)
    rounds = [simulate(build_network(task, "mlp", seed=seed), LocalRule(), batch_of(1, task)) for seed in (0, 1)]
    names = [names_of(plan, own, groups, [observe(one, ThreatModel())]).main for one in rounds]
    assert len({*names, names_of(plan, own, groups).main}) == 3
